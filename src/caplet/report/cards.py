"""Which card a run gets."""

from __future__ import annotations

from collections.abc import Callable

from caplet.report.records import Kind, RunRecords
from caplet.report.verdict import Verdict, quantized, trained
from caplet.report.verdict_smaller import compressed, finetuned, pruned

CARDS: dict[Kind, Callable[[RunRecords], Verdict]] = {
    Kind.TRAIN: trained,
    Kind.QUANTIZE: quantized,
    Kind.PRUNE: pruned,
    Kind.FINETUNE: finetuned,
    Kind.QAT: finetuned,
    Kind.COMPRESS: compressed,
}


def verdict(run: RunRecords) -> Verdict | None:
    """The card of a run, None for a kind of run that has none."""
    return CARDS[run.kind](run) if run.kind in CARDS else None
