"""What a page is made of: numbers that can be traced to a record, tables that can be downloaded, figures, sections."""

import base64
import csv
import io
from dataclasses import dataclass

from caplet.report.svg import Canvas

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Number:
    """A number as people read it, its exact value, and where in the run's records it stands.

    Attributes:
        text: as shown.
        value: as recorded.
        source: file and path, e.g. ``metrics.json:models.0.test.percent``; empty for what was computed from records.
    """

    text: str
    value: float
    source: str = ""


@dataclass(frozen=True)
class Table:
    """The numbers of a figure.

    Attributes:
        name: of the file to download, without suffix.
        columns: headings.
        rows: each as long as ``columns``.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

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
    """A picture with its numbers.

    Attributes:
        title: above it.
        caption: below it: how to read it.
        pictures: one or more, side by side where there is room.
        table: its numbers.
    """

    title: str
    caption: str
    pictures: tuple[Canvas, ...]
    table: Table


@dataclass(frozen=True)
class Thumbnail:
    """A small image with a few words.

    Attributes:
        png: base64 of a PNG file.
        lines: below it.
        kind: ``lost``, ``won`` or ``other``.
    """

    png: str
    lines: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        title: its heading.
        text: one or more sentences.
        figures: in order.
        thumbnails: a grid of images.
        rows: name and value of single facts, as a two-column table.
        grid: a table that is shown, and can be downloaded.
        table: numbers of the thumbnails, to download.
        folded: a title and more facts, shown when asked for.
    """

    title: str
    text: str
    figures: tuple[Figure, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
    grid: Table | None = None
    table: Table | None = None
    folded: tuple[str, tuple[tuple[str, str], ...]] | None = None
