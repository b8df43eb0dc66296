"""What the sub-commands share: where text goes, JSON output, units, common options."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caplet.errors import ConfigError
from caplet.settings import parse_bytes

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Dataset name (mnist, fashion-mnist, cifar10, svhn, digits) or the path of an image folder.",
        show_default=True,
    ),
]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="Folder (or archive) where the dataset's files already are; otherwise downloaded."),
]
Size = Annotated[int | None, typer.Option("--size", help="Resize images to this many rows and columns.")]
Channels = Annotated[int | None, typer.Option("--channels", help="1 for gray, 3 for RGB.")]
CalibrationSize = Annotated[
    int | None,
    typer.Option("--calibration-size", help="Images cut from the training split for calibration and search."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def parse_widths(text: str) -> tuple[int, ...]:
    """Widths of ``"2-8"`` or ``"2,4,8"``; ranges include their ends.

    >>> parse_widths("2-4,8")
    (2, 3, 4, 8)
    """
    if re.fullmatch(r"\d{1,3}(-\d{1,3})?(,\d{1,3}(-\d{1,3})?)*", text.replace(" ", "")) is None:
        raise ConfigError(f"widths {text!r}: the rule is a list of numbers and ranges, such as 2-8 or 2,4,8")
    ends = [part.split("-") for part in text.replace(" ", "").split(",")]
    return tuple(width for end in ends for width in range(int(end[0]), int(end[-1]) + 1))


def parse_ram(text: str) -> str | int:
    """``fast``, ``small``, or bytes as :func:`parse_bytes`."""
    return text if text in ("fast", "small") else parse_bytes(text)


def console() -> Console:
    """Console for tables: stdout. Text is printed as it is: paths and class names are no markup, lines do not wrap."""
    from rich.console import Console

    return Console(markup=False, highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """The one machine-readable object of a command."""
    print(json.dumps(data, indent=1, sort_keys=True))


def note(text: str) -> None:
    """A line for the user on stderr."""
    print(text, file=sys.stderr)


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
    line = " ".join(text.split())
    print(f"caplet: {'' if code == 130 else 'error: '}{line}", file=sys.stderr)
    return code


def kilobytes(count: float) -> str:
    """Bytes for people: ``27.22 MB``, ``3.1 KB``.

    >>> kilobytes(27220801), kilobytes(3100), kilobytes(12)
    ('27.22 MB', '3.1 KB', '12 B')
    """
    if count >= 1e6:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e3:.1f} KB" if count >= 1e3 else f"{count:.0f} B"
