"""What commands print: where text goes, tables, JSON, units, progress."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from caplet.api import DeviceTime


def console() -> "Console":
    """Console for tables: stdout. Text is printed as it is: paths and class names are no markup, lines do not wrap."""
    from rich.console import Console

    return Console(markup=False, highlight=False, soft_wrap=True)


def show_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    *,
    left: int = 1,
    fold: bool = False,
) -> None:
    """Print a table on stdout: ``left`` columns of text, then numbers; with ``fold`` long cells are broken, not cut."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
    for place, heading in enumerate(headings):
        justify: Literal["left", "right"] = "left" if place < left else "right"
        table.add_column(heading, justify=justify, no_wrap=place == 0 or not fold, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_json(data: Any) -> None:
    """The one machine-readable object of a command, of dataclasses and JSON values."""
    print(json.dumps(data, indent=1, sort_keys=True, default=asdict))


def note(text: str) -> None:
    """A line for the user on stderr."""
    print(*map(_visible, text.splitlines()), file=sys.stderr)


@contextmanager
def going_on(tells: bool) -> Iterator[None]:
    """Where what is inside is interrupted, and ``tells``, say which command goes on with it."""
    try:
        yield
    except KeyboardInterrupt:
        if tells:
            words = [word for word in sys.argv[1:] if word not in ("--force", "--resume")]
            note("go on with: " + shlex.join(["caplet", *words, "--resume"]))
        raise


def fail(text: str, code: int) -> int:
    """Print one line about an error; returns the exit code."""
    with suppress(OSError):  # the code tells, too, where nothing can be printed
        line = _visible(" ".join(text.split()))
        print(f"caplet: {'' if code == 130 else 'error: '}{line}", file=sys.stderr, flush=True)
    return code


def _visible(text: str) -> str:
    r"""Text without characters that steer a terminal: ``\x1b`` is written as these four.

    >>> _visible("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def percent(test: Mapping[str, float]) -> str:
    """An accuracy of the records with its interval, such as ``97.50 [95.34, 98.67]``."""
    return f"{test['percent']:.2f} [{test['low']:.2f}, {test['high']:.2f}]"


def points(pair: Mapping[str, float]) -> str:
    """The loss of a paired comparison of the records with its interval, such as ``+0.28 [-0.51, +1.07]``."""
    return f"{pair['loss']:+.2f} [{pair['low']:+.2f}, {pair['high']:+.2f}]"


def kilobytes(count: float) -> str:
    """Bytes for people: ``27.22 MB``, ``3.1 KB``.

    >>> kilobytes(27220801), kilobytes(3100), kilobytes(12)
    ('27.22 MB', '3.1 KB', '12 B')
    """
    if count >= 1e6:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e3:.1f} KB" if count >= 1e3 else f"{count:.0f} B"


def estimates(times: "Iterable[DeviceTime]") -> str:
    """A line on how long an image takes on devices."""
    words = (f"{time.device.name} {time}" for time in times)
    return f"an image takes about (estimates, no chip was measured): {'; '.join(words)}"


@contextmanager
def bar(shown: bool) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None] | None]]:
    """Two callables: one prints a line, one moves the bar to (done, total)."""
    if not shown:
        yield (lambda text: None), None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=None)
        yield console.print, lambda done, total: progress.update(task, completed=done, total=total)
