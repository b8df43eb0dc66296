"""Measurements that a search is about to ask for, made by several workers before it does."""

from collections.abc import Callable, Sequence
from typing import Any

from caplet.quant.measure.log import MeasurementCache, Unmeasured
from caplet.workers.team import Parcel, Team

Ask = Callable[..., float]
"""Answers through the caches alone; a worker's copy of it measures the same."""
_Prepared = tuple[Ask, tuple[MeasurementCache, ...]]


class Ahead:
    """Fills caches with what will be asked for; the search then runs as it always does, and finds its answers there.

    Logs and costs are those of a search without workers: an answer counts where it is asked for.

    Args:
        team: measures.
        caches: all that an :data:`Ask` looks into.
    """

    def __init__(self, team: Team, *caches: MeasurementCache) -> None:
        self._team, self._caches = team, caches
        self._parcels: dict[Ask, Parcel] = {}

    def __call__(self, ask: Ask, tasks: Sequence[tuple[Any, ...]]) -> None:
        """Measure ``ask(*task)`` for those of ``tasks`` that the caches cannot answer."""
        missing = [task for task in dict.fromkeys(tasks) if not self._known(ask, task)]
        if not missing:
            return
        if ask not in self._parcels:
            self._parcels[ask] = self._team.parcel(_together, ask, self._caches)
        parcel = self._parcels[ask]
        name = "noise of {0} at {1} bits".format
        for found in self._team.map(_rows, [(parcel, task) for task in missing], lambda task: name(*task)):
            for cache, rows in zip(self._caches, found, strict=True):
                cache.offer(rows)

    def _known(self, ask: Ask, task: tuple[Any, ...]) -> bool:
        for cache in self._caches:
            cache.sealed = True
        try:
            ask(*task)
        except Unmeasured:
            return False
        finally:
            for cache in self._caches:
                cache.sealed = False
        return True


def _together(ask: Ask, caches: tuple[MeasurementCache, ...]) -> _Prepared:
    """One pickle, so that ``ask`` looks into these caches."""
    return ask, caches


def _rows(prepared: _Prepared, task: tuple[Any, ...]) -> list[list[dict[str, Any]]]:
    """What has to be measured for a task, by cache."""
    ask, caches = prepared
    before = [len(cache.rows) for cache in caches]
    ask(*task)
    return [cache.rows[count:] for cache, count in zip(caches, before, strict=True)]
