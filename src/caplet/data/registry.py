"""The datasets known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from caplet.data.source import Request, Source
from caplet.errors import DataError, suggest


@dataclass(frozen=True)
class Dataset:
    """One entry of the registry.

    Attributes:
        name: as users write it, lower case with dashes.
        summary: one line for listings.
        layout: the files its loader looks for under ``root``, for error messages and help; empty if it needs none.
        load: reads it; raises :class:`caplet.errors.DataError` with what to do if it cannot.
    """

    name: str
    summary: str
    layout: str
    load: Callable[[Request], Source]


class DatasetRegistry:
    """Datasets by name: a duplicate raises, an unknown name suggests the nearest."""

    def __init__(self) -> None:
        self._entries: dict[str, Dataset] = {}

    def register(self, dataset: Dataset) -> None:
        """Add a dataset.

        Raises:
            ValueError: the name is taken (a mistake in the program, not in its input).
        """
        if dataset.name in self._entries:
            raise ValueError(f"dataset {dataset.name!r} is registered twice")
        self._entries[dataset.name] = dataset

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Dataset]:
        return iter(self._entries.values())

    def names(self) -> tuple[str, ...]:
        """All names, in order of registration."""
        return tuple(self._entries)

    def get(self, name: str) -> Dataset:
        """The dataset of that name.

        Raises:
            DataError: there is none; the message names the nearest and all others.
        """
        if name in self._entries:
            return self._entries[name]
        raise DataError(
            f"unknown dataset {name!r}{suggest(name, self._entries)} (known: {', '.join(self._entries)}, or the path of"
            " an image folder)"
        )
