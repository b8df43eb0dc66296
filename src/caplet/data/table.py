"""CSV files of pixels: one image a line, with its label."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from caplet.data.arrays import SPLITS, Labelled, source_of
from caplet.data.folder import part_of
from caplet.data.source import DataRequest, Source, joined
from caplet.errors import DataError
from caplet.files import access, check_regular

ENDINGS = (".csv", ".tsv")
_LABEL = {"label", "labels", "class", "target", "y", "classid", "class_id", "digit", "letter", "emotion"}
_SPLIT = {"usage", "split"}
_PARTS = {"publictest": "calibration", "privatetest": "test"}
"""Of FER2013's column Usage."""
_PACKED = "pixels"
"""The column that has all pixels of an image, with spaces between them."""
_NUMBER = {"", "id", "index", "imageid", "image_id", "unnamed: 0"}
_PIXEL = re.compile(r"[a-z]*[ _.-]*\d+([x_.-]\d+)*(_?[rgb])?")
_LINE, _BLOCK, _MOST, _WIDEST = 1 << 26, 1 << 22, 1 << 34, 1 << 20
_TODO = "name the columns in a first line, with label over the labels"


class _Table:
    """The form of a CSV file: separator, lines of a heading, and which column is what.

    Args:
        like: the form of the training images' file; without it, this file's own.
    """

    def __init__(self, path: Path, like: "_Table | None" = None) -> None:
        check_regular(path, kind=DataError, most=_MOST)
        self.path, self.note = path, ""
        _, first = next(self._lines(), (0, b""))
        if not first:
            raise DataError(f"{path}: the file has no lines")
        if b"\0" in first or b"\r" in first:
            odd = "zero bytes" if b"\0" in first else "a carriage return alone at the ends of its lines"
            raise DataError(f"{path}: it has {odd}: save it as a text file in UTF-8 with usual ends of lines")
        marks = {mark: first.count(mark) for mark in (b",", b";", b"\t", b" ")}
        self.mark = max(marks, key=lambda mark: marks[mark])
        if first.count(self.mark) > _WIDEST:
            raise DataError(f"{path}: more than {_WIDEST:,} columns: is this a CSV file of pixels?")
        names = [cell.strip(" \"'").lower() for cell in first.decode("utf-8", "replace").split(self.mark.decode())]
        self.width, numbers = len(names), [name for name in names if _is_number(name)]
        counted = self.width > 2 and numbers in ([str(n) for n in range(first, first + self.width)] for first in (0, 1))
        text = len(numbers) == self.width - 1 and not (_is_number(names[0]) and _is_number(names[-1]))
        self.headed = (len(numbers) < self.width and not (text and not _LABEL & {*names})) or (
            counted and self.width > 2
        )
        self.shape: tuple[int, ...] = ()
        self.label: int | None = None
        heading = [*enumerate(names)] if self.headed else []
        self.split = next((place for place, name in heading if name in _SPLIT), None)
        self.drop = frozenset(place for place, name in heading if name in _NUMBER | _SPLIT)
        self.parts = list[str]()
        if like is not None and self.width - len(self.drop) == like.width - len(like.drop) - 1:
            pass  # the pixels alone, as of a competition's test images
        elif like is not None and not self.headed and (self.width, False) == (like.width, like.headed):
            self.label, self.shape = like.label, like.shape
        elif self.headed:
            self.label = self._named(names)
            last = [re.fullmatch(r"(\d{1,4})x(\d{1,4})", name) for name in names[-2:]]
            if found := last[-1] or last[0]:
                self.shape = int(found[1]), int(found[2])
        else:
            self.label = self._guessed()
        self.kept = [place for place in range(self.width) if place not in self.drop and place != self.label]
        self.pixels = [names[place] for place in self.kept] if self.headed else []
        self.packed = self.pixels == [_PACKED]
        if like is not None and self.pixels != like.pixels and sorted(self.pixels) == sorted(like.pixels):
            raise DataError(f"{path}: its columns of pixels are in another order than those of {like.path.name}")

    def _named(self, names: list[str]) -> int | None:
        """The place of the label in a heading."""
        others = [place for place in range(self.width) if place not in self.drop]
        named = [place for place in others if names[place] in _LABEL]
        named = named or [place for place in others if not _PIXEL.fullmatch(names[place])]
        if len(named) > 1:
            shown = ", ".join(repr(names[place]) for place in named[:4])
            raise DataError(f"{self.path}: columns {shown} are no pixels; which is the label? {_TODO}")
        if named and names[named[0]] not in _LABEL:
            self.note = f"column {names[named[0]]!r:.60} taken as the label"
        return named[0] if named else None

    def _guessed(self) -> int:
        """The place of the label where there is no heading: whole numbers in turn from 0 or 1, or texts."""
        ends: tuple[set[bytes], set[bytes]] = set(), set()
        count = 0
        for _, line in self._lines():
            count += 1
            for found, cell in zip(ends, (line.partition(self.mark)[0], line.rpartition(self.mark)[2]), strict=True):
                if len(found) < 10_000:
                    found.add(cell.strip(b" \"'"))
        likely = [place for place, found in zip((0, self.width - 1), ends, strict=True) if _are_labels(found, count)]
        if len(likely) != 1:
            which = "both the first and the last" if likely else "neither the first nor the last"
            raise DataError(f"{self.path}: {which} column can be the labels: {_TODO}")
        self.note = f"the {'last' if likely[0] else 'first'} column taken as the label"
        return likely[0]

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line that is not empty, with its number."""
        with access("read", self.path, kind=DataError), open(self.path, "rb") as stream:
            number = 0
            while line := stream.readline(_LINE + 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if not number else line
                number += 1
                if len(line) > _LINE:
                    raise DataError(f"{self.path}, line {number}: more than {_LINE:,} bytes: is this a CSV file?")
                if line.strip():
                    yield number, line.rstrip(b"\r\n")

    def read(self) -> Labelled:
        """Pixels, uint8 or float32 (N, values), and labels, whole numbers or texts (N,)."""
        blocks, labels, waiting, size = list[np.ndarray](), list[str](), list[tuple[int, bytes]](), 0
        for place, (number, line) in enumerate(self._lines()):
            if self.headed and not place:
                continue
            if line.count(self.mark) != self.width - 1:
                found = line.count(self.mark) + 1
                raise DataError(f"{self.path}, line {number}: {found:,} values, line 1 has {self.width:,}: correct it")
            waiting.append((number, line))
            size += len(line)
            if size > _BLOCK:
                blocks.append(self._block(waiting, labels))
                waiting, size = [], 0
        if waiting:
            blocks.append(self._block(waiting, labels))
        if not blocks or not blocks[0].shape[1]:
            raise DataError(f"{self.path}: the file has no images: expected a line of pixels and a label for each")
        texts = np.array(labels)
        whole = all(re.fullmatch(r"[+-]?\d{1,15}(\.0*)?", text) for text in {*labels})
        if not whole and all(map(_is_number, {*labels})):
            raise DataError(f"{self.path}: labels such as {max({*labels})} are no whole numbers, and no names: {_TODO}")
        return Labelled(
            np.concatenate(blocks), texts.astype(np.float64).astype(np.int64) if whole else texts, str(self.path)
        )

    def _block(self, lines: list[tuple[int, bytes]], labels: list[str]) -> np.ndarray:
        """The pixels of some lines; their labels are added to ``labels``."""
        for number, line in lines:
            if self.label is None:
                continue
            try:
                labels.append(line.split(self.mark)[self.label].decode().strip(" \"'"))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self.path}, line {number}: the label is not UTF-8: save the file as UTF-8"
                ) from error
            if not labels[-1] or len(labels[-1]) > 200:
                raise DataError(f"{self.path}, line {number}: {labels[-1][:40]!r} is no label: correct the line")
        kept, rows, mark = self.kept, [line for _, line in lines], self.mark.decode()
        if self.split is not None:
            self.parts += [_part(row.split(self.mark)[self.split]) for row in rows]
        if self.packed:
            cells = [row.split(self.mark)[kept[0]].strip(b" \"'").split() for row in rows]
            for (number, _), row in zip(lines, cells, strict=True):
                if len(row) != len(cells[0]):
                    raise DataError(f"{self.path}, line {number}: {len(row)} pixels, others have more or fewer")
            rows, kept, mark = [b" ".join(row) for row in cells], [*range(len(cells[0]))], " "
        try:
            found = np.loadtxt(rows, np.float32, None, mark, usecols=kept, ndmin=2, quotechar='"')
        except ValueError:
            every = (row.split(mark.encode()) for row in rows)
            found = np.array([[_value(row[place]) for place in kept] for row in every], dtype=np.float32)
        wrong = np.argwhere(~((found >= 0) & (found <= 255)))
        if len(wrong):
            row, place = wrong[0].tolist()
            text = rows[row].split(mark.encode())[kept[place]].decode("utf-8", "replace")
            raise DataError(
                f"{self.path}, line {lines[row][0]}, column {kept[place] + 1}: {text[:40]!r} is no pixel; the rule is"
                " numbers 0..255, or 0..1: correct it"
            )
        small = found.astype(np.uint8)
        return small if np.array_equal(small, found) else found


def _value(cell: bytes) -> float:
    try:
        return float(cell.strip(b" \"'"))
    except ValueError:
        return float("nan")


def _part(cell: bytes) -> str:
    """The split that a line's cell names."""
    text = cell.decode("utf-8", "replace").strip(" \"'")
    return _PARTS.get(text.lower()) or part_of(text) or text


