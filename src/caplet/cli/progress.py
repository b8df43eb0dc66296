"""A progress line on stderr: what was decided, and how far the running measurement is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
