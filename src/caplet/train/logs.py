"""What a run tells while it goes on: a CSV file, TensorBoard if asked, and a progress bar on stderr."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from caplet.errors import ArtefactError, ConfigError
from caplet.files import access, read_text, write_text

#: ``kind`` is ``step`` (values of that step's batch) or ``epoch`` (means over the epoch; calibration with the averaged
#: weights). ``global_step`` counts finished steps; ``seconds`` is training time so far.
COLUMNS = (
    *("kind", "epoch", "global_step", "lr", "loss", "margin", "reconstruction", "distillation", "accuracy"),
    *("calibration_accuracy", "calibration_loss", "images_per_second", "seconds"),
)


def read_steps(path: Path) -> list[dict[str, float]]:
    """The rows of single steps in a log: ``step``, and ``loss`` and ``accuracy`` of that step's batch.

    Raises:
        ArtefactError: the file cannot be read.
    """
    return [
        {"step": int(row["global_step"]), "loss": float(row["loss"]), "accuracy": float(row["accuracy"])}
        for row in _read(path)
        if row["kind"] == "step"
    ]


def _read(path: Path) -> list[dict[str, str]]:
    text = read_text(path, "the training log", "delete it to go on without its rows")
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise ArtefactError(f"{path} is no training log ({error}); delete it to go on without its rows") from error


def _lines(*rows: Mapping[str, Any]) -> str:
    """Rows as CSV text; columns that they do not have stay empty."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore").writerows(rows)
    return text.getvalue()


def csv_log(path: Path, epochs: int, steps: int) -> Callable[[dict[str, Any]], None]:
    """What appends a row to a CSV file; a resumed run first drops the rows written after its checkpoint.

    Args:
        path: the file.
        epochs, steps: finished epochs and steps of the whole run; rows of later ones are dropped (0, 0 starts anew).

    Raises:
        ArtefactError: here and from a row: the file cannot be read or written.
    """
    rows = [row for row in _read(path) if _kept(row, epochs, steps)] if steps and path.exists() else []
    write_text(path, _lines({name: name for name in COLUMNS}, *rows), "the training log")

    def write(row: dict[str, Any]) -> None:
        with access("write the training log", path), path.open("a", newline="", encoding="utf-8") as stream:
            stream.write(_lines(row))

    return write


def _kept(row: dict[str, str], epochs: int, steps: int) -> bool:
    """Whether a row is whole (a kill can cut the last one) and not after the checkpoint."""
    try:
        epoch, step, _, _ = int(row["epoch"]), int(row["global_step"]), float(row["loss"]), float(row["accuracy"])
        return None not in (*row, *row.values()) and (epoch <= epochs if row["kind"] == "epoch" else step <= steps)
    except (KeyError, TypeError, ValueError):
        return False


@contextmanager
def tensorboard_log(folder: Path, steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes the same rows as TensorBoard scalars, ``step/...`` and ``epoch/...``.

    Args:
        folder: where the event files go.
        steps: finished steps of the whole run; TensorBoard hides what an interrupted run wrote after them.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard logs need the package tensorboard: pip install 'caplet[tensorboard]'") from error

    def write(row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(f"{row['kind']}/{name}", value, row["global_step"])

    with SummaryWriter(str(folder), purge_step=steps + 1 if steps else None) as writer:
        yield write


class ProgressLine(Progress):
    """Progress bar on stderr with loss, learning rate, speed, calibration accuracy and time left; a context manager.

    Args:
        total: steps of the whole run.
        done: steps already done by an earlier part of it.
        shown: draw it; each epoch's line is printed too, also where stderr is not a terminal.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        console = Console(stderr=True, quiet=not shown)
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self.add_task("training", total=total, completed=done, status="")

    def step(self, row: dict[str, Any], best: float) -> None:
        """Advance by one step."""
        status = f"loss {row['loss']:.4f}  lr {row['lr']:.1e}  {row['images_per_second']:.0f} img/s"
        status += f"  best {best:.2%}" if best >= 0 else ""
        self.update(self.task_ids[0], advance=1, description=f"epoch {row['epoch']}", status=status)

    def epoch(self, row: dict[str, Any], warning: str = "") -> None:
        """Print an epoch's line, and what must be said of it."""
        self.console.print(
            f"epoch {row['epoch']:3d}  loss {row['loss']:.4f}  train {row['accuracy']:.2%}"
            f"  calibration {row['calibration_accuracy']:.2%}  {row['images_per_second']:.0f} img/s"
            f"  {row['seconds']:.0f} s",
            highlight=False,
        )
        if warning:
            self.console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
