"""What pruning left: rounds, and a map of the capsules that still vote."""

from __future__ import annotations

from caplet.report.charts import Dot, Labels, Series, Tile, chart, heat_map
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import KEPT, RunRecords

_WIDEST = 48


def rounds(run: RunRecords) -> Section | str:
    """Accuracy on the calibration split by round: after surgery, refitted, and fine-tuned."""
    found = run.metrics["rounds"]
    cut = [row.get("calibration_cut", row["calibration_before"]) for row in found]  # older runs were not refitted

    states = (
        ("after surgery", [row["percent"] for row in cut], "s2"),
        ("refitted", [row["calibration_before"]["percent"] for row in found], "s1"),
        ("fine-tuned", [row["calibration"]["percent"] for row in found], "s0"),
    )
    numbers = [row["round"] for row in found]
    picture = chart(
        Labels("Calibration accuracy by round", "round", "correct (%)"),
        [Series(name, tuple(zip(numbers, values, strict=True)), style) for name, values, style in states],
        [
            Dot(number, value, style, f"round {number}, {name}: {value:.2f} %")
            for name, values, style in states
            for number, value in zip(numbers, values, strict=True)
        ],
        whole_x=True,
    )
    table = Table(
        "rounds",
        ("round", "surgery", "refitted", "fine_tuned", "macs", "parameters", "seconds"),
        tuple(
            (
                row["round"],
                cut[index]["percent"],
                row["calibration_before"]["percent"],
                row["calibration"]["percent"],
                sum(layer["macs"]["total"] for layer in row["cost"]["layers"]),
                sum(layer["parameters"] for layer in row["cost"]["layers"]),
                row["seconds"],
            )
            for index, row in enumerate(found)
        ),
    )
    figure = Figure(
        "Rounds", "Every round removes units by their score, refits what is left, then fine-tunes.", (picture,), table
    )
    return Section("Pruning rounds", f"{len(found)} round{'s' if len(found) > 1 else ''}.", (figure,))


def survivors(run: RunRecords) -> Section | str:
    """Types by positions of every layer whose capsules vote for the classes."""
    kept = run.find(KEPT)
    if kept is None:
        return "Map of what is left: the run has no kept.json."
    sizes = ", ".join(f"{len(row['kept'])} of {row['of']} {name}" for name, row in kept["spaces"].items())
    pictures, rows = [], []
    for layer, types in kept["votes"].items():
        step = -(-len(types[0]) // _WIDEST)
        tiles = {}
        for kind, row in enumerate(types):
            for column in range(0, len(row), step):
                part = row[column : column + step]
                share = sum(part) / len(part)
                tiles[kind, column // step] = Tile("", share, f"type {kind}, position {column}: {share:.0%} left")
            rows.append((layer, kind, sum(row), len(row)))
        columns = [""] * -(-len(types[0]) // step)
        names = [str(kind) for kind in range(len(types))]
        pictures.append(
            heat_map(
                f"Capsules of {layer} that vote", names, columns, tiles, cell=(9.0, 9.0), corner=("type", "position")
            )
        )
    if not pictures:
        return "Map of what is left: no single capsules are listed."
    table = Table("survivors", ("layer", "type", "positions_left", "positions"), tuple(rows))
    figure = Figure("Types and positions", "Dark: still votes for the classes. Light: gone.", tuple(pictures), table)
    return Section("What is left", f"{sizes}.", (figure,))


def activity(run: RunRecords) -> Section | str:
    """Entropy of the couplings before and after, and units that never do anything."""
    before, after = (run.metrics["activity"][key] for key in ("original", "pruned"))
    removed = run.metrics.get("dead_removed", {})
    rows = []
    for name, dead in before["dead"].items():
        gone = f", {removed[name]:,} removed for free" if name in removed else ""
        left = after["dead"].get(name, 0)
        rows.append((f"never active, {name}", f"{dead:,} before{gone}; {left:,} in the pruned network"))
    pictures, lines = [], []
    for layer, old in before["entropy"].items():
        series = []
        for name, found, style in (("before", old, "s1"), ("pruned", after["entropy"].get(layer), "s0")):
            if found is not None:
                points = tuple((10.0 * index, value) for index, value in enumerate(found["deciles"]))
                series.append(Series(f"{name}, mean {found['mean']:.3f}", points, style))
                lines += [(layer, name, share, value) for share, value in points]
        title = f"Entropy of the couplings of {layer}"
        pictures.append(chart(Labels(title, "input capsules (%), by entropy", "entropy"), series))
    figures = (
        Figure(
            "Coupling entropy",
            "1: a capsule votes for all outputs alike; 0: for one. By layer that routes more than once.",
            tuple(pictures),
            Table("coupling-entropy", ("layer", "network", "percent_of_capsules", "entropy"), tuple(lines)),
        ),
    )
    return Section(
        "Couplings and idle units",
        "Measured on the calibration images that scores look at. A unit is never active if no capsule of it is longer"
        " than 0.001 (a channel: larger) on any of them.",
        figures if pictures else (),
        rows=tuple(rows),
    )
