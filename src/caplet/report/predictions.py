"""Predictions on the test split: confusion before and after, and the images whose prediction changed."""

import math
from collections import Counter
from itertools import product
from typing import Any

from caplet.report.charts import Tile, heat_map
from caplet.report.content import Figure, Section, Table
from caplet.report.svg import Canvas
from caplet.runs.finished import RunRecords
from caplet.runs.records import FLIPS, PREDICTIONS, Row

MOST_CLASSES = 30
"""Classes up to which a confusion matrix is drawn."""
_KINDS = {
    "lost": "only float was correct",
    "won": "only the integers were correct",
    "other": "both are wrong, differently",
}


def confusion(run: RunRecords[Any]) -> Section | str:
    """Confusion matrices of the float model and of the first shipped model on the test split."""
    record = run.predictions
    if record is None:
        return f"Confusion: the run has no {PREDICTIONS}; quantize again to have it."
    classes = record.classes
    if len(classes) > MOST_CLASSES:
        return f"Confusion: {len(classes)} classes are too many to draw (at most {MOST_CLASSES})."
    before, after = (
        Counter(zip(record.labels, answers, strict=True)) for answers in (record.float, record.models[run.role])
    )
    pairs = product(range(len(classes)), repeat=2)
    rows = tuple((classes[i], classes[j], before[i, j], after[i, j]) for i, j in pairs)
    pictures = tuple(_matrix(title, counts, classes) for title, counts in (("float", before), ("integers", after)))
    figure = Figure(
        "Float (left) and integers (right)",
        "Rows are true classes, columns predictions, numbers test images. Correct predictions are green, wrong ones"
        " orange; the stronger, the larger their fraction of the row.",
        pictures,
        Table("confusion", ("label", "answer", "float", "integers"), rows),
    )
    changes = [(after[i, i] - before[i, i], name) for i, name in enumerate(classes)]
    worst, best = min(changes), max(changes)
    text = f"Of {len(record.labels):,} test images."
    if worst[0] < 0:
        text += f" Class {worst[1]} loses most: {-worst[0]} correct predictions fewer."
    if best[0] > 0:
        text += f" Class {best[1]} gains most: {best[0]} more."
    return Section("Confusion before and after", text, (figure,))


def _matrix(title: str, counts: Counter[tuple[int, int]], classes: list[str]) -> Canvas:
    """The confusion matrix of ``counts`` by (true class, prediction)."""
    tiles = {}
    for i, j in product(range(len(classes)), repeat=2):
        count = counts[i, j]
        mix = math.sqrt(count / sum(counts[i, k] for k in range(len(classes)))) if count else 0.0
        tip = f"{classes[i]} predicted as {classes[j]}: {count}"
        tiles[i, j] = Tile(str(count) if count else "", mix, tip, "tile right" if i == j else "tile wrong")
    widest = max(len(str(count)) for count in counts.values())
    return heat_map(f"Confusion, {title}", classes, classes, tiles, cell=(max(26.0, 8.0 * widest + 8), 26.0))


def changed(run: RunRecords[Any]) -> Section | str:
    """The images whose prediction differs between float and integers."""
    record, answers = run.flips, run.predictions
    if record is None or answers is None:
        return f"Changed predictions: the run has no {FLIPS}; quantize again to have it."
    if record.role != run.role:
        return f"Changed predictions: {FLIPS} is about another model than the first one; quantize again."
    counts, classes = record.counts, answers.classes
    total = sum(counts.values())
    if not total:
        return f"Changed predictions: there are none; float and integers agree on all {record.n:,} test images."
    parts = ", ".join(f"{counts[kind]:,} where {words}" for kind, words in _KINDS.items() if counts[kind])
    text = f"{total:,} of {record.n:,} test images get another prediction as integers: {parts}."
    if len(record.shown) < total:
        text += f" {len(record.shown)} of them are shown."
    thumbnails = tuple(_thumbnail(shown, classes) for shown in record.shown)
    answered = zip(answers.labels, answers.float, answers.models[record.role], strict=True)
    rows = tuple((i, classes[a], classes[b], classes[c]) for i, (a, b, c) in enumerate(answered) if b != c)
    table = Table("changed-answers", ("position", "label", "float", "integers"), rows)
    return Section("Changed predictions", text, thumbnails=thumbnails, table=table)


def _thumbnail(shown: Row, classes: list[str]) -> Row:
    names = [classes[shown[key]] for key in ("label", "float", "integers")]
    lines = (f"is {names[0]}", f"float {names[1]}", f"integers {names[2]}", f"no. {shown['id']:,}")
    return {"png": shown["png"], "kind": shown["kind"], "lines": lines}
