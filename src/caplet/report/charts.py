"""Charts of lines and points, and heat maps, drawn from plain numbers."""

from collections.abc import Sequence
from typing import NamedTuple

from caplet.report.svg import FONT, Axis, Canvas, short, spanning, text_width

WIDTH, HEIGHT = 420.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 30.0, 44.0
_LINE = FONT + 2.0
STYLES = ("s0", "s1", "s3", "s4", "s2")
"""Styles of up to five series; the last one is grey."""


class Dot(NamedTuple):
    """A marked point, with classes of the style sheet (``"s0 hollow"``) and what is shown on hovering.

    ``below``: its y is off the chart, far below: drawn at the lower edge as a triangle. ``href``: where a click leads.
    """

    x: float
    y: float
    style: str = "s0"
    tip: str = ""
    below: bool = False
    href: str = ""


class Series(NamedTuple):
    """A line through points, with its name in the legend."""

    name: str
    points: tuple[tuple[float, float], ...]
    style: str


class Level(NamedTuple):
    """A line across the chart at one y (``across``) or one x, with a word."""

    at: float
    text: str
    across: bool = True


def chart(
    title: str,
    axes: tuple[str, str],
    series: Sequence[Series] = (),
    dots: Sequence[Dot] = (),
    levels: Sequence[Level] = (),
    *,
    legend: Sequence[tuple[str, str]] = (),
    log_x: bool = False,
    whole_x: bool = False,
) -> Canvas:
    """A picture of lines, points and levels.

    Args:
        axes: the words at x and y.
        legend: (style, word) of dots; series name themselves.
        log_x: the horizontal axis is logarithmic; all x are above 0.
        whole_x: ticks at whole numbers only.
    """
    words = _wrap([(line.style, line.name) for line in series] + list(legend))
    top = _TOP + 1.3 * _LINE * max(len(words) - 1, 0)
    floor = top + HEIGHT - _TOP - _BOTTOM
    canvas = Canvas(WIDTH, floor + _BOTTOM, title, fit=True)
    right = WIDTH - _RIGHT - max((text_width(level.text) + 4 for level in levels if level.across), default=0.0)
    xs = [x for line in series for x, _ in line.points] + [dot.x for dot in dots]
    ys = [y for line in series for _, y in line.points] + [dot.y for dot in dots if not dot.below]
    xs += [level.at for level in levels if not level.across]
    ys += [level.at for level in levels if level.across]
    x, y = spanning(xs, _LEFT, right), spanning(ys, floor, top)
    if log_x:
        x = Axis(min(xs) / 1.1, max(xs) * 1.1, _LEFT, right, log=True)
    _frame(canvas, x, y, axes, whole_x)
    _levels(canvas, x, y, levels)
    for line in series:
        canvas.path([(x.at(a), y.at(b)) for a, b in line.points], f"line {line.style}")
        for a, b in line.points if len(line.points) <= 60 else ():
            canvas.circle(x.at(a), y.at(b), 2.5, f"dot {line.style}", tip=f"{line.name}: {short(a)}, {short(b)}")
    for dot in dots:
        if dot.below:
            canvas.triangle(x.at(dot.x), floor - 1, 4.5, f"dot {dot.style}", tip=dot.tip)
        else:
            canvas.circle(x.at(dot.x), y.at(dot.y), 4.5, f"dot {dot.style}", tip=dot.tip, href=dot.href)
    for index, row in enumerate(words):
        base, at = 17 + 1.3 * _LINE * index, _LEFT
        for style, word in row:
            canvas.circle(at + 5, base - 4, 4.5, f"dot {style}")
            canvas.text(at + 14, base, word)
            at += _legend_width(word)
    return canvas


def _legend_width(word: str) -> float:
    return text_width(word) + 30


