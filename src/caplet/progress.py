"""How long work reports what it does: a line of text at a time, and how much is done."""

from collections.abc import Callable

Note = Callable[[str], None]
"""Called with one line of text."""
Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


def silent(text: str) -> None:
    """The :data:`Note` that says nothing."""
