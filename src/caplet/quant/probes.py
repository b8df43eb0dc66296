"""Probes: measured plans, and the log of them that lets a search resume."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ArtefactError
from caplet.files import why

KIND, VERSION = "caplet-probes", 1
FLOAT = "float"
"""The digest under which the float model's result is logged."""


@dataclass(frozen=True, eq=False)
class Probe:
    """The measured accuracy of one plan (or of the float model) on an evaluator's images.

    Attributes:
        digest: of the plan, or :data:`FLOAT`.
        hits: bool (n,): which images were classified correctly, in the evaluator's order, for paired comparisons.
        seconds: wall time of the measurement.
        cost: what it took, in full passes of all images through the whole model (multiply-accumulates).
        cached: whether the answer was known already (then it took no time now).
    """

    digest: str
    hits: NDArray[np.bool_]
    seconds: float
    cost: float
    cached: bool = False

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.hits)

    @property
    def correct(self) -> int:
        """Number of images classified correctly."""
        return int(self.hits.sum())

    @property
    def accuracy(self) -> float:
        """Correct fraction, 0..1."""
        return self.correct / self.n

    def known(self) -> Probe:
        """The same answer, marked as not computed now."""
        return replace(self, cached=True)

    def to_json(self) -> dict[str, Any]:
        """One log line's fields, without the plan."""
        return {
            "digest": self.digest,
            "correct": self.correct,
            "n": self.n,
            "accuracy": self.accuracy,
            "seconds": round(self.seconds, 3),
            "cost": self.cost,
            "hits": base64.b64encode(np.packbits(self.hits).tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Probe:
        """Read :meth:`to_json`. Raises ValueError, KeyError or TypeError when the data are not such a line."""
        packed = np.frombuffer(base64.b64decode(data["hits"], validate=True), dtype=np.uint8)
        if len(packed) != (data["n"] + 7) // 8:
            raise ValueError(f"{len(packed)} bytes of hits for {data['n']} images")
        hits = np.unpackbits(packed, count=data["n"]).astype(bool)
        if int(hits.sum()) != data["correct"]:
            raise ValueError(f"the hits add up to {int(hits.sum())}, not to {data['correct']}")
        return cls(str(data["digest"]), hits, float(data["seconds"]), float(data["cost"]))


class ProbeLog:
    """A JSON-lines file of probes; its first line says what they were measured on.

    Every line is on disk before the search goes on. A last line that was cut off by a kill is dropped at the start.

    Args:
        path: of the log; None keeps nothing.
        identity: what the probes depend on besides the plan (model, images, arithmetic): plain JSON values.

    Raises:
        ArtefactError: the file cannot be read or written, is damaged, or belongs to another identity.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.probes: dict[str, Probe] = {}
        if self.path is None:
            return
        head = {"kind": KIND, "version": VERSION, **identity}
        whole = self._read()
        if not whole:
            self._write(json.dumps(head), "w")
            return
        self._check(head, self._parse(1, whole[0]))
        for number, line in enumerate(whole[1:], start=2):
            data = self._parse(number, line)
            try:
                probe = Probe.from_json(data)
            except (ValueError, KeyError, TypeError) as error:
                raise ArtefactError(f"{self.path}, line {number}: not a probe ({error}); move the log away") from None
            self.probes[probe.digest] = probe

    def add(self, probe: Probe, more: Mapping[str, Any]) -> None:
        """Remember a probe and write its line, with further fields ``more``."""
        self.probes[probe.digest] = probe
        if self.path is not None:
            self._write(json.dumps({**probe.to_json(), **more}), "a")

    def _read(self) -> list[bytes]:
        assert self.path is not None
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            end = content.rfind(b"\n") + 1
            if end < len(content):
                with self.path.open("r+b") as stream:
                    stream.truncate(end)
        except OSError as error:
            raise ArtefactError(f"cannot read the probe log {self.path}: {why(error)}") from error
        return content[:end].splitlines()

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            data = json.loads(line)
        except ValueError as error:
            raise ArtefactError(f"{self.path}, line {number}: not JSON ({error}); move the log away") from None
        if not isinstance(data, dict):
            raise ArtefactError(f"{self.path}, line {number}: not a JSON object; move the log away")
        return data

    def _check(self, mine: dict[str, Any], found: dict[str, Any]) -> None:
        different = [name for name in {**mine, **found} if mine.get(name) != found.get(name)]
        if different:
            name = different[0]
            raise ArtefactError(
                f"{self.path}: this probe log was made with another {name}: {found.get(name)!r}, now "
                f"{mine.get(name)!r}; continue with the same settings, or choose another place for the log"
            )

    def _write(self, line: str, mode: str) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode, encoding="utf-8") as stream:
                stream.write(line + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise ArtefactError(f"cannot write the probe log {self.path}: {why(error)}") from error