def _wrap(entries: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The legend in rows as wide as the chart."""
    rows: list[list[tuple[str, str]]] = []
    room = 0.0
    for entry in entries:
        if not rows or _legend_width(entry[1]) > room:
            rows.append([])
            room = WIDTH - _LEFT + 16
        rows[-1].append(entry)
        room -= _legend_width(entry[1])
    return rows


def _frame(canvas: Canvas, x: Axis, y: Axis, axes: tuple[str, str], whole_x: bool) -> None:
    floor, top = y.start, y.end
    for tick in y.ticks():
        canvas.line(x.start, y.at(tick), x.end, y.at(tick), "grid")
        canvas.text(_LEFT - 6, y.at(tick) + 4, short(tick), "tick", anchor="end")
    last = -1e9
    for tick in x.ticks():
        word = short(tick)
        if (whole_x and tick != round(tick)) or x.at(tick) - text_width(word) / 2 < last + 8:
            continue
        canvas.line(x.at(tick), floor, x.at(tick), floor + 4, "axis")
        canvas.text(x.at(tick), floor + 17, word, "tick", anchor="middle")
        last = x.at(tick) + text_width(word) / 2
    canvas.line(x.start, floor, x.end, floor, "axis")
    canvas.text((x.start + x.end) / 2, floor + 36, axes[0], anchor="middle")
    canvas.text(14, (top + floor) / 2, axes[1], anchor="middle", turn=-90)


def _levels(canvas: Canvas, x: Axis, y: Axis, levels: Sequence[Level]) -> None:
    """Draw the levels; words of levels across stand to the right of the plot, apart from each other."""
    free = -1e9
    for level in sorted((level for level in levels if level.across), key=lambda level: y.at(level.at)):
        at = y.at(level.at)
        canvas.line(x.start, at, x.end, at, "level")
        free = max(at + 4, free + _LINE)
        canvas.text(x.end + 4, free, level.text, "remark")
    for level in levels:
        if not level.across:
            at = x.at(level.at)
            before = at + 5 + text_width(level.text) > x.end
            canvas.line(at, y.end, at, y.start, "level")
            place, anchor = (at - 5, "end") if before else (at + 5, "start")
            canvas.text(place, (y.end + y.start) / 2, level.text, "remark", anchor=anchor)


class Tile(NamedTuple):
    """One cell of a heat map: its text, its colour from 0 to 1, what hovering shows, an optional style class."""

    text: str
    mix: float
    tip: str
    style: str = "tile"


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    tiles: dict[tuple[int, int], Tile],
    *,
    cell: tuple[float, float] = (58.0, 26.0),
    corner: tuple[str, str] = ("", ""),
) -> Canvas:
    """A grid of coloured cells; a cell without a tile stays empty.

    Args:
        rows, columns: their names.
        tiles: (row, column) -> tile.
        cell: width and height of a cell, pixels.
        corner: names of the axes: rows, columns.
    """
    width, height = cell
    left = max(map(text_width, (*rows, corner[0]))) + 14
    slanted = max(map(text_width, columns)) > width - 4
    top = (0.72 * max(map(text_width, columns)) + 16 if slanted else 24.0) + (18 if corner[1] else 0)
    extra = 0.75 * text_width(columns[-1]) if slanted else 0.0
    across = max(width * len(columns) + max(extra, 8), text_width(corner[1]) + 8)
    every = -(-(FONT + 1) // height)  # low rows: every second or third one is named
    canvas = Canvas(left + across, top + height * len(rows) + 6, title)
    if corner[1]:
        canvas.text(left, 13, corner[1], "remark")
    if corner[0]:
        canvas.text(0, top - 8, corner[0], "remark")
    for index, name in enumerate(columns):
        x = left + (index + 0.5) * width
        canvas.text(x, top - 8, name, anchor="start" if slanted else "middle", turn=-45 if slanted else 0)
    for index, name in enumerate(rows):
        if index % every == 0:
            canvas.text(left - 8, top + (index + 0.5) * height + 4, name, anchor="end")
    for (row, column), tile in tiles.items():
        x, y = left + column * width, top + row * height
        canvas.rect(x + 1, y + 1, width - 2, height - 2, tile.style, mix=tile.mix, tip=tile.tip)
        if tile.text and text_width(tile.text) <= width:
            style = "on-high" if tile.mix > 0.55 else "on-low"
            canvas.text(x + width / 2, y + height / 2 + FONT / 3, tile.text, style, anchor="middle")
    return canvas


class RangeBar(NamedTuple):
    """A horizontal bar from 0 to ``value`` with a whisker from ``low`` to ``high``."""

    name: str
    value: float
    low: float
    high: float
    style: str = "s0"


def bars(title: str, axis: str, entries: Sequence[RangeBar]) -> Canvas:
    """A picture of horizontal bars, one below the other, in the given order."""
    row, top, bottom = 20.0, 8.0, 44.0
    left = max(text_width(bar.name) for bar in entries) + 14
    canvas = Canvas(max(WIDTH, left + 300), top + row * len(entries) + bottom, title)
    ends = [0.0, *(bar.low for bar in entries), *(bar.high for bar in entries), *(bar.value for bar in entries)]
    x = spanning(ends, left, canvas.width - 20)
    floor = top + row * len(entries)
    for tick in x.ticks():
        canvas.line(x.at(tick), top, x.at(tick), floor, "grid")
        canvas.text(x.at(tick), floor + 16, short(tick), "tick", anchor="middle")
    for index, bar in enumerate(entries):
        middle = top + (index + 0.5) * row
        start, end = sorted((x.at(0.0), x.at(bar.value)))
        tip = f"{bar.name}: {short(bar.value)} ({short(bar.low)} to {short(bar.high)})"
        canvas.text(left - 8, middle + 4, bar.name, anchor="end")
        canvas.rect(start, middle - 6, max(end - start, 1.0), 12, f"bar {bar.style}", tip=tip)
        canvas.line(x.at(bar.low), middle, x.at(bar.high), middle, "whisker")
        for edge in (bar.low, bar.high):
            canvas.line(x.at(edge), middle - 4, x.at(edge), middle + 4, "whisker")
    canvas.line(x.at(0.0), top, x.at(0.0), floor, "axis")
    canvas.text((left + canvas.width - 20) / 2, floor + 36, axis, anchor="middle")
    return canvas
