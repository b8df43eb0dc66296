"""Pictures of pruning: accuracy against what is kept, and the map of what is left."""

from __future__ import annotations

import io
from typing import Any


def pruning_curves(record: dict[str, Any], title: str) -> bytes:
    """PNG of accuracy against the kept fraction, one line per score; the random baseline is grey.

    Args:
        record: ``curves.json`` of a pruning analysis: ``scores`` by name, each with ``points`` of ``kept``, ``macs``
            and ``accuracy`` (fractions), and ``area``; ``reference``, the unpruned accuracy.
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (key, label) in zip(panels, (("kept", "units kept (%)"), ("macs", "MACs kept (%)")), strict=True):
        panel.set(xlabel=label)
        panel.grid(alpha=0.3)
        for name, line in record["scores"].items():
            colour = {"color": "grey", "linestyle": "--"} if name == "random" else {}
            x = [100 * point[key] for point in line["points"]]
            y = [100 * point["accuracy"] for point in line["points"]]
            panel.plot(x, y, marker=".", label=f"{name} (area {line['area']:.3f})", **colour)
        panel.axhline(100 * record["reference"], color="black", linewidth=0.6)
    panels[0].set_ylabel("accuracy on calibration images (%)")
    panels[0].legend(fontsize="small")
    return _png(figure)


def survivors_plot(kept: dict[str, Any], title: str) -> bytes:
    """PNG: for every space a strip with the units that are left, and for voting capsules a map of types x positions.

    Args:
        kept: ``kept.json`` of a pruning run.
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    spaces = kept["spaces"]
    strips = [name for name, row in spaces.items() if row["kind"] != "capsules"]
    maps = kept["votes"]
    heights = [1.0] * len(strips) + [max(2.0, 0.12 * len(table)) for table in maps.values()]
    figure = Figure(figsize=(9, 0.7 + 0.55 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    for panel, name in zip(panels, strips, strict=False):
        row = spaces[name]
        left = set(row["kept"])
        panel.imshow([[int(unit in left) for unit in range(row["of"])]], aspect="auto", cmap="Blues", vmin=0, vmax=1.3)
        panel.set_yticks([])
        panel.set_ylabel(f"{name}\n{len(left)} of {row['of']}", rotation=0, ha="right", va="center", fontsize="small")
    for panel, (name, table) in zip(panels[len(strips) :], maps.items(), strict=True):
        panel.imshow(table, aspect="auto", cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest")
        panel.set_xlabel(f"{name}: position (row by row); {sum(map(sum, table))} capsules vote", fontsize="small")
        panel.set_ylabel("type", rotation=0, ha="right", fontsize="small")
    return _png(figure)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()
