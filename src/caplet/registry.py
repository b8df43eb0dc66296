"""One class for whatever is found by a name or by a type: ops, their functions, datasets, models, methods, scores."""

from collections.abc import Callable
from typing import TypeVar

from caplet.errors import CapletError, ConfigError, choose

K = TypeVar("K")
V = TypeVar("V")


class Registry(dict[K, V]):
    """Entries by key, in the order in which they were added; a key that is taken is a mistake of the program.

    what: names one entry in messages, such as "dataset". error: what :meth:`find` raises.

    >>> colours: Registry[str, int] = Registry("colour")
    >>> colours.add("red", 0xFF0000)
    16711680
    >>> colours.find("rad")
    Traceback (most recent call last):
    ...
    caplet.errors.ConfigError: unknown colour 'rad'; did you mean 'red'? (known: red)
    """

    def __init__(self, what: str, error: type[CapletError] = ConfigError) -> None:
        self.what = what
        self.error = error

    def add(self, key: K, value: V) -> V:
        """Add an entry and return it. Raises ValueError where the key is taken."""
        self[key] = value
        return value

    def __setitem__(self, key: K, value: V) -> None:
        if key in self:
            raise ValueError(f"{self.what} {_text(key)} is registered already")
        super().__setitem__(key, value)

    def of(self, key: K) -> Callable[[V], V]:
        """A decorator that adds what it decorates under ``key``."""
        return lambda value: self.add(key, value)

    def find(self, key: K) -> V:
        """The entry of a key that a user gave. Raises ``error``, with the nearest key, where there is none."""
        choose(_text(key), map(_text, self), self.what, self.error)
        return self[key]


def _text(key: object) -> str:
    return key.__name__ if isinstance(key, type) else str(key)
