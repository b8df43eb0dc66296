"""Drawing: an SVG picture whose colours come from the page's style sheet, so that it follows light and dark."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        size = {"x": _px(x), "y": _px(y), "width": _px(width), "height": _px(height)}
        self._add("rect", size, style, mix, tip)

    def circle(self, x: float, y: float, radius: float, style: str, *, tip: str = "") -> None:
        """A circle around a point."""
        self._add("circle", {"cx": _px(x), "cy": _px(y), "r": _px(radius)}, style, None, tip)

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """A straight line."""
        self._add("line", {"x1": _px(x1), "y1": _px(y1), "x2": _px(x2), "y2": _px(y2)}, style, None, "")

    def path(self, points: list[tuple[float, float]], style: str, *, tip: str = "") -> None:
        """A line through points."""
        text = "M" + " L".join(f"{_px(x)} {_px(y)}" for x, y in points)
        self._add("path", {"d": text, "fill": "none"}, style, None, tip)

    def triangle(self, x: float, y: float, size: float, style: str, *, tip: str = "") -> None:
        """A triangle that points down to (x, y)."""
        corners = f"M{_px(x)} {_px(y)} l{_px(-size)} {_px(-1.6 * size)} h{_px(2 * size)} z"
        self._add("path", {"d": corners}, style, None, tip)

    def text(
        self, x: float, y: float, text: str, style: str = "label", *, anchor: str = "start", turn: float = 0.0
    ) -> None:
        """Text; ``y`` is its base line, ``turn`` its angle in degrees."""
        place = {"x": _px(x), "y": _px(y), "text-anchor": anchor}
        if turn:
            place["transform"] = f"rotate({_px(turn)} {_px(x)} {_px(y)})"
        element = self._add("text", place, style, None, "")
        element.text = text

    def markup(self) -> str:
        """The picture as text for an HTML page."""
        return ElementTree.tostring(self.root, encoding="unicode")

    def _add(
        self, tag: str, attributes: dict[str, str], style: str, mix: float | None, tip: str
    ) -> ElementTree.Element:
        element = ElementTree.SubElement(self.root, tag, {**attributes, "class": style})
        if mix is not None:
            element.set("style", f"--mix:{100 * min(max(mix, 0.0), 1.0):.0f}%")
        if tip:
            ElementTree.SubElement(element, "title").text = tip
        return element


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
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

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
