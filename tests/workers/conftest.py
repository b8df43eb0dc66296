"""Who measures: this process, two local ones, and a Dask cluster of two."""

from collections.abc import Iterator

import pytest

from caplet.workers.settings import WorkerSettings


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a Dask scheduler with two worker processes, which end with the tests of a file: idle they work."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as started:
        yield started.scheduler_address


@pytest.fixture(params=["--workers 1", "--workers 2", "cluster"])
def settings(request: pytest.FixtureRequest) -> WorkerSettings:
    if request.param == "cluster":
        return WorkerSettings(cluster=request.getfixturevalue("scheduler"))
    return WorkerSettings(workers=int(request.param[-1]))
