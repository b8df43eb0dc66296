"""Sensitivities by several local processes: bytes while workers are killed, overhead of a task, speed against one.

    python benchmarks/workers.py --model q7_mnist.h5 --data mnist --root ~/data --kills 20 --out workers.json

A child of this process runs ``caplet.sensitivity``; one of its workers gets SIGKILL at a random moment, again and
again, until there were as many kills as asked for; each run's files are compared with those of ``--workers 1``. The
overhead is that of tasks that do nothing: wall time, and processor time of the process that asks. Speeds are wall times
in turns, of processes that have started already; with ``--papers``, of rows of ``bench papers`` instead, their start
included. They mean something on an idle machine only: the load before and after is in the record. POSIX with /proc.
"""

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from caplet import api
from caplet.bench.papers.job import redo_papers
from caplet.bench.settings import PapersSettings
from caplet.quant.measure.sensitivity import measure_sensitivity
from caplet.train.loss import margin_loss
from caplet.workers.settings import WorkerSettings
from caplet.workers.team import Team

FILES = ("sensitivity.jsonl", "sensitivity.svg")
RUN = """
import sys
from caplet import api
model, data, root, out, workers, images, draws, widths = sys.argv[1:]
api.sensitivity(
    api.load_float(model), api.load_data(data, root), out, workers=api.WorkerSettings(workers=int(workers)),
    settings=api.SensitivitySettings(widths=widths, draws=int(draws), images=int(images)),
)
"""


def nothing(prepared: object, task: int) -> int:
    """A task that costs nothing."""
    return task


def workers_of(pid: int) -> list[int]:
    """The worker processes that ``pid`` has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat, words = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(stat.rsplit(")", 1)[1].split()[1]) == pid and b"LokyProcess" in words:
            found.append(int(path.name))
    return found


def run(arguments: argparse.Namespace, out: Path, workers: int) -> "subprocess.Popen[bytes]":
    """Start the sensitivities of the model in a process of its own."""
    words = (arguments.model, arguments.data, arguments.root, out, workers, arguments.images, 2, arguments.widths)
    return subprocess.Popen([sys.executable, "-c", RUN, *map(str, words)], stderr=subprocess.DEVNULL)


def kill(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs in which workers are killed, and how many of them left other bytes than the reference."""
    chance, kills, runs, different = random.Random(arguments.seed), 0, 0, 0
    assert run(arguments, folder / "reference", 1).wait() == 0
    while kills < arguments.kills:
        out = folder / f"run-{runs}"
        child, runs, here = run(arguments, out, 2), runs + 1, 0
        while child.poll() is None:
            time.sleep(chance.uniform(0.5, arguments.pause))
            victims = workers_of(child.pid)
            if victims and here < arguments.each and kills < arguments.kills:
                os.kill(chance.choice(victims), signal.SIGKILL)
                here, kills = here + 1, kills + 1
        same = child.returncode == 0 and all(
            (out / name).read_bytes() == (folder / "reference" / name).read_bytes() for name in FILES
        )
        different += not same
        print(f"run {runs}: {here} kills, exit {child.returncode}, {'equal' if same else 'DIFFERENT'}", file=sys.stderr)
    return {"kills": kills, "runs": runs, "different": different}


def overhead(count: int) -> dict[str, float]:
    """What a task costs by itself, in milliseconds, with two workers."""
    with WorkerSettings(workers=2).open() as team:
        tasks = [(team.parcel(dict), task) for task in range(count)]
        list(team.map(nothing, tasks[:50], str))  # processes have started
        before, began = os.times(), time.perf_counter()
        assert list(team.map(nothing, tasks, str)) == list(range(count))
        wall, after = time.perf_counter() - began, os.times()
    used = after.user + after.system - before.user - before.system
    return {"tasks": count, "wall_ms": 1e3 * wall / count, "processor_ms_of_this_process": 1e3 * used / count}


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Wall seconds of one process with one thread, and of two workers, in turns; medians, and their ratio."""
    torch.set_num_threads(1)
    model, data = api.load_float(arguments.model), api.load_data(arguments.data, arguments.root).calibration
    settings = api.SensitivitySettings(widths=arguments.widths, draws=2, images=arguments.images)
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    with WorkerSettings(workers=2).open() as team:
        for turn in range(arguments.turns + 1):
            for name, who in (("one", Team(1)), ("two", team)):
                began = time.perf_counter()
                measure_sensitivity(model, data.images, data.labels, settings, loss=margin_loss, team=who)
                if turn:  # the first one starts the processes
                    seconds[name].append(time.perf_counter() - began)
    one, two = (statistics.median(found) for found in seconds.values())
    return {"seconds": seconds, "speedup": one / two}


def papers(arguments: argparse.Namespace) -> dict[str, Any]:
    """As :func:`speed`, of rows of ``bench papers``; the start of the workers is in their time."""
    given = {"models": arguments.papers, "roots": [str(arguments.root)], "only": arguments.rows, "threads": 1}
    settings = PapersSettings.of({**given, "calibration_size": arguments.calibration, "test_images": 100})
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(arguments.turns):
        for workers, name in enumerate(seconds, 1):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                found = redo_papers(settings, folder, workers=WorkerSettings(workers=workers))
                seconds[name].append(time.perf_counter() - began)
    one, two = (statistics.median(each) for each in seconds.values())
    return {"rows": found.done, "missing": found.blank, "seconds": seconds, "speedup": one / two}


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--root")
    parser.add_argument("--out", type=Path, default=Path("workers.json"))
    parser.add_argument("--widths", default="2-8")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--each", type=int, default=4, help="kills in one run at most")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two kills at most")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--papers", action="append", help="NAME=FILE of a row's model: speed of rows instead")
    parser.add_argument("--rows", action="append", help="of which rows (a pattern)")
    parser.add_argument("--calibration", type=int, default=1000, help="calibration images of rows")
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/workers.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }
    if arguments.tasks:
        record["overhead"] = overhead(arguments.tasks)
    if arguments.papers:
        record["papers"] = papers(arguments)
    elif arguments.turns:
        record["speed"] = speed(arguments)
    if arguments.kills:
        with tempfile.TemporaryDirectory() as folder:
            record["kills"] = kill(arguments, Path(folder))
    record["load_after"] = os.getloadavg()[0]
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))
    sys.exit(record.get("kills", {}).get("different", 0) > 0)


if __name__ == "__main__":
    main()
