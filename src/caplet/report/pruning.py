"""What pruning did: accuracy by round and by score, the units that remain, couplings and idle units."""

from typing import Any

from caplet.report.charts import STYLES, Dot, Level, Series, Tile, chart, heat_map
from caplet.report.content import Figure, Section, Table
from caplet.report.svg import Canvas, picture_file
from caplet.runs.finished import RunRecords
from caplet.runs.records import KEPT, Kept, PruneMetrics

_WIDEST = 48
"""Cells in a row of a map; more units share a cell."""


def pruning_curves(record: dict[str, Any], title: str) -> bytes:
    """Accuracy against the fraction that remains, one line per score, as an SVG file.

    Args:
        record: ``curves.json`` of a pruning analysis: ``scores`` by name, each with ``points`` of ``kept``, ``macs``
            and ``accuracy`` (fractions), and ``area``; ``reference``, the unpruned accuracy.
        title: above the pictures.
    """
    scores = [name for name in record["scores"] if name != "random"]
    styles = {name: STYLES[index % (len(STYLES) - 1)] for index, name in enumerate(scores)}
    pictures = []
    for key, label in (("kept", "units remaining (%)"), ("macs", "MACs remaining (%)")):
        series = [
            Series(
                f"{name} (area {line['area']:.3f})",
                tuple((100 * point[key], 100 * point["accuracy"]) for point in line["points"]),
                styles.get(name, STYLES[-1]),
            )
            for name, line in record["scores"].items()
        ]
        levels = [Level(100 * record["reference"], "unpruned")]
        pictures.append(chart("Accuracy by what remains", (label, "correct (%)"), series, levels=levels))
    return picture_file(title, pictures, columns=2)


def remaining_units(kept: Kept, title: str) -> bytes:
    """The maps of ``kept.json``, the units that remain after pruning, as an SVG file."""
    return picture_file(title, _maps(kept))


def rounds(run: RunRecords[PruneMetrics]) -> Section | str:
    """Accuracy on the calibration split by round: after surgery, refitted, and fine-tuned."""
    found = run.metrics.rounds
    numbers = [row.round for row in found]
    accuracies = {
        "after surgery": [row.calibration_cut or row.calibration_before for row in found],
        "refitted": [row.calibration_before for row in found],
        "fine-tuned": [row.calibration for row in found],
    }
    lines = [
        Series(name, tuple((number, each.percent) for number, each in zip(numbers, values, strict=True)), style)
        for (name, values), style in zip(accuracies.items(), ("s2", "s1", "s0"), strict=True)
    ]
    dots = [
        Dot(number, value, line.style, f"round {number}, {line.name}: {value:.2f} %")
        for line in lines
        for number, value in line.points
    ]
    picture = chart("Calibration accuracy by round", ("round", "correct (%)"), lines, dots, whole_x=True)
    rows = tuple(
        (
            row.round,
            *(line.points[index][1] for line in lines),
            row.cost["macs"],
            row.cost["parameters"],
            row.seconds,
        )
        for index, row in enumerate(found)
    )
    columns = ("round", "surgery", "refitted", "fine_tuned", "macs", "parameters", "seconds")
    caption = "Every round removes units by their score, refits the weights that remain, then fine-tunes."
    figure = Figure("Rounds", caption, (picture,), Table("rounds", columns, rows))
    return Section("Pruning rounds", f"{len(found)} round{'s' if len(found) > 1 else ''}.", (figure,))


def remaining(run: RunRecords[PruneMetrics]) -> Section | str:
    """Types by positions of every layer whose capsules vote for the classes, and the units of the other layers."""
    kept = run.kept
    if kept is None:
        return f"What remains: the run has no {KEPT}."
    sizes = ", ".join(f"{len(row.kept)} of {row.of} {name}" for name, row in kept.spaces.items())
    rows = tuple(
        (layer, kind, sum(row), len(row)) for layer, types in kept.votes.items() for kind, row in enumerate(types)
    )
    figure = Figure(
        "Units, and voting capsules by type and position",
        "Dark: remains. Light: removed. Colours between: some of the units that share the cell remain.",
        tuple(_maps(kept)),
        Table("survivors", ("layer", "type", "positions_left", "positions"), rows),
    )
    return Section("What remains", f"{sizes}.", (figure,))


def _maps(kept: Kept) -> list[Canvas]:
    """A row of cells for each group of channels, types or dimensions; types by positions of the capsules that vote."""
    strips = {
        name: [int(unit in set(row.kept)) for unit in range(row.of)]
        for name, row in kept.spaces.items()
        if row.kind != "capsules"
    }
    maps = [_map([row], ("", f"{name}: {sum(row)} of {len(row)} remain")) for name, row in strips.items()]
    return maps + [_map(types, ("type", f"{layer}: position")) for layer, types in kept.votes.items()]


def _map(table: list[list[int]], corner: tuple[str, str]) -> Canvas:
    step = -(-len(table[0]) // _WIDEST)
    tiles = {}
    for index, row in enumerate(table):
        for first in range(0, len(row), step):
            part = row[first : first + step]
            fraction = sum(part) / len(part)
            where = f"{corner[0]} {index}, ".removeprefix(" ") if corner[0] else ""
            units = f"{first}" if len(part) == 1 else f"{first} to {first + len(part) - 1}"
            tiles[index, first // step] = Tile("", fraction, f"{where}{units}: {fraction:.0%} remain")
    names = [str(index) if corner[0] else "" for index in range(len(table))]
    columns = [""] * -(-len(table[0]) // step)
    return heat_map(f"What remains, {corner[1]}", names, columns, tiles, cell=(9.0, 9.0), corner=corner)


def activity(run: RunRecords[PruneMetrics]) -> Section | str:
    """Entropy of the couplings before and after, and units that never do anything."""
    before, after = (run.metrics.activity[key] for key in ("original", "pruned"))
    removed = run.metrics.dead_removed
    rows = []
    for name, dead in before.dead.items():
        gone = f", {removed[name]:,} removed for free" if name in removed else ""
        rows.append(
            (f"never active, {name}", f"{dead:,} before{gone}; {after.dead.get(name, 0):,} in the pruned network")
        )
    pictures, lines = [], []
    for layer, old in before.entropy.items():
        series = []
        for name, found, style in (("before", old, "s1"), ("pruned", after.entropy.get(layer), "s0")):
            if found is not None:
                points = tuple((10.0 * index, value) for index, value in enumerate(found["deciles"]))
                series.append(Series(f"{name}, mean {found['mean']:.3f}", points, style))
                lines += [(layer, name, percent, value) for percent, value in points]
        title = f"Entropy of the couplings of {layer}"
        pictures.append(chart(title, ("input capsules (%), by entropy", "entropy"), series))
    figure = Figure(
        "Coupling entropy",
        "1: a capsule votes for all outputs alike; 0: for one. By layer that routes more than once.",
        tuple(pictures),
        Table("coupling-entropy", ("layer", "network", "percent_of_capsules", "entropy"), tuple(lines)),
    )
    return Section(
        "Couplings and idle units",
        "Measured on the calibration images that scores look at. A unit is never active if no capsule of it is longer"
        " than 0.001 (a channel: larger) on any of them.",
        (figure,) if pictures else (),
        rows=tuple(rows),
    )
