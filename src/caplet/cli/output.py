"""What the sub-commands share: where text goes, JSON output, units, common options."""

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from caplet.cli.options import DATA, OUTPUT
from caplet.settings import Settings, option, parse_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from caplet.data import Splits

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
FloatModel = Annotated[Path, typer.Argument(help="A trained float model: .safetensors, or a .pt / .h5 to import.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size", help="Image side of an imported model, where its file leaves it open.", rich_help_panel=DATA
    ),
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change one setting, e.g. --set lr=1e-3. May be repeated.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Use only so many images of each split.", rich_help_panel=DATA)
]
Engine = Annotated[
    Literal["auto", "native", "interpreter"],
    typer.Option(
        "--engine", help="What runs the integers: compiled C, or the reference interpreter.", rich_help_panel="Run"
    ),
]


class RunOptions(Settings):
    """Where a run's files go, and what is shown."""

    out: Path | None = option(None, OUTPUT)
    """Run folder. Default: a folder in runs/, named after the model."""
    resume: bool = option(False, OUTPUT)
    """Go on with an interrupted run."""
    force: bool = option(False, OUTPUT)
    """Use the folder whatever it holds; files of the same name are overwritten."""
    quiet: bool = option(False, OUTPUT)
    """No progress bars."""
    as_json: bool = option(False, OUTPUT, flag="--json")
    """Print one JSON object on stdout instead of tables."""

    def note(self, text: str) -> None:
        """A line on stderr, unless ``--quiet``."""
        if not self.quiet:
            note(text)

    def folder(self, model: Path, suffix: str) -> Path:
        """The run folder: ``--out``, or ``runs/NAME-SUFFIX``; runs/NAME/model.safetensors has the name NAME."""
        name = model.resolve().parent.name if model.stem == "model" else model.stem
        return self.out or Path("runs") / f"{name}-{suffix}"


class FileOptions(Settings):
    """Where a dataset's files are, and what becomes of its images."""

    root: Path | None = option(None, DATA)
    """Folder (or archive) where the dataset's files already are; otherwise downloaded."""
    size: int | None = option(None, DATA)
    """Resize images to this many rows and columns."""
    channels: int | None = option(None, DATA)
    """1 for gray, 3 for RGB."""


class ImageOptions(FileOptions):
    """Test images of a dataset, or random ones."""

    data: str = option("", DATA)
    """Dataset whose test images are run. Default: random images."""

    def pixels(self, images: int, shape: Sequence[int], progress: bool = False) -> "NDArray[np.uint8]":
        """Evenly spaced test images, or random ones of ``shape`` (C, H, W): uint8 (N, C, H, W)."""
        import numpy as np

        if not self.data:
            return np.random.default_rng(0).integers(0, 256, (images, *shape), dtype=np.uint8)
        from caplet.api import load_data

        test = load_data(self.data, **self.model_dump(exclude={"data"}), progress=progress).test
        found: NDArray[np.uint8] = test.evenly_spaced(images).images.numpy()
        return found


class DataOptions(ImageOptions):
    """A dataset with its three splits."""

    data: str = option("digits", DATA)
    """Dataset name (mnist, fashion-mnist, cifar10, svhn, digits) or the path of an image folder."""
    calibration_size: int | None = option(None, DATA)
    """Images cut from the training split for calibration and search."""

    def load(self, progress: bool, limit: int | None = None) -> "Splits":
        """The splits. Raises DataError and ConfigError, see :func:`caplet.load_data`."""
        from caplet.api import load_data

        return load_data(self.data, **self.model_dump(exclude={"data"}), limit=limit, progress=progress)


def parse_ram(text: str) -> str | int:
    """``fast``, ``small``, or bytes as :func:`parse_bytes`."""
    return text if text in ("fast", "small") else parse_bytes(text)


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
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("images", total=None)
        yield console.print, lambda done, total: progress.update(task, completed=done, total=total)
