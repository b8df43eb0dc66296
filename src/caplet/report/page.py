"""The report: one HTML page that needs nothing else, from the records of one or more runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from caplet.report.cards import verdict
from caplet.report.figure import Section
from caplet.report.records import RunRecords
from caplet.report.sections import sections
from caplet.report.verdict import Verdict


@dataclass(frozen=True)
class Chapter:
    """What the page shows of one run."""

    name: str
    kind: str
    verdict: Verdict | None
    sections: tuple[Section, ...]
    missing: tuple[str, ...]


def render(runs: Sequence[RunRecords], version: str) -> str:
    """The page as text: UTF-8 HTML with its style sheet, pictures and data inside; no script, no address outside.

    Args:
        runs: at least one, in the order in which they are shown.
        version: of the program that makes the page, for its last line.
    """
    environment = Environment(
        loader=PackageLoader("caplet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chapters = [_chapter(run) for run in runs]
    return environment.get_template("page.html.j2").render(chapters=chapters, title=_title(chapters), version=version)


def _chapter(run: RunRecords) -> Chapter:
    found, missing = sections(run)
    return Chapter(run.name, str(run.kind), verdict(run), tuple(found), tuple(missing))


def _title(chapters: Sequence[Chapter]) -> str:
    return "caplet: " + ", ".join(chapter.name for chapter in chapters)
