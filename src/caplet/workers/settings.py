"""Who measures: the options that commands with lists of measurements have."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from caplet.errors import ConfigError
from caplet.progress import Note, silent
from caplet.settings import Few, Settings, option
from caplet.workers.places import Cluster, Processes
from caplet.workers.team import Team

CROWD = 8
"""At most so many processes for each processor: more only take memory, until nothing else runs."""


@contextmanager
def team_of(workers: "WorkerSettings | Team | None", note: Note) -> Iterator[Team]:
    """The team that settings name, as :meth:`WorkerSettings.open`; one that is there already stays open."""
    if isinstance(workers, Team):
        yield workers
        return
    with (workers or WorkerSettings()).open(note) as team:
        yield team


class WorkerSettings(Settings):
    """Who measures. Raises ConfigError for both a number of processes and a cluster."""

    where = "workers"

    workers: Few | None = option(None, "Run")
    """Processes that measure, one thread each; 1 is this one. Default: this one, with all of torch's threads."""
    cluster: str | None = option(None, "Run")
    """Dask scheduler whose workers measure, such as tcp://host:8786 (pip install 'caplet[cluster]')."""

    def check(self) -> None:
        """Raise ValueError where both are given."""
        if self.workers is not None and self.cluster is not None:
            raise ValueError("workers and cluster are both given; choose one")

    @contextmanager
    def open(self, note: Note = silent) -> Iterator[Team]:
        """The team, for a ``with`` block; at its end, an interrupt included, all that it started ends.

        Raises:
            ConfigError: no scheduler at the address; many more processes than processors.
            ToolMissing: no ``distributed`` is installed.
            WorkerError: a worker has another caplet or torch.
        """
        if (count := self.workers or 1) > (most := CROWD * (cores := os.cpu_count() or 1)):
            raise ConfigError(f"workers: {count} are too many for {cores} processors; give at most {most}")
        team = Team(self.workers) if count == 1 else Processes(count)
        team = team if self.cluster is None else Cluster(self.cluster, note)
        try:
            yield team
        except BaseException:
            team.close(kill=True)
            raise
        team.close(kill=False)
