"""Probes: measured plans, and the log of them that lets a search resume."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ArtefactError, PlanError
from caplet.quant.measure.lines import JsonLines
from caplet.quant.plan.plan import QuantPlan

VERSION = 2
FLOAT = "float"
"""The digest under which the float model's result is logged."""


@dataclass(frozen=True, eq=False)
class Probe:
    """What is known about one plan (or the float model) on an evaluator's images.

    Attributes:
        digest: of the plan, or :data:`FLOAT`.
        hits: bool (n,): which images are classified correctly, in the images' own order, for paired comparisons; the
            likeliest answer for images that were not looked at (the float model's, or a similar plan's).
        seconds: wall time of what was measured for this answer.
        cost: what that took, in full passes of all images through the whole model (multiply-accumulates). The same
            where the log of an interrupted run gave the answer.
        cached: whether the answer was known already and nothing was computed now.
        seen: images looked at; None for all.
        bounds: on the number of correct images; None where all were looked at.
        error: probability that ``bounds`` is wrong (see :mod:`caplet.quant.measure.early_decision`); 0 where they are
            certain.
    """

    digest: str
    hits: NDArray[np.bool_]
    seconds: float
    cost: float
    cached: bool = False
    seen: int | None = None
    bounds: tuple[int, int] | None = None
    error: float = 0.0

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.hits)

    @property
    def correct(self) -> int:
        """Number of images classified correctly; an estimate where not all were looked at."""
        return int(self.hits.sum())

    @property
    def accuracy(self) -> float:
        """Correct fraction, 0..1."""
        return self.correct / self.n

    @property
    def low(self) -> int:
        """At least so many images are correct."""
        return self.correct if self.bounds is None else self.bounds[0]

    @property
    def high(self) -> int:
        """At most so many images are correct."""
        return self.correct if self.bounds is None else self.bounds[1]

    @property
    def looked_at(self) -> int:
        """How many images were looked at."""
        return self.n if self.seen is None else self.seen


@dataclass(frozen=True, eq=False)
class Part:
    """One plan on images ``start`` to ``stop`` - 1 of the order of looking: a line of the log.

    Attributes:
        hits: bool (stop - start,): classified correctly.
        margins: float32 (stop - start,): length of the true class's capsule minus the longest other one.
        seconds: wall time.
        cost: in full passes of all images.
    """

    digest: str
    start: int
    hits: NDArray[np.bool_]
    margins: NDArray[np.float32]
    seconds: float
    cost: float

    @property
    def stop(self) -> int:
        """One after the last place."""
        return self.start + len(self.hits)

    def to_json(self) -> dict[str, Any]:
        """One log line's fields, without the plan."""
        return {
            "digest": self.digest,
            "from": self.start,
            "to": self.stop,
            "correct": int(self.hits.sum()),
            "seconds": round(self.seconds, 3),
            "cost": self.cost,
            "hits": base64.b64encode(np.packbits(self.hits).tobytes()).decode(),
            "margins": base64.b64encode(self.margins.astype("<f4").tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Part:
        """Read :meth:`to_json`. Raises ValueError, KeyError or TypeError when the data are not such a line."""
        n = data["to"] - data["from"]
        packed = np.frombuffer(base64.b64decode(data["hits"], validate=True), dtype=np.uint8)
        margins = np.frombuffer(base64.b64decode(data["margins"], validate=True), dtype="<f4").astype(np.float32)
        if n < 1 or len(packed) != (n + 7) // 8 or len(margins) != n:
            raise ValueError(f"{len(packed)} bytes of hits and {len(margins)} margins for {n} images")
        hits = np.unpackbits(packed, count=n).astype(bool)
        if int(hits.sum()) != data["correct"]:
            raise ValueError(f"the hits add up to {int(hits.sum())}, not to {data['correct']}")
        return cls(str(data["digest"]), data["from"], hits, margins, float(data["seconds"]), float(data["cost"]))


class ProbeLog:
    """A JSON-lines file of measured parts and of the questions that they answered.

    The first line says what everything was measured on. Every line is on disk before the search goes on; a last line
    that was cut off by a kill is dropped at the start.

    Args:
        path: of the log; None keeps nothing.
        identity: what the parts depend on besides the plan (model, images, order, arithmetic): plain JSON values.

    Attributes:
        parts: by digest, what was measured, without gaps from place 0 on.
        measured: the parts of plans that the file had already, with their plans, in the order of measuring.

    Raises:
        ArtefactError: the file cannot be read or written, is damaged, or belongs to another identity.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any]) -> None:
        self._lines = JsonLines(path, "probe log", {"version": VERSION, **identity})
        self.parts: dict[str, list[Part]] = {}
        self.measured: list[tuple[QuantPlan, Part]] = []
        plans: dict[str, QuantPlan] = {}
        for number, row in enumerate(self._lines.rows, start=2):
            if "question" in row:
                continue
            try:
                part = Part.from_json(row)
                if part.start != self.known(part.digest):
                    raise ValueError(f"it starts at image {part.start}, {self.known(part.digest)} are known")
                if part.digest != FLOAT:
                    if part.start == 0:
                        plans[part.digest] = QuantPlan.from_json(row["plan"])
                        if plans[part.digest].digest() != part.digest:
                            raise ValueError("its plan has another digest")
                    self.measured.append((plans[part.digest], part))
            except (ValueError, KeyError, TypeError, PlanError) as error:
                raise ArtefactError(f"{path}, line {number}: not a probe ({error}); move the log away") from None
            self.parts.setdefault(part.digest, []).append(part)

    def known(self, digest: str) -> int:
        """How many images of the order are known for a plan."""
        return self.parts[digest][-1].stop if digest in self.parts else 0

    def add(self, part: Part, more: Mapping[str, Any]) -> None:
        """Remember a part and write its line, with further fields ``more``."""
        self.parts.setdefault(part.digest, []).append(part)
        self._lines.add({**part.to_json(), **more})

    def decided(self, question: int, asked: Mapping[str, Any], probe: Probe) -> None:
        """Write down how an early decision fell; a question that the log of an interrupted run has is not repeated.

        Args:
            question: its number, 1, 2, ...
            asked: what was asked, plain JSON values.
        """
        answer = {"digest": probe.digest, "seen": probe.looked_at, "n": probe.n, "low": probe.low, "high": probe.high}
        row = {"question": question, **asked, **answer, "error": probe.error}
        if row not in self._lines.rows:
            self._lines.add(row)
