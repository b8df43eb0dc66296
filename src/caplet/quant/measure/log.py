"""Measured things on disk: append-only logs that let an interrupted run go on without measuring anything twice."""

import base64
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from caplet.errors import ArtefactError, PlanError
from caplet.files import access, digest, read_bytes
from caplet.models.assemble import tensor_parts
from caplet.models.base import CapsNet
from caplet.quant.plan.plan import QuantPlan
from caplet.version import __version__

KIND, VERSION = "probe log", 2
T = TypeVar("T")
FLOAT = "float"
"""The digest under which the float model's result is logged."""


def model_identity(model: CapsNet) -> dict[str, Any]:
    """Version of caplet, family, settings and a digest of all tensors of a model: plain JSON values."""
    return {
        "caplet": __version__,
        "family": model.family,
        "config": model.config.model_dump(mode="json"),
        "weights": digest(*tensor_parts(dict(sorted(model.state_dict().items())))),
    }


def images_digest(*tensors: Tensor) -> str:
    """SHA-256 of images, and of labels where they matter: 64 hexadecimal digits."""
    return digest(*(tensor.contiguous().numpy().data for tensor in tensors))


class MeasurementLog:
    """Rows of a JSON-lines file; the first line says what all of them depend on.

    Every row is on disk before the computation goes on. A last line that was cut off by a kill is dropped at the start.

    Args:
        path: of the file; None keeps the rows in memory only.
        what: what the file is called in errors.
        identity: what the rows depend on, plain JSON values.
        replace: whether a file of another identity is started anew; otherwise it is refused.

    Attributes:
        rows: all rows known so far, in the order in which they were added.

    Raises:
        ArtefactError: the file cannot be read or written, is damaged, or belongs to another identity, and not
            ``replace``.
    """

    def __init__(
        self, path: str | Path | None, what: str, identity: Mapping[str, Any], *, replace: bool = False
    ) -> None:
        self.path = None if path is None else Path(path)
        self.what = what
        self.rows: list[dict[str, Any]] = []
        if self.path is None:
            return
        head = json.loads(json.dumps({"kind": what, **identity}))
        found, *self.rows = self._read(self.path) or [{}]
        if not found or (replace and found != head):
            self.rows.clear()
            self._write(head, "w")
            return
        for name in {**head, **found}:
            if head.get(name) != found.get(name):
                raise ArtefactError(
                    f"{self.path}: this {self.what} was made with another {name}: {found.get(name)!r}, now"
                    f" {head.get(name)!r}; continue with the same settings, or choose another place for it"
                )

    def add(self, row: Mapping[str, Any]) -> None:
        """Remember a row and write its line. Raises ArtefactError when it cannot be written."""
        self.rows.append(dict(row))
        if self.path is not None:
            self._write(row, "a")

    def parsed(self, parse: Callable[[dict[str, Any]], T], what: str) -> Iterator[T]:
        """``parse`` of every row, as ``what``; ArtefactError names the line of one that is no such thing."""
        for number, row in enumerate(self.rows, start=2):
            try:
                yield parse(row)
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError, PlanError) as error:
                raise self._damaged(number, f"not {what} ({error})") from None

    def _damaged(self, number: int, reason: str) -> ArtefactError:
        return ArtefactError(f"{self.path}, line {number}: {reason}; move the file away")

    def _read(self, path: Path) -> list[dict[str, Any]]:
        """All whole lines; what a kill left of another one is cut off."""
        with access(f"read the {self.what}", path):
            content = read_bytes(path, f"the {self.what}") if path.exists() else b""
            end = content.rfind(b"\n") + 1
            if end < len(content):
                os.truncate(path, end)
        rows = []
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise self._damaged(number, f"not JSON ({error})") from None
            if not isinstance(rows[-1], dict):
                raise self._damaged(number, "not a JSON object")
        return rows

    def _write(self, row: Mapping[str, Any], mode: str) -> None:
        assert self.path is not None
        with access(f"write the {self.what}", self.path), self.path.open(mode, encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


class Unmeasured(LookupError):
    """A number is not known, and may not be measured now."""


class MeasurementCache:
    """Numbers by what was asked; each is measured once, by this run or by the interrupted one whose file this is.

    Args:
        path: of the JSON-lines file; None keeps the numbers in memory only.
        what: what the file is called in errors.
        identity: what all numbers depend on besides what is asked, plain JSON values. A file of another identity is
            replaced.

    Raises:
        ArtefactError: the file cannot be read or written, or is damaged elsewhere than in a last line cut off.
    """

    def __init__(self, path: str | Path | None, what: str, identity: Mapping[str, Any]) -> None:
        self._log = MeasurementLog(path, what, identity, replace=True)
        answers = self._log.parsed(lambda row: (_key(row["asked"]), float(row["answer"])), "an answer")
        self._known = dict(answers)
        self._told, self._closed = len(self._log.rows), False

    def __getstate__(self) -> dict[str, Any]:
        """It travels with what it knows; at a worker it has no file, and :meth:`news` is what to bring home."""
        return {"_known": self._known, "_told": 0, "_closed": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _log=MeasurementLog(None, "", {}))

    def news(self) -> list[dict[str, Any]]:
        """What was measured since this was asked before: ``asked`` and ``answer`` each."""
        since, self._told = self._told, len(self._log.rows)
        return self._log.rows[since:]

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Inside, what is not known raises :class:`Unmeasured`."""
        self._closed = True
        try:
            yield
        finally:
            self._closed = False

    def learn(self, row: Mapping[str, Any]) -> bool:
        """Remember what was measured elsewhere; whether it is new. Raises ArtefactError when it cannot be written."""
        new = (key := _key(row["asked"])) not in self._known
        if new:
            self._log.add(row)
            self._known[key] = row["answer"]
        return new

    def answer(self, asked: Mapping[str, Any], measure: Callable[[], float]) -> float:
        """The number for what is ``asked``, plain JSON values; ``measure`` is called where it is not known.

        Raises ArtefactError when the answer cannot be written.
        """
        key = _key(asked)
        if key not in self._known:
            if self._closed:
                raise Unmeasured(key)
            self.learn({"asked": asked, "answer": measure()})
        return self._known[key]


def _key(asked: Mapping[str, Any]) -> str:
    return json.dumps(asked, sort_keys=True)


@dataclass(frozen=True, eq=False)
class MeasuredImages:
    """One plan on images ``start`` to ``stop`` - 1 of the order of looking: a line of the log.

    Attributes:
        correct: bool (stop - start,): which images are classified correctly.
        margins: float32 (stop - start,): length of the true class's capsule minus the longest other one.
        seconds: wall time.
        cost: in full passes of all images.
    """

    digest: str
    start: int
    correct: NDArray[np.bool_]
    margins: NDArray[np.float32]
    seconds: float
    cost: float

    @property
    def stop(self) -> int:
        """One after the last place."""
        return self.start + len(self.correct)

    def to_json(self) -> dict[str, Any]:
        """One log line's fields, without the plan."""
        return {
            "digest": self.digest,
            "from": self.start,
            "to": self.stop,
            "correct": int(self.correct.sum()),
            "seconds": round(self.seconds, 3),
            "cost": self.cost,
            "hits": base64.b64encode(np.packbits(self.correct).tobytes()).decode(),
            "margins": base64.b64encode(self.margins.astype("<f4").tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "MeasuredImages":
        """Read :meth:`to_json`. Raises ValueError, KeyError or TypeError when the data are not such a line."""
        n = data["to"] - data["from"]
        packed = np.frombuffer(base64.b64decode(data["hits"], validate=True), dtype=np.uint8)
        margins = np.frombuffer(base64.b64decode(data["margins"], validate=True), dtype="<f4").astype(np.float32)
        if n < 1 or len(packed) != (n + 7) // 8 or len(margins) != n:
            raise ValueError(f"{len(packed)} bytes of correct images and {len(margins)} margins for {n} images")
        correct = np.unpackbits(packed, count=n).astype(bool)
        if int(correct.sum()) != data["correct"]:
            raise ValueError(f"the correct images add up to {int(correct.sum())}, not to {data['correct']}")
        return cls(str(data["digest"]), data["from"], correct, margins, float(data["seconds"]), float(data["cost"]))


class EvaluationLog:
    """What was measured of every plan, and the early decisions that were made from it.

    Args:
        path: of the JSON-lines file; None keeps everything in memory only.
        identity: what the results depend on besides the plan (model, images, order, arithmetic): plain JSON values.

    Attributes:
        measured: by digest, what is known, without gaps from place 0 on.

    Raises:
        ArtefactError: the file cannot be read or written, is damaged, or belongs to another identity.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any]) -> None:
        self._log = MeasurementLog(path, "evaluation log", {"kind": KIND, "version": VERSION, **identity})
        self.measured: dict[str, list[MeasuredImages]] = {}
        for _ in self._log.parsed(self._take, "an evaluation"):
            pass

    def _take(self, row: dict[str, Any]) -> None:
        """Remember what a line says. Raises KeyError, TypeError, ValueError or PlanError where it says nothing."""
        if "question" in row:
            return
        line = MeasuredImages.from_json(row)
        if line.start != self.known(line.digest):
            raise ValueError(f"it starts at image {line.start}, {self.known(line.digest)} are known")
        if line.digest != FLOAT and line.start == 0 and QuantPlan.from_json(row["plan"]).digest() != line.digest:
            raise ValueError("its plan has another digest")
        self.measured.setdefault(line.digest, []).append(line)

    def known(self, digest: str) -> int:
        """How many images of the order are known for a plan."""
        return self.measured[digest][-1].stop if digest in self.measured else 0

    def add(self, line: MeasuredImages, more: Mapping[str, Any]) -> None:
        """Remember what was measured and write its line, with further fields ``more``."""
        self.measured.setdefault(line.digest, []).append(line)
        self._log.add({**line.to_json(), **more})

    def decided(self, row: Mapping[str, Any]) -> None:
        """Write down how an early decision fell, plain JSON values; one that an interrupted run wrote is not
        repeated."""
        if row not in self._log.rows:
            self._log.add(row)
