"""Drawing: SVG pictures. On a page the style sheet colours them, in light and dark; a file has its own colours."""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from xml.etree import ElementTree

FONT = 12
"""Pixels of text; a character is taken to be 0.6 of that wide."""


def text_width(text: str) -> float:
    """About how many pixels a text takes."""
    return 0.6 * FONT * len(text)


class Canvas:
    """An SVG picture under construction. Lengths are pixels, y grows downwards.

    Args:
        width, height: of the picture.
        label: what it shows, for readers who cannot see it.
        fit: whether it shrinks to fit a narrow page; others are scrolled there.
    """

    def __init__(self, width: float, height: float, label: str, *, fit: bool = False) -> None:
        self.width, self.height = width, height
        size = {"viewBox": f"0 0 {_px(width)} {_px(height)}", "width": _px(width), "height": _px(height)}
        self.root = ElementTree.Element("svg", {**size, "role": "img", "aria-label": label})
        if fit:
            self.root.set("class", "fit")

    def rect(
        self, x: float, y: float, width: float, height: float, style: str, *, mix: float | None = None, tip: str = ""
    ) -> None:
        """A rectangle. ``style`` is a class; ``mix`` from 0 to 1 blends from the low to the high colour."""
        self._add("rect", {"x": x, "y": y, "width": width, "height": height}, style, tip, mix)

    def circle(self, x: float, y: float, radius: float, style: str, *, tip: str = "", href: str = "") -> None:
        """A circle around a point; ``href`` is where a click on it leads."""
        dot = self._add("circle", {"cx": x, "cy": y, "r": radius}, style, tip)
        if href:
            self.root.remove(dot)
            ElementTree.SubElement(self.root, "a", {"href": href}).append(dot)

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """A straight line."""
        self._add("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2}, style)

    def path(self, points: list[tuple[float, float]], style: str, *, tip: str = "") -> None:
        """A line through points."""
        text = "M" + " L".join(f"{_px(x)} {_px(y)}" for x, y in points)
        self._add("path", {"d": text, "fill": "none"}, style, tip)

    def triangle(self, x: float, y: float, size: float, style: str, *, tip: str = "") -> None:
        """A triangle that points down to (x, y)."""
        corners = f"M{_px(x)} {_px(y)} l{_px(-size)} {_px(-1.6 * size)} h{_px(2 * size)} z"
        self._add("path", {"d": corners}, style, tip)

    def text(
        self, x: float, y: float, text: str, style: str = "label", *, anchor: str = "start", turn: float = 0.0
    ) -> None:
        """Text; ``y`` is its base line, ``turn`` its angle in degrees."""
        place: dict[str, str | float] = {"x": x, "y": y, "text-anchor": anchor}
        if turn:
            place["transform"] = f"rotate({_px(turn)} {_px(x)} {_px(y)})"
        self._add("text", place, style).text = text

    def markup(self) -> str:
        """The picture as text for an HTML page."""
        return ElementTree.tostring(self.root, encoding="unicode")

    def _add(
        self, tag: str, places: Mapping[str, str | float], style: str, tip: str = "", mix: float | None = None
    ) -> ElementTree.Element:
        attributes = {name: value if isinstance(value, str) else _px(value) for name, value in places.items()}
        element = ElementTree.SubElement(self.root, tag, {**attributes, "class": style})
        if mix is not None:
            element.set("style", f"--mix:{100 * min(max(mix, 0.0), 1.0):.0f}%")
        if tip:
            ElementTree.SubElement(element, "title").text = tip
        return element


def picture_file(title: str, pictures: Sequence[Canvas], *, columns: int = 1) -> bytes:
    """Pictures under a title as one SVG file that needs no style sheet: the page's light colours, written out.

    Args:
        columns: how many stand side by side.
    """
    gap, top = 20.0, 40.0
    rows = [pictures[first : first + columns] for first in range(0, len(pictures), columns)]
    width = max([text_width(title), *(sum(each.width + gap for each in row) - gap for row in rows)]) + 2 * gap
    height = top + sum(max(each.height for each in row) + gap for row in rows)
    whole = Canvas(width, height, title)
    whole.root.set("xmlns", "http://www.w3.org/2000/svg")
    css, colours = _style_sheet()
    ElementTree.SubElement(whole.root, "style").text = css
    whole.rect(0, 0, width, height, "paper")
    whole.text(gap, 26, title, "strong")
    for row in rows:
        left = gap
        for picture in row:
            inner = copy.deepcopy(picture.root)
            inner.set("x", _px(left))
            inner.set("y", _px(top))
            for element in inner.iter():
                mix = element.attrib.pop("style", "").partition("--mix:")[2]
                if mix:
                    high = {"right": "right-high", "wrong": "wrong-high"}.get(
                        element.attrib["class"].split()[-1], "high"
                    )
                    element.set("style", f"fill:{_blend(colours['low'], colours[high], float(mix[:-1]) / 100)}")
            whole.root.append(inner)
            left += picture.width + gap
        top += max(each.height for each in row) + gap
    return (ElementTree.tostring(whole.root, encoding="unicode") + "\n").encode()


def _style_sheet() -> tuple[str, dict[str, str]]:
    """The rules for pictures with the light colours in the place of their names, and the colours by name."""
    text = resources.files("caplet.report").joinpath("templates/picture.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", text.partition("}")[0]))
    rules = [line for line in text.splitlines() if re.match(r"[.\w][^{]*\{[^{]+\}$", line) and "color-mix" not in line]
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], "\n".join(rules)), colours


def _blend(low: str, high: str, mix: float) -> str:
    """A colour between two.

    >>> _blend("#000000", "#ff8000", 0.5)
    '#804000'
    """
    parts = ((int(low[at : at + 2], 16), int(high[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(start + mix * (end - start)):02x}" for start, end in parts)


def _px(value: float) -> str:
    """Pixels with at most one decimal.

    >>> _px(3.0), _px(2.26), _px(-0.01)
    ('3', '2.3', '0')
    """
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Axis:
    """Numbers along a line of pixels.

    Attributes:
        low, high: the numbers at its ends, ``low < high``.
        start, end: the pixels there.
        log: whether equal ratios are equally far apart; both ends are above 0 then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a number."""
        if self.log:
            fraction = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            fraction = (value - self.low) / (self.high - self.low)
        return self.start + fraction * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """About ``count`` round numbers on the axis.

        >>> Axis(0.0, 1.0, 0, 100).ticks(5), Axis(900, 21000, 0, 100, log=True).ticks()
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [1000.0, 2000.0, 5000.0, 10000.0, 20000.0])
        >>> Axis(1400, 4300, 0, 100, log=True).ticks()
        [2000.0, 3000.0, 4000.0]
        """
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1.0, 2.0, 5.0), tuple(map(float, range(1, 10)))):
                marks = [factor * 10.0**decade for decade in decades for factor in factors]
                shown = [mark for mark in marks if self.low <= mark <= self.high]
                if len(shown) > 2:
                    return shown
            return [self.low, self.high]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def spanning(values: list[float], start: float, end: float, *, margin: float = 0.06) -> Axis:
    """An axis on which all values lie, with some room at both ends."""
    low, high = min(values), max(values)
    room = margin * (high - low) or max(abs(high), 1.0) * margin
    return Axis(low - room, high + room, start, end)


def short(value: float) -> str:
    """A number for an axis.

    >>> short(0.25), short(1000.0), short(99.5), short(2000000.0)
    ('0.25', '1,000', '99.5', '2,000,000')
    """
    return f"{value:,.4f}".rstrip("0").rstrip(".") if abs(value) < 100 else f"{value:,.1f}".removesuffix(".0")
