"""The error analysis as a picture."""

from __future__ import annotations

import io
from typing import Any

_PANELS = (("sqnr", "SQNR at the point (dB)"), ("output_sqnr", "SQNR at the class capsules (dB)"))
_STYLES = ("-", "--", ":", "-.")


def sensitivity_plot(summaries: list[dict[str, Any]], title: str) -> bytes:
    """PNG: for every point, signal-to-noise ratio at the point and at the class capsules, by width.

    Bars span the draws. Widths without any noise (infinite ratio) are left out.

    Args:
        summaries: the records of ``sensitivity.json``, key ``points``, at least one.
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        points.setdefault(summary["point"], []).append(summary)
    figure = Figure(figsize=(13, max(4.5, 0.22 * len(points))), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(1, len(_PANELS))
    for panel, (name, label) in zip(axes, _PANELS, strict=True):
        panel.set(xlabel="width (bits)", ylabel=label)
        panel.grid(alpha=0.3)
        for index, (point, rows) in enumerate(points.items()):
            shown = [row for row in rows if row[name]["mean"] is not None]
            middle = [row[name]["mean"] for row in shown]
            low = [mean - _or(row[name]["low"], mean) for mean, row in zip(middle, shown, strict=True)]
            high = [_or(row[name]["high"], mean) - mean for mean, row in zip(middle, shown, strict=True)]
            panel.errorbar(
                [row["bits"] for row in shown],
                middle,
                yerr=(low, high),
                label=point,
                color=f"C{index % 10}",
                linestyle=_STYLES[index // 10 % len(_STYLES)],
                marker=".",
                capsize=2,
            )
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
