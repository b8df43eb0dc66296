"""What a sweep made, with its Pareto front; and one of its networks."""

from caplet.report.cards import bytes_text
from caplet.report.charts import Dot, Level, chart
from caplet.report.content import Figure, Section, Table
from caplet.report.svg import Canvas
from caplet.runs.finished import RunRecords
from caplet.runs.swept import SweepMetrics, TrialMetrics

_AXES = {"flash": "flash (bytes)", "ram": "RAM (bytes)", "macs": "multiply-accumulates"}
_STYLES = {"stopped": "s2 hollow", "trial": "s0 hollow", "best trials": "s0", "in full": "s1", "winner": "good"}
_COLUMNS = ("number", "state", "network", "percent", *_AXES, "seconds", "folder", "about")


def network(run: RunRecords[TrialMetrics]) -> Section | str:
    """One network of a sweep."""
    found = run.metrics
    takes = f"{bytes_text(found.flash)} of flash, {bytes_text(found.ram)} of RAM, {found.macs:,} multiply-accumulates"
    rows = (("Integers", f"{found.accuracy}"), ("Float", f"{found.reference}"), ("Takes", takes))
    text = f"{found.network}. Weights have 4 bits, computed tensors 8. Accuracies are of calibration images."
    return Section(f"Network {found.number}", text, rows=rows)


def pareto(run: RunRecords[SweepMetrics]) -> Section | str:
    """Accuracy against flash, RAM and multiply-accumulates; a click on a network that was made leads to its page."""
    found, metrics = run.metrics.networks, run.metrics
    count = {state: sum(each.state == state for each in found) for state in ("made", "stopped", "full")}
    text = (
        f"{len(found) - count['full']} networks were drawn, {count['made']} trained for a short time,"
        f" {count['stopped']} more stopped early, {count['full']} trained in full; number {metrics.winner} won."
    )
    caption = (
        "Each mark is a network with weights of 4 bits, on calibration images; a click leads to its page. Trials see"
        " fewer images, for a shorter time, than networks in full. The winner's weights are narrowed in the end."
    )
    table = Table.of("networks", _COLUMNS, ({**vars(each), "percent": each.percent} for each in found))
    pictures = tuple(_picture(metrics, *axis) for axis in _AXES.items())
    return Section("Networks of the sweep", text, (Figure("Accuracy against sizes", caption, pictures, table),))


def _kind(found: TrialMetrics, metrics: SweepMetrics) -> str:
    if found.state == "full":
        return "winner" if found.number == metrics.winner else "in full"
    return "stopped" if found.state == "stopped" else "best trials" if found.number in metrics.front else "trial"


def _picture(metrics: SweepMetrics, name: str, words: str) -> Canvas:
    shown = [(_kind(found, metrics), found) for found in metrics.networks if found.accuracy is not None]
    shown.sort(key=lambda each: [*_STYLES].index(each[0]))  # the winner on top
    least, dots = min(found.percent for _, found in shown if found.folder), []
    for kind, found in shown:
        size, page = vars(found)[name], f"{found.folder}/report.html" if found.folder else ""
        tip = f"{found.number}, {kind}: {found.percent:.2f} %, {size:,}: {found.network}"
        dots.append(Dot(size, found.percent, _STYLES[kind], tip, below=found.percent < least, href=page))
    limit, errors = (metrics.limits[each]["asked"] for each in (name, "errors"))
    levels = [] if limit is None else [Level(limit, "limit", across=False)]
    levels += [] if errors is None else [Level(100 - errors, "asked")]
    legend = [(style, kind) for kind, style in _STYLES.items() if kind in dict(shown)]
    axes = (words, "correct (%)")
    return chart(f"Accuracy by {words}", axes, dots=dots, levels=levels, legend=legend, log_x=True)
