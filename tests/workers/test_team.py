"""Lists of tasks over this process, local processes and a Dask cluster: equal results, lost workers, failures, ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

import caplet.workers.team
from caplet.errors import ConfigError, WorkerError
from caplet.workers import places
from caplet.workers.settings import WorkerSettings
from caplet.workers.team import HOPELESS, Failed, Team, measure
from worker_tasks import Sheet, hopeless, product, slow_product, troubled

pytestmark = pytest.mark.slow(1)

SUPPORT = Path(__file__).parents[1] / "support"


def name(task: int) -> str:
    return f"task {task}"


def processes_of(pid: int) -> set[int]:
    """Processes that ``pid`` started, and those that they did."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found |= {int(path.parent.name)} | processes_of(int(path.parent.name))
    return found


def test_results_come_in_order_and_parcels_once_per_worker(settings: WorkerSettings, tmp_path: Path) -> None:
    with settings.open() as team:
        parcels = [team.parcel(Sheet, factor, tmp_path) for factor in (3, 5)]
        tasks = [(parcel, task) for parcel in parcels for task in range(20)]
        found = list(team.map(product, tasks, name))
    assert [value for value, _ in found] == [3 * task for task in range(20)] + [5 * task for task in range(20)]
    workers = {pid for _, pid in found}
    assert len(workers) <= 2
    assert (workers == {os.getpid()}) == (settings.workers == 1)
    assert len(list(tmp_path.iterdir())) <= 2 * len(workers)


def test_failures_name_their_tasks_and_the_others_go_on(scheduler: str, tmp_path: Path) -> None:
    for settings in (WorkerSettings(workers=2), WorkerSettings(cluster=scheduler)):
        given = range(7) if settings.cluster is None else range(5)  # Dask's own patience with exits takes long
        with settings.open() as team:
            tasks = [(team.parcel(Sheet, 2, tmp_path), task) for task in given]
            done: list[int] = []
            with pytest.raises(WorkerError) as failed:
                done.extend(team.map(troubled, tasks, name))
        assert done == [2 * task for task in given if task not in (2, 4, 5)]
        text = str(failed.value)
        assert "task 2: MemoryError: cannot allocate 9 GB (on " in text
        assert "so did task 4" in text
        if settings.cluster is None:
            assert "task 5" in text


def test_where_nothing_succeeds_the_rest_is_not_tried(tmp_path: Path) -> None:
    with WorkerSettings(workers=2).open() as team:
        tasks = [(team.parcel(Sheet, 2, tmp_path), task) for task in range(100)]
        found = dict(team.completed(hopeless, tasks, name))
    failures = [each for each in found.values() if isinstance(each, Failed)]
    assert len(failures) == len(found) == 100
    tried = [each for each in failures if isinstance(each.error, ValueError)]
    assert HOPELESS <= len(tried) < 20
    assert "task 99: given up, for" in str(found[99])


def test_in_this_process_errors_pass_as_they_are(tmp_path: Path) -> None:
    team = Team()
    tasks = [(team.parcel(Sheet, 2, tmp_path), task) for task in range(7)]
    with pytest.raises(MemoryError, match="9 GB"):
        list(team.map(troubled, tasks, name))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_killed_workers_lose_nothing(tmp_path: Path) -> None:
    random, stop, killed = Random(0), threading.Event(), []

    def kill() -> None:
        while not stop.wait(random.uniform(0.0, 0.5)):
            at_work = [int(path.name.split("-")[1]) for path in tmp_path.glob("works-*")]
            if at_work and len(killed) < 5:
                victim = random.choice(at_work)
                (tmp_path / f"works-{victim}").unlink(missing_ok=True)
                killed.append(victim)
                os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    with WorkerSettings(workers=2).open() as team:
        tasks = [(team.parcel(Sheet, 7, tmp_path), task) for task in range(60)]
        killer.start()
        try:
            found = list(team.map(slow_product, tasks, name))
        finally:
            stop.set()
            killer.join()
    assert len(killed) >= 2
    assert found == [7 * task for task in range(60)]


