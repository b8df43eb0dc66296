"""Tables about finished runs."""

from __future__ import annotations

from caplet.cli.output import console, kilobytes
from caplet.jobs.quantize import QuantizeResult


def show_quantized(result: QuantizeResult) -> None:
    """Float against every shipped model: accuracy with interval, bytes, reductions, widths, files."""
    from rich.table import Table

    metrics = result.metrics
    table = Table(title="Float against integers (test split)")
    for heading in ("model", "test accuracy [95 %]", "loss (pp)", "weights", "W", "A", "file"):
        table.add_column(heading, justify="left" if heading in ("model", "file") else "right")
    table.add_row("float", str(result.float_test), "", kilobytes(metrics["float"]["weight_bytes"]), "1.0x", "1.0x", "")
    for shipped in result.models:
        record, pair = shipped.record, shipped.against_float
        table.add_row(
            shipped.role,
            str(shipped.test),
            f"{pair.loss:+.2f} [{pair.low:+.2f}, {pair.high:+.2f}]",
            kilobytes(record["file_bytes"]),
            f"{record['weight_reduction']:.1f}x",
            f"{record['activation_reduction']:.1f}x",
            shipped.path.name,
        )
    console().print(table)
    for shipped in result.models:
        widths = ", ".join(
            f"{name} {w['weights']}/{w['activations']}/{w['routing']}" for name, w in shipped.record["widths"].items()
        )
        console().print(f"{shipped.role}: bits of weights/activations/routing: {widths}")
    search = metrics["search"]
    console().print(
        f"{result.search.reason}; {search['probes']} probes, {search['full_passes']:.1f} full passes of"
        f" {search['calibration_images']:,} calibration images, {search['seconds']:.0f} s"
    )
    console().print(f"run folder: {result.folder}")
