"""What a page is made of: numbers that can be traced to a record, tables that can be downloaded, figures, sections."""

import base64
import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from caplet.report.svg import Canvas

Cell = str | int | float | bool | None


class Number(NamedTuple):
    """A number as people read it, its exact value, and where in the run's records it stands.

    ``source`` is file and path, e.g. ``metrics.json:models.0.test.percent``; empty for what was computed from records.
    """

    text: str
    value: float
    source: str = ""


@dataclass(frozen=True)
class Table:
    """The numbers of a figure: the name of the file to download, without suffix, headings, and rows as long as them."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, name: str, columns: tuple[str, ...], records: Iterable[Mapping[str, Any]]) -> Self:
        """The columns of some records; what a record does not have stays empty."""
        return cls(name, columns, tuple(tuple(record.get(column) for column in columns) for record in records))

    def csv(self) -> str:
        """The table as CSV text, RFC 4180, with headings.

        >>> Table("widths", ("point", "bits"), (("digit.votes", 4),)).csv()
        'point,bits\\r\\ndigit.votes,4\\r\\n'
        """
        stream = io.StringIO()
        writer = csv.writer(stream)
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return stream.getvalue()

    def uri(self) -> str:
        """The CSV text as an address that needs no server."""
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(self.csv().encode()).decode()


@dataclass(frozen=True)
class Figure:
    """One or more pictures, side by side where there is room, under a title; how to read them; their numbers."""

    title: str
    caption: str
    pictures: tuple[Canvas, ...]
    table: Table


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        title: its heading.
        text: one or more sentences.
        figures: in order.
        thumbnails: a grid of small images: ``png`` (base64), ``lines`` below it, ``kind`` (``lost``, ``won`` or
            ``other``).
        rows: name and value of single facts, as a two-column table.
        grid: a table that is shown, and can be downloaded.
        table: numbers of the thumbnails, to download.
        folded: a title and more facts, shown when asked for.
    """

    title: str
    text: str
    figures: tuple[Figure, ...] = ()
    thumbnails: tuple[Mapping[str, Any], ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
    grid: Table | None = None
    table: Table | None = None
    folded: tuple[str, tuple[tuple[str, str], ...]] | None = None
