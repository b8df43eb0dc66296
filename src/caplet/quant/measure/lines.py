"""A JSON-lines file of results that grows while they are computed, so that an interrupted run goes on for free."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caplet.data.files import why
from caplet.errors import ArtefactError


class JsonLines:
    """Rows on disk; the first line says what they depend on.

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
        lines = self._whole_lines(self.path)
        found = self._parse(1, lines[0]) if lines else None
        if found is None or (replace and found != head):
            self._write(head, "w")
            return
        self._check(head, found)
        self.rows = [self._parse(number, line) for number, line in enumerate(lines[1:], start=2)]

    def add(self, row: Mapping[str, Any]) -> None:
        """Remember a row and write its line. Raises ArtefactError when it cannot be written."""
        self.rows.append(dict(row))
        if self.path is not None:
            self._write(row, "a")

    def _whole_lines(self, path: Path) -> list[bytes]:
        try:
            content = path.read_bytes() if path.exists() else b""
            end = content.rfind(b"\n") + 1
            if end < len(content):
                os.truncate(path, end)
        except OSError as error:
            raise ArtefactError(f"cannot read the {self.what} {path}: {why(error)}") from error
        return content[:end].splitlines()

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            data = json.loads(line)
        except ValueError as error:
            raise ArtefactError(f"{self.path}, line {number}: not JSON ({error}); move the file away") from None
        if not isinstance(data, dict):
            raise ArtefactError(f"{self.path}, line {number}: not a JSON object; move the file away")
        return data

    def _check(self, mine: dict[str, Any], found: dict[str, Any]) -> None:
        for name in {**mine, **found}:
            if mine.get(name) != found.get(name):
                raise ArtefactError(
                    f"{self.path}: this {self.what} was made with another {name}: {found.get(name)!r}, now"
                    f" {mine.get(name)!r}; continue with the same settings, or choose another place for it"
                )

    def _write(self, row: Mapping[str, Any], mode: str) -> None:
        assert self.path is not None
        try:
            with self.path.open(mode, encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise ArtefactError(f"cannot write the {self.what} {self.path}: {why(error)}") from error
