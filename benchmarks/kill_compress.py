"""Kill `caplet compress` with SIGKILL at random points, resume it, and compare the results with an uninterrupted run.

    python benchmarks/kill_compress.py --kills 25 --seed 0

Half of the kills come just before or just after a file gets its name (a random one of all that a run writes), the
other half after a random time; half of the resumed runs are killed once more. Compared are the bytes of the network, of
its plan, the pruned float network and every file of the firmware, and all numbers of metrics.json but times.
Every run is a process forked from this one, which never computes, so that importing is paid for once. POSIX only.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import caplet
from caplet.api import compress, compress_settings
from caplet.jobs.train import train_by_recipe

CALIBRATION = 120
SETTINGS: dict[str, Any] = {
    "data": "digits",
    "calibration_size": CALIBRATION,
    "limits": {"max_drop": 20.0},
    "prune": {"probes": [0.5], "probe_steps": 5, "least_steps": 20},
    "quantize": {"probes": [8, 4]},
    "verify": {"images": 3, "timed": 1},
}
"""A compression of a few seconds that does every stage."""
TIMES = ("seconds", "speed", "stages", "skipped")
"""Keys of metrics.json that are no result."""


def in_child(work: Callable[[], object], kill_after: float | None = None) -> bool:
    """Do ``work`` in a forked process, killed after so many seconds; whether it ended by itself, and well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            work()
            code = 0
        except BaseException as error:  # the parent has to go on, whatever it was
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a run failed (exit code {os.WEXITSTATUS(status)})")
    return True


def counting(work: Callable[[], None], die_at: int | None, after: bool, report: Path | None) -> Callable[[], None]:
    """``work``, killing its process at the file number ``die_at``; the number of files goes to ``report``."""

    def run() -> None:
        replace, count = os.replace, 0

        def counted(source: Any, target: Any) -> None:
            nonlocal count
            count += 1
            if count == die_at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counted  # type: ignore[assignment]
        work()
        if report is not None:
            report.write_text(str(count))

    return run


def compression(model: Path, folder: Path) -> Callable[[], None]:
    """A run of ``caplet compress --resume``, which also starts a new one."""

    def run() -> None:
        settings = compress_settings(None, {**SETTINGS, "model": str(model)})
        compress(None, None, folder, settings, resume=True, threads=1)

    return run


def result(folder: Path) -> dict[str, str]:
    """What must be equal: SHA-256 by file, and of all numbers but times."""
    files = [folder / "model.caplet", *folder.glob("quantize-*/plan_*.json"), *folder.glob("prune-*/model.safetensors")]
    files += [path for path in (folder / "firmware").rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    metrics = without_times(json.loads((folder / "metrics.json").read_text()))
    found["metrics.json"] = hashlib.sha256(json.dumps(metrics, sort_keys=True).encode()).hexdigest()
    return found


def without_times(value: Any) -> Any:
    """JSON values without the keys :data:`TIMES`."""
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def trials(model: Path, work: Path, kills: int, seed: int) -> dict[str, Any]:
    """An uninterrupted run, then ``kills`` killed and resumed ones; JSON values."""
    count_file, draws = work / "files.txt", random.Random(seed)
    began = time.perf_counter()
    in_child(counting(compression(model, work / "whole"), None, False, count_file))
    seconds, files = time.perf_counter() - began, int(count_file.read_text())
    expected = result(work / "whole")
    rows = []
    for trial in range(kills):
        folder, done, left = work / f"trial{trial}", list[str](), 1 + draws.randrange(2)
        ended = False
        while not ended:
            at, after, moment = draws.randint(1, files), draws.random() < 0.5, draws.uniform(0, seconds)
            by_file, run = draws.random() < 0.5, compression(model, folder)
            if left == 0:
                ended = in_child(run)
            elif by_file:
                ended = in_child(counting(run, at, after, None))
                done.append(f"{'after' if after else 'before'} file {at}")
            else:
                ended = in_child(run, moment)
                done.append(f"after {moment:.1f} s")
            if ended and left:
                done[-1] += " (it had ended by then)"
            left = max(0, left - 1)
        found = result(folder)
        row: dict[str, Any] = {"trial": trial, "kills": done}
        row["different"] = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        row["unfinished"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.part"))
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return {
        "files_written": files,
        "seconds_of_a_run": round(seconds, 1),
        "files_compared": len(expected),
        "trials": rows,
    }


def main() -> None:
    """Parse the options, run the trials, print or write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="a trained model for digits; one is trained where none is given")
    parser.add_argument("--out", type=Path, help="the record; default: stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = options.model
        if model is None:
            changes = {"epochs": 3, "calibration_size": CALIBRATION}
            in_child(lambda: train_by_recipe("digits", work / "train", changes=changes, limit=240, progress=False))
            model = work / "train" / "model.safetensors"
        found = trials(model, work, options.kills, options.seed)
    record = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/kill_compress.py --kills {options.kills} --seed {options.seed}",
        "version": caplet.__version__,
        "equal": sum(not row["different"] for row in found["trials"]),
        **found,
    }
    text = json.dumps(record, indent=1) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text)
    if record["equal"] < len(found["trials"]):
        raise SystemExit("results differ")


if __name__ == "__main__":
    main()
