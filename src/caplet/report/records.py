"""The saved records of one run, as a report reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from caplet.errors import ArtefactError

METRICS, SETTINGS, ENVIRONMENT, SPLITS = "metrics.json", "settings.json", "environment.json", "splits.json"
SEARCH, PREDICTIONS, FLIPS, DETAILS = "search.json", "predictions.json", "flips.json", "details.json"
VERIFIED, TRACE, KEPT = "verify.json", "trace.json", "kept.json"
FILES = (METRICS, SETTINGS, ENVIRONMENT, SPLITS, SEARCH, PREDICTIONS, FLIPS, DETAILS, VERIFIED, TRACE, KEPT)
"""Every file that a report reads."""


COMPRESSED = "compressed"
"""The role of the one model that a compression ships."""


class Kind(StrEnum):
    """What a run did."""

    TRAIN = "train"
    QUANTIZE = "quantize"
    SENSITIVITY = "sensitivity"
    PRUNE = "prune"
    FINETUNE = "finetune"
    QAT = "qat"
    COMPRESS = "compress"


_MARKS = {
    "models": Kind.QUANTIZE,
    "history": Kind.TRAIN,
    "points": Kind.SENSITIVITY,
    "rounds": Kind.PRUNE,
    "choice": Kind.COMPRESS,
}


@dataclass(frozen=True)
class RunRecords:
    """One finished run.

    Attributes:
        name: of its folder.
        files: name -> parsed JSON, of those of :data:`FILES` that the folder has; ``metrics.json`` is one of them.

    Raises:
        ArtefactError: the metrics are those of no run that a report knows.
    """

    name: str
    files: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.kind  # noqa: B018  an unknown kind is refused now

    @property
    def metrics(self) -> dict[str, Any]:
        """``metrics.json``."""
        return dict(self.files[METRICS])

    @property
    def settings(self) -> dict[str, Any]:
        """``settings.json``, empty where it is missing."""
        return dict(self.files.get(SETTINGS, {}))

    @property
    def kind(self) -> Kind:
        """What the run did, by what its metrics hold."""
        if "finetune" in self.files[METRICS]:
            return Kind.QAT if "models" in self.files[METRICS] else Kind.FINETUNE
        for mark, kind in _MARKS.items():
            if mark in self.files[METRICS]:
                return kind
        raise ArtefactError(
            f"run {self.name}: its metrics.json has none of {', '.join(_MARKS)}, so it is no run of training,"
            " pruning, quantization, compression or error analysis; a report shows those"
        )

    def find(self, name: str) -> Any | None:
        """A file's content, or None where the run has no such file."""
        return self.files.get(name)

    @property
    def role(self) -> str:
        """The first shipped model's, under which other records tell about it."""
        role: str = COMPRESSED if self.kind is Kind.COMPRESS else self.metrics["models"][0]["role"]
        return role

    @property
    def details(self) -> dict[str, Any] | None:
        """The details of the first shipped model, None where none were recorded."""
        found = self.find(DETAILS)
        return None if found is None else found["models"].get(self.role)
