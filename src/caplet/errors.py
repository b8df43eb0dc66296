"""Errors a user can cause. The command line prints them in one line and exits with ``exit_code``."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class CapletError(Exception):
    """Base of every error that is the input's fault, not the program's.

    The message says what is wrong, where, the value found, the rule, and what to do, in one line.
    """

    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class DataError(CapletError):
    """A dataset, image or split cannot be used."""


class ModelError(CapletError):
    """A model, checkpoint or architecture cannot be used."""


class PlanError(CapletError):
    """A quantization plan does not fit the model, or a width is out of range."""


class ConfigError(CapletError):
    """A setting is unknown or out of range."""


class ArtefactError(CapletError):
    """A file or folder of results cannot be read or written."""


class FolderInUse(ArtefactError):
    """Another process works in the folder."""


class BoardError(CapletError):
    """A board, or the line to it, cannot be used: absent, busy, silent, or running another model."""


class WorkerError(CapletError):
    """Another process that measures, or the way to it, cannot be used; or what it measured failed."""


class TargetNotMet(CapletError):
    """The search ended without meeting its target; the best result found was still written."""

    exit_code = 5


class ToolMissing(CapletError):
    """A program that is not part of caplet (a compiler, an emulator) is needed and was not found."""

    exit_code = 7


class NotExact(CapletError):
    """Two engines computed different integers from the same Program and image."""

    exit_code = 6


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like ``name``, in any case; None if none is at least ``cutoff`` (0..1) alike."""
    lower = {other.lower(): other for other in known}
    found = get_close_matches(name.lower(), lower, 1, cutoff)
    return lower[found[0]] if found else None


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known name that was probably meant, or nothing.

    >>> suggest("roundin", ("bias", "rounding")), suggest("x", ("bias", "rounding"))
    ("; did you mean 'rounding'?", '')
    """
    near = nearest(name, known)
    return "" if near is None else f"; did you mean {str(near)!r}?"


def choose(name: str, known: Iterable[T], what: str, error: type[CapletError] = ConfigError) -> T:
    """The one of ``known`` with this text. Raises ``error``, with the nearest one, where there is none.

    >>> choose("nativ", ("native", "interpreter"), "engine")
    Traceback (most recent call last):
    caplet.errors.ConfigError: unknown engine 'nativ'; did you mean 'native'? (known: native, interpreter)
    """
    texts = {str(each): each for each in known}
    if name not in texts:
        raise error(f"unknown {what} {name!r}{suggest(name, texts)} (known: {', '.join(texts)})")
    return texts[name]