def test_more_workers_than_tasks_start_no_more_processes_than_tasks(tmp_path: Path) -> None:
    before = processes_of(os.getpid())
    with WorkerSettings(workers=8).open() as team:
        parcel = team.parcel(Sheet, 1, tmp_path)
        assert [value for value, _ in team.map(product, [(parcel, 0), (parcel, 1)], name)] == [0, 1]
        assert len(processes_of(os.getpid()) - before) <= 3  # two, and loky's tracker of its files


def pids(executor: places.LocalProcesses) -> set[int]:
    return {pid for pool in executor._all for pid in pool._processes}


def test_workers_start_while_the_asking_process_does_something_else(tmp_path: Path) -> None:
    with WorkerSettings(workers=4).open() as team:
        assert isinstance(team.executor, places.LocalProcesses)
        team.warm("caplet.workers.team", 2)
        until = time.monotonic() + 60
        while len(started := pids(team.executor)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        parcel = team.parcel(Sheet, 1, tmp_path)
        found = list(team.map(product, [(parcel, 0), (parcel, 1)], name))
        assert {pid for _, pid in found} <= started == pids(team.executor)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {support!r})
from worker_tasks import Sheet, slow_product
from caplet.workers.settings import WorkerSettings
with WorkerSettings(workers=2).open() as team:
    parcel = team.parcel(Sheet, 7, Path({folder!r}))
    for value in team.map(slow_product, [(parcel, task) for task in range(10000)], str):
        print(value, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_ends_every_process(tmp_path: Path, number: signal.Signals) -> None:
    code = SCRIPT.format(support=str(SUPPORT), folder=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "0\n"
    started = processes_of(child.pid)
    assert len(started) >= 2
    child.send_signal(number)
    child.stdout.close()
    child.wait(30)
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


OPENED = """
import sys
from caplet.errors import CapletError
from caplet.workers.settings import WorkerSettings
try:
    with WorkerSettings(cluster=sys.argv[1]).open():
        pass
except CapletError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("address", ["nonsense://x", pytest.param("tcp://127.0.0.1:9", marks=pytest.mark.slow)])
def test_an_address_without_scheduler_is_one_line_and_no_more(address: str, tmp_path: Path) -> None:
    """A whole command where nobody listens; for the other address, what it does with it: torch takes seconds."""
    pytest.importorskip("distributed")
    words = ["-c", OPENED, address]
    if address.startswith("tcp"):
        words = ["-m", "caplet", "sensitivity", "trained:digits", "--data", "digits", "--quiet"]
        words += ["--out", str(tmp_path / "s"), "--cluster", address]
    child = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
    assert child.returncode == 3
    assert "no scheduler answers there" in child.stderr
    assert len(child.stderr.splitlines()) == 1
    assert "Traceback" not in child.stderr
    assert "Exception ignored" not in child.stderr


def test_no_scheduler_at_the_address() -> None:
    from caplet.cli.main import app

    pytest.importorskip("distributed")
    for address, reason in (("tcp://127.0.0.1:9", "no scheduler answers there"), ("nonsense://x", "no scheduler")):
        with pytest.raises(ConfigError, match=reason), WorkerSettings(cluster=address).open():
            pass
    done = CliRunner().invoke(app, ["sensitivity", "m.pt", "--cluster", "tcp://127.0.0.1:9", "--workers", "2"])
    assert "both given" in str(done.exception)


def test_a_scheduler_that_goes_away_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed")
    where = tmp_path / "scheduler.json"
    words = ("--port", "0", "--dashboard-address", ":0", "--host", "127.0.0.1", "--scheduler-file", str(where))
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *words]
    quiet, path = subprocess.DEVNULL, os.pathsep.join([str(SUPPORT), *sys.path])  # it reads tasks, too
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment) as scheduler:
        until = time.monotonic() + 60
        while not where.exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)  # the file is whole
        address, notes = json.loads(where.read_text())["address"], list[str]()
        with WorkerSettings(cluster=address).open(notes.append) as team:
            assert notes[0].startswith(f"no worker at {address} yet")
            tasks = [(team.parcel(Sheet, 1, tmp_path), 0)]
            threading.Timer(1.0, scheduler.kill).start()
            with pytest.raises(WorkerError, match=f"{address}: the scheduler went away"):
                list(team.map(product, tasks, name))
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err


class Silent(Executor):
    """Never answers, as Dask's executor where the connection breaks while a result travels."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return Future()


@pytest.mark.parametrize("attribute", ["status", "_way"])
def test_a_connection_that_breaks_is_noticed(scheduler: str, monkeypatch: pytest.MonkeyPatch, attribute: str) -> None:
    """The client has given up, or has found another way, on which nobody knows what was asked."""
    monkeypatch.setattr(caplet.workers.team, "SILENCE", 0.1)
    with WorkerSettings(cluster=scheduler).open() as team:
        assert isinstance(team, places.Cluster)
        asked = [(team.parcel(Sheet, 1, Path()), 0)]
        with monkeypatch.context() as broken:
            broken.setattr(team, "executor", Silent())
            broken.setattr(team if attribute == "_way" else team._client, attribute, "closed")
            with pytest.raises(WorkerError, match="went away, or the connection to it"):
                list(team.map(product, asked, name))


def test_a_worker_that_stays_paused_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Dask gives no tasks to a worker above its memory limit; without a nanny, nobody starts it again."""
    distributed, notes = pytest.importorskip("distributed"), list[str]()
    for module, name_, seconds in ((caplet.workers.team, "SILENCE", 0.2), (places, "PAUSED", 1.0)):
        monkeypatch.setattr(module, name_, seconds)
    here: dict[str, Any] = {"processes": False, "protocol": "tcp", "host": "127.0.0.1", "dashboard_address": ":0"}
    with distributed.LocalCluster(1, threads_per_worker=1, memory_limit="50MB", **here) as started:
        address, until = started.workers[0].address, time.monotonic() + 60
        while started.workers[0].status.name != "paused" and time.monotonic() < until:
            time.sleep(0.05)
        with (
            pytest.raises(WorkerError, match=f"worker {address} is paused: it uses .* MB, its limit is 50; nothing"),
            WorkerSettings(cluster=started.scheduler_address).open(notes.append) as team,
        ):
            list(team.map(product, [(team.parcel(Sheet, 1, tmp_path), 0)], name))
    assert [f"warning: worker {address}" in note for note in notes] == [True]


def test_a_worker_of_another_version_is_refused_by_name(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        with pytest.raises(WorkerError) as error, WorkerSettings(cluster=scheduler).open() as team:
            list(team.map(product, [(team.parcel(Sheet, 1, Path()), 0)], name))
        assert str(error.value).startswith("worker tcp://")
        return str(error.value)

    for other in ("caplet 9.9 and torch 9.9", "caplet 0.1.0 (code 0) and torch 1.0"):
        monkeypatch.setattr(places, "identity", Other(other))
        text = refused()
        assert "it has caplet " in text
        assert f", here is {other}; install the same" in text


@dataclass
class Other:
    """Says that another version asks; at a worker, what is there."""

    text: str

    def __call__(self) -> str:
        return self.text

    def __reduce__(self) -> Any:
        return eval, ("__import__('caplet.workers.team', fromlist=['identity']).identity",)


def test_a_task_is_refused_by_a_worker_of_another_version() -> None:
    with pytest.raises(WorkerError, match=r"has caplet .*, here is caplet 9\.9; install the same"):
        measure("caplet 9.9", 1, 0, dict, product, 0)


def test_processes_without_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"workers: 17 are too many for 2 processors; give at most 16"):
        WorkerSettings(workers=17).open().__enter__()
