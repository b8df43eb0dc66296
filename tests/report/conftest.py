"""Reading a report the way a browser's user does, and a browser where there is one."""

import base64
import csv
import io
import json
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Page:
    """What is on a page.

    Attributes:
        text: all text outside the style sheet.
        numbers: (source, exact value, text) of every traceable number.
        downloads: file name -> rows of the CSV, headings included.
        links: every href and src.
        tags: names of all elements.
        ids: every id.
    """

    text: str = ""
    numbers: list[tuple[str, float, str]] = field(default_factory=list)
    downloads: dict[str, list[list[str]]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    ids: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.number: tuple[str, float] | None = None
        self.hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.page.tags.add(tag)
        self.page.links += [found[name] for name in ("href", "src") if name in found]
        self.page.ids += [found["id"]] if "id" in found else []
        self.hidden = tag == "style"
        if tag == "data":
            self.number = (found.get("data-source", ""), float(found["value"]))
        if "download" in found:
            text = base64.b64decode(found["href"].partition("base64,")[2]).decode()
            self.page.downloads[found["download"]] = list(csv.reader(io.StringIO(text)))

    def handle_data(self, data: str) -> None:
        if self.hidden:
            return
        self.page.text += data
        if self.number is not None:
            self.page.numbers.append((*self.number, data))

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False
        self.number = None


def read_page(path: Path) -> Page:
    """Parse a page."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader.page


def look_up(folder: Path, source: str) -> Any:
    """The value at ``metrics.json:models.0.test.percent``."""
    name, _, path = source.partition(":")
    value = json.loads((folder / name).read_text())
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


MEASURE = """<!DOCTYPE html><body><iframe id="f" src="{src}" style="width:{width}px;height:3000px;border:0"></iframe>
<script>document.getElementById("f").onload = (event) => {{
  const page = event.target.contentDocument, at = page.documentElement;
  const broken = [...page.images].filter((image) => !image.naturalWidth).length;
  document.title = [at.scrollWidth, page.querySelectorAll("svg").length, broken].join(" ");
}};</script></body>"""
"""A page that measures another one: its width, its pictures, those that are broken."""


@pytest.fixture(scope="session")
def chromium() -> str:
    """The command of a Chromium, or a skip."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if shutil.which(name):
            return name
    pytest.skip("no Chromium on this machine")
