"""How fast the float model, the pruned one and the integers are on the machine of the run."""

from __future__ import annotations

from caplet.report.figure import Section, Table
from caplet.report.records import RunRecords

_NAMES = {"float": "float, PyTorch", "pruned": "pruned float, PyTorch", "integers": "integers, compiled C"}


def speed(run: RunRecords) -> Section | str:
    """Images per second of all sides."""
    found = run.metrics["speed"]
    rows = tuple(
        (name, f"{rate['median']:,.0f}", f"{rate['low']:,.0f} to {rate['high']:,.0f}", f"{rate['times']:.1f}x")
        for side, name in _NAMES.items()
        if (rate := found["sides"].get(side)) is not None
    )
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    text = (
        f"Measured in turns on {threads} of the machine that made the run, {found['images']:,} images in each of"
        f" {found['turns']} turns, in batches of {found['torch_batch']} in PyTorch: medians, and the slowest and the"
        " fastest turn."
    )
    return Section("Speed", text, grid=Table("speed", ("network", "images/s", "range", "times float"), rows))
