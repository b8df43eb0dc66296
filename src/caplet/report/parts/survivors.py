"""What pruning left: rounds, and a map of the capsules that still vote."""

from __future__ import annotations

from caplet.report.charts import Labels, Series, Tile, chart, heat_map
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import KEPT, RunRecords

_WIDEST = 48


def rounds(run: RunRecords) -> Section | str:
    """Accuracy on the calibration split by round, before and after fine-tuning."""
    found = run.metrics["rounds"]

    def line(name: str, key: str, style: str) -> Series:
        return Series(name, tuple((row["round"], row[key]["percent"]) for row in found), style)

    picture = chart(
        Labels("Calibration accuracy by round", "round", "correct (%)"),
        [line("before fine-tuning", "calibration_before", "s1"), line("after", "calibration", "s0")],
        whole_x=True,
    )
    table = Table(
        "rounds",
        ("round", "before", "after", "macs", "parameters", "seconds"),
        tuple(
            (
                row["round"],
                row["calibration_before"]["percent"],
                row["calibration"]["percent"],
                sum(layer["macs"]["total"] for layer in row["cost"]["layers"]),
                sum(layer["parameters"] for layer in row["cost"]["layers"]),
                row["seconds"],
            )
            for row in found
        ),
    )
    figure = Figure("Rounds", "Every round removes units by their score, then fine-tunes.", (picture,), table)
    return Section("Pruning rounds", f"{len(found)} rounds.", (figure,))


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
