"""The parts of a page, in order: each reads one run's records and answers with a section, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable

from caplet.report.figure import Section
from caplet.report.parts.answers import confusion, flips
from caplet.report.parts.arena import memory
from caplet.report.parts.curves import curves, finetuning, tuning
from caplet.report.parts.front import front
from caplet.report.parts.levels import levels
from caplet.report.parts.origin import origin
from caplet.report.parts.pairs import pairs
from caplet.report.parts.search import search
from caplet.report.parts.sensitivity import sensitivity
from caplet.report.parts.speed import speed
from caplet.report.parts.survivors import activity, rounds, survivors
from caplet.report.parts.tradeoff import stages, tradeoff
from caplet.report.parts.widths import widths
from caplet.report.records import Kind, RunRecords
from caplet.report.verdict import verified_reason

Part = Callable[[RunRecords], Section | str]
"""A section, or one sentence on why there is none."""

PARTS: dict[Kind, tuple[Part, ...]] = {
    Kind.TRAIN: (curves, origin),
    Kind.QUANTIZE: (widths, front, search, memory, confusion, flips, levels, origin),
    Kind.SENSITIVITY: (sensitivity, origin),
    Kind.FINETUNE: (finetuning, origin),
    Kind.QAT: (finetuning, widths, memory, confusion, flips, levels, origin),
    Kind.PRUNE: (rounds, tuning, survivors, activity, origin),
    Kind.COMPRESS: (tradeoff, pairs, speed, widths, memory, confusion, flips, levels, stages, origin),
}
"""What a page shows of each kind of run."""


def sections(run: RunRecords) -> tuple[list[Section], list[str]]:
    """A run's sections, and sentences on what is missing."""
    found: list[Section] = []
    missing: list[str] = []
    for part in PARTS[run.kind]:
        result = part(run)
        if isinstance(result, Section):
            found.append(result)
        else:
            missing.append(result)
    reason = verified_reason(run) if run.kind is Kind.QUANTIZE else None
    return found, missing if reason is None else [reason, *missing]
