"""Measured numbers on disk by what was asked, so that an interrupted search does not measure them again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from caplet.errors import ArtefactError
from caplet.quant.measure.lines import JsonLines


class Kept:
    """Answers to questions; each is measured once, by this run or by the interrupted one whose file this is.

    Args:
        path: of the JSON-lines file; None keeps the answers in memory only.
        what: what the file is called in errors.
        identity: what all answers depend on besides the questions, plain JSON values. A file of another identity is
            replaced.

    Attributes:
        earlier: seconds that took the answers which the file had already.

    Raises:
        ArtefactError: the file cannot be read or written, or is damaged elsewhere than in a last line cut off.
    """

    def __init__(self, path: str | Path | None, what: str, identity: Mapping[str, Any]) -> None:
        self._lines = JsonLines(path, what, identity, replace=True)
        self._known: dict[str, float] = {}
        self.earlier = 0.0
        for number, row in enumerate(self._lines.rows, start=2):
            try:
                self._known[_key(row["asked"])] = float(row["answer"])
                self.earlier += float(row["seconds"])
            except (KeyError, TypeError, ValueError) as error:
                raise ArtefactError(f"{path}, line {number}: not an answer ({error}); move the file away") from None

    def answer(self, asked: Mapping[str, Any], measure: Callable[[], float]) -> float:
        """The answer to a question, plain JSON values; ``measure`` is called where it is not known.

        Raises ArtefactError when the answer cannot be written.
        """
        key = _key(asked)
        if key not in self._known:
            began = time.perf_counter()
            answer = measure()
            seconds = round(time.perf_counter() - began, 4)
            self._lines.add({"asked": asked, "answer": answer, "seconds": seconds})
            self._known[key] = answer
        return self._known[key]


def _key(asked: Mapping[str, Any]) -> str:
    return json.dumps(asked, sort_keys=True)