def _is_number(text: str) -> bool:
    return np.isfinite(_value(text.encode(errors="replace")))  # type: ignore[no-any-return]


def _are_labels(texts: set[bytes], count: int) -> bool:
    """Whether the different values of a column may be the labels of ``count`` images."""
    values = sorted(map(_value, texts))
    if not 2 <= len(texts) <= count // 2:
        return False
    return not np.isfinite(values).any() or (
        values[0] in (0, 1) and values == [*range(int(values[0]), len(values) + int(values[0]))]
    )


def load_tables(paths: list[Path], request: DataRequest) -> Source:
    """Read CSV files: one, or those with train, val and test in their names.

    Raises:
        DataError: a file has no images, lines differ in length, or values are no pixels (the line is named); nothing
            says which file or column is what; or as :func:`caplet.data.arrays.as_images`.
    """
    where = paths[0].parent if len(paths) > 1 else paths[0]
    splits: dict[str, list[Path]] = {}
    for path in paths:
        words = re.split(r"[^a-z]+", path.stem.lower())
        splits.setdefault(next(filter(None, map(part_of, words)), "") if len(paths) > 1 else "train", []).append(path)
    if "train" not in splits and len(splits.get("", ())) == 1:
        splits["train"] = splits.pop("")
    several = next((found for split, found in splits.items() if split and len(found) > 1), splits.get("", []))
    if "train" not in splits or (several and several[0] not in splits.get("", ())):
        names = ", ".join(path.name for path in several or paths)
        raise DataError(f"{where}: {names}: expected train.csv with test.csv, or one file: give the path of one")
    notes = [f"not read: {', '.join(path.name for path in several)}"] if several else []
    first = _Table(splits["train"][0])
    if first.label is None:
        raise DataError(f"{first.path}: no column is named as the label: {_TODO}")
    parts = {"train": first.read()}
    if first.parts:
        parts, known = {}, parts["train"]
        if others := sorted({*first.parts} - {*SPLITS}):
            raise DataError(f"{first.path}: {others[0]!r:.60} is no split; expected train, val (PublicTest) or test")
        if "train" not in first.parts or len(splits.keys() - {""}) > 1:
            raise DataError(f"{first.path}: a column says the splits; expected training images, and no other file")
        for split in {*first.parts}:
            mine = np.array(first.parts) == split
            parts[split] = known._replace(pixels=known.pixels[mine], labels=known.labels[mine])
        notes.append("a column says the splits")
    for split in {*splits} - {"train", ""}:
        table = _Table(splits[split][0], first)
        if table.label is None:
            notes.append(f"{table.path.name} has no labels and is not read")
        else:
            parts[split] = table.read()
    return source_of(parts, "CSV files", where, joined(first.note, *notes), shape=first.shape)
