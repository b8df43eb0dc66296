"""Kill every job at random, go on with it, and compare what it leaves with what an uninterrupted run leaves.

    python benchmarks/kills.py --kills 300 --out kills.jsonl          # goes on where kills.jsonl ends
    python benchmarks/kills.py --kills 20 --only quantize --out one.jsonl
    python benchmarks/kills.py --kills 999 --every --only export,train --out every.jsonl
    python benchmarks/kills.py --kills 999 --every --only compress --part 0/2 --out half.jsonl   # every second one

Half of the kills come just before or just after an operation on a file (a random one of all that a run does: a file
gets its name, is flushed, cut, removed, a folder is made), the other half after a random time. They are SIGKILL,
SIGTERM and SIGINT; a third of the runs are killed once more when they go on. Jobs are tiny runs on digits, each in a
process forked from this one. Jobs that resume go on with ``resume``; the others are started again in the same folder.

Compared are all files byte by byte, but for times and for what this part of a run measured itself: those values are
taken out of JSON and CSV files and of the notes in safetensors files, and of files that are hardly anything else only
the presence counts. A hidden file that SIGKILL left half written is no difference, and is counted. POSIX only.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import scipy.optimize  # noqa: F401  what jobs need is imported here: no forked process imports it again
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo

import caplet
from caplet import api
from caplet.data import load_data
from caplet.jobs import timing
from caplet.jobs.report import write_report

Job = Callable[[Path], object]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OPERATIONS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir", "truncate", "chmod")
"""Functions of :mod:`os` before and after which a process is killed."""
TIMES = (
    *("seconds", "images_per_second", "speed", "stages", "skipped", "started"),
    *("full_passes", "probes", "cost", "sensitivity_cost"),
)
"""Keys of JSON values and columns of CSV files that are times, or count what this part of a run measured itself."""
UNCOMPARED = ("environment.json", "stages.json", "speed.json", "train.ckpt", "report.html", ".lock")
"""Files that hold times, or digests of files with times."""
SAMPLES = [Path()]


def sample(name: str) -> Path:
    """A finished run that other jobs begin with."""
    return SAMPLES[0] / name


def data() -> Any:
    """Digits with few calibration images."""
    return load_data("digits", calibration_size=120)


def train(folder: Path) -> None:
    """Two epochs on 240 images."""
    changes = {"epochs": 2, "calibration_size": 120}
    api.train_model("digits", folder, changes=changes, limit=240, resume=True, progress=False)


def model() -> api.CapsNet:
    """The network that was trained."""
    return api.load_float(sample("train") / "model.safetensors")


def finetune(folder: Path) -> None:
    """One epoch."""
    settings = api.finetune_settings({"epochs": 1, "batch_size": 64}, under_plan=False)
    api.finetune_model(model(), data(), folder, settings=settings, resume=True)


def qat(folder: Path) -> None:
    """Some steps under a plan."""
    settings = api.finetune_settings({"epochs": 1, "batch_size": 128}, under_plan=True)
    plan = api.read_plan(sample("quantize") / "plan_satisfied.json")
    api.finetune_model(model(), data(), folder, plan, settings, resume=True, engine="interpreter")


def prune(folder: Path) -> None:
    """One round to 60 % of the multiply-accumulates, and an epoch."""
    api.prune_model(model(), data(), folder, api.PruneSettings(macs=0.6, epochs=1, batch_size=64), resume=True)


def quantize(folder: Path) -> None:
    """A search by ilp, biases and rounding fitted."""
    values = {"accept": "measured", "tolerance": 5.0, "method": "ilp", "budget": "12KB", "reconstruct": "bias,rounding"}
    api.quantize(model(), data(), folder, api.QuantizeSettings.of(values), resume=True, engine="interpreter")


def sensitivity(folder: Path) -> None:
    """Two widths, two draws of 20 images."""
    settings = api.SensitivitySettings(widths=(3, 6), draws=2, images=20)
    api.sensitivity(model(), data(), folder, settings, resume=True)


def compress(folder: Path) -> None:
    """All stages, as small as they come."""
    values = {
        "model": str(sample("train") / "model.safetensors"),
        "data": "digits",
        "calibration_size": 120,
        "limits": {"max_drop": 20.0},
        "prune": {"probes": [0.5], "probe_steps": 5, "least_steps": 20},
        "quantize": {"probes": [8, 4], "reconstruct": [], "narrow": False},
        "verify": {"images": 3, "timed": 1},
    }
    timing.LEAST_SECONDS = 0.001  # what is measured in seconds is not compared
    api.compress(None, None, folder, api.compress_settings(None, values), resume=True, threads=1)


def export(folder: Path) -> None:
    """C."""
    if not (folder / "c").exists():  # what is there is there whole
        api.export_c(sample("quantize"), folder / "c")


def onnx(folder: Path) -> None:
    """ONNX."""
    api.export_onnx(program(), folder / "model.onnx")


def program() -> api.Program:
    """The integers that were made."""
    return api.load_program(sample("quantize") / "model_satisfied.caplet")


def trace(folder: Path) -> None:
    """Float, fake-quant and Program, recorded."""
    plan = api.load_plan(sample("quantize") / "model_satisfied.caplet")
    pixels = data().test.images[:2].numpy()
    found = api.trace_levels(program(), pixels, api.parse_levels("float,fake,program"), model=model(), plan=plan)
    folder.mkdir(exist_ok=True)
    api.record_trace(folder, program(), found)


def verify(folder: Path) -> None:
    """The interpreter's two ways, recorded."""
    results = api.verify_engines(program(), data().test.images[:5].numpy(), ("interpreter",))
    folder.mkdir(exist_ok=True)
    api.record_verified(folder, program(), "digits", results)


def report(folder: Path) -> None:
    """The pages of three runs."""
    for name in ("train", "quantize", "prune"):
        write_report([sample(name)], folder / f"{name}.html")


JOBS: dict[str, tuple[Job, int]] = {
    "train": (train, 8),
    "finetune": (finetune, 8),
    "qat": (qat, 6),
    "prune": (prune, 10),
    "quantize": (quantize, 14),
    "sensitivity": (sensitivity, 14),
    "compress": (compress, 2),
    "export": (export, 12),
    "onnx": (onnx, 6),
    "trace": (trace, 7),
    "verify": (verify, 6),
    "report": (report, 7),
}
"""By name, and how many kills of a hundred it gets."""


def counted(work: Callable[[], object], at: int, after: bool, number: int, report: Path | None) -> Callable[[], None]:
    """``work``, sending its process a signal at the file operation ``at``; their number goes to the file ``report``."""

    def run() -> None:
        done = 0

        def watched(operation: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal done
                done += 1
                mine = done
                if mine == at and not after:
                    os.kill(os.getpid(), number)
                result = operation(*arguments, **options)
                if mine == at and after:
                    os.kill(os.getpid(), number)
                return result

            return call

        for name in OPERATIONS:
            setattr(os, name, watched(getattr(os, name)))
        work()
        if report is not None:
            report.write_text(str(done))

    return run


def in_child(work: Callable[[], object], number: int = 0, moment: float | None = None) -> str:
    """Do ``work`` in a forked process, which gets a signal after so many seconds; how it ended, "" if by itself."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:  # the parent has to go on, whatever it was
            if isinstance(error.__cause__, KeyboardInterrupt):  # while a class was made, in an import
                os._exit(130)
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if moment is not None:
        time.sleep(moment)
        os.kill(child, number)  # a process that has ended is still this one's child
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return {0: "", 130: "interrupted"}.get(os.WEXITSTATUS(status), "failed")


def left_by(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a run, without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not half_written(path):
            whole = b"" if path.name in UNCOMPARED else without_times(path)
            found[str(path.relative_to(folder))] = hashlib.sha256(whole).hexdigest()
    return found


def half_written(path: Path) -> bool:
    """Whether a file is what a killed process had not finished writing."""
    return path.name.startswith(".") and path.name.endswith(".part")


def without_times(path: Path) -> bytes:
    """The content of a file without what is measured in seconds."""
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        return b"\n".join(json.dumps(_timeless(json.loads(line)), sort_keys=True).encode() for line in lines)
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(content.decode()))
        return json.dumps([_timeless(row) for row in rows], sort_keys=True).encode()
    if path.suffix == ".safetensors":  # the notes stand in a text of JSON in the header, whose length they change
        size = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + size])
        head["__metadata__"] = {key: _timeless(json.loads(text)) for key, text in head["__metadata__"].items()}
        return json.dumps(head, sort_keys=True).encode() + content[8 + size :]
    return content


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


class Kill(NamedTuple):
    """A signal, before or after the file operation ``at``, or after so many seconds."""

    number: signal.Signals
    at: int = 0
    after: bool = False
    moment: float | None = None

    def __str__(self) -> str:
        if self.moment is not None:
            return f"{self.number.name} after {self.moment:.2f} s"
        return f"{self.number.name} {'after' if self.after else 'before'} operation {self.at}"


def drawn(draw: random.Random, whole: Mapping[str, Any]) -> list[Kill]:
    """One kill or two of a run at random."""
    kills = []
    for _ in range(1 + (draw.random() < 1 / 3)):
        number = draw.choice(SIGNALS)
        if draw.random() < 0.5:
            kills.append(Kill(number, draw.randint(1, whole["operations"]), draw.random() < 0.5))
        else:
            kills.append(Kill(number, moment=draw.uniform(0, whole["seconds"])))
    return kills


def trial(name: str, kills: list[Kill], whole: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A run that is killed and then goes on to its end; JSON values.

    Args:
        whole: seconds, number of file operations, and files of an uninterrupted run.
    """
    work, told = JOBS[name][0], list[str]()
    for kill in kills:
        if kill.moment is None:
            ended = in_child(counted(lambda: work(folder), kill.at, kill.after, kill.number, None))
        else:
            ended = in_child(lambda: work(folder), kill.number, kill.moment)
        told.append(str(kill) + {"": " (it had ended by then)", "failed": " (the run failed)"}.get(ended, ""))
        if not ended:
            break
    ended = in_child(lambda: work(folder))
    found, expected = left_by(folder), whole["files"]
    different = sorted(path for path in {*expected, *found} if expected.get(path) != found.get(path))
    different += [f"the run that went on: {ended}"] if ended else []
    return {"job": name, "kills": told, "different": different, "half": sum(map(half_written, folder.rglob("*")))}


def uninterrupted(name: str, folder: Path, report: Path) -> dict[str, Any]:
    """Seconds, number of file operations and files of a whole run."""
    began = time.perf_counter()
    if in_child(counted(lambda: JOBS[name][0](folder), 0, False, 0, report)):
        raise SystemExit(f"{name} failed")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "operations": int(report.read_text()), "files": left_by(folder)}


def trials(names: list[str], wholes: Mapping[str, Any], seed: int, every: bool) -> Iterator[tuple[str, list[Kill]]]:
    """Jobs and their kills: before each operation of each job, or at random without end."""
    if every:
        yield from (
            (name, [Kill(signal.SIGKILL, at)]) for name in names for at in range(1, wholes[name]["operations"] + 1)
        )
        return
    for number in count():
        draw = random.Random(f"{seed}/{number}")
        name = draw.choices(names, [JOBS[name][1] for name in names])[0]
        yield name, drawn(draw, wholes[name])


def run(
    kills: int, only: str, seed: int, every: bool, part: slice, out: Path, work: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All trials of a part, those that the log has included, and the uninterrupted runs."""
    from rich.progress import Progress

    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    names = [name for name in JOBS if any(part in name for part in only.split(","))]
    SAMPLES[0] = work / "samples"
    others = set(names) - {"train", "finetune", "prune", "quantize", "sensitivity", "compress"}
    for name in ("train", "quantize", "prune") if others else ("train",):
        in_child(lambda name=name: JOBS[name][0](sample(name)))  # type: ignore[misc]  # bound now, called now
    wholes = {name: uninterrupted(name, work / f"whole-{name}", work / "count") for name in names}
    with out.open("a") as log, Progress(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("kills", total=kills)
        mine = islice(enumerate(trials(names, wholes, seed, every)), part.start, None, part.step)
        for number, (name, chosen) in islice(mine, len(rows), None):
            if (done := sum(len(row["kills"]) for row in rows)) >= kills:
                break
            bar.update(task, completed=done)
            folder = work / "trial"
            shutil.rmtree(folder, ignore_errors=True)
            row = {"number": number, **trial(name, chosen, wholes[name], folder)}
            rows.append(row)
            log.write(json.dumps(row) + "\n")
            log.flush()
            if row["different"]:
                print(json.dumps(row), file=sys.stderr, flush=True)
    return rows, wholes


def part_of(text: str) -> slice:
    """Which trials ``K/N`` stands for."""
    first, step = map(int, text.split("/"))
    return slice(first, None, step)


def main() -> int:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="signals sent in all, those of an earlier call included")
    parser.add_argument("--only", default="", help="only jobs whose name holds this; several with commas")
    parser.add_argument(
        "--every", action="store_true", help="SIGKILL before each file operation, in order, not at random"
    )
    parser.add_argument("--part", type=part_of, default="0/1", help="K/N: of all trials only K, K + N, K + 2 N, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("kills.jsonl"), help="the log, which a later call goes on with"
    )
    parser.add_argument("--record", type=Path, help="the record; default: stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        rows, wholes = run(
            options.kills, options.only, options.seed, options.every, options.part, options.out, Path(name)
        )
    sent = Counter[tuple[str, str]]()
    for row in rows:
        for kill in row["kills"]:
            sent[row["job"], "late" if "had ended" in kill else kill.split()[0]] += 1
    record = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/kills.py", *sys.argv[1:]]),
        "version": caplet.__version__,
        "python": platform.python_version(),
        "signals_sent": sum(len(row["kills"]) for row in rows),
        "of_them_after_the_end": sum(number for (_, kind), number in sent.items() if kind == "late"),
        "trials": len(rows),
        "equal": sum(not row["different"] for row in rows),
        "half_written_files_left": sum(row["half"] for row in rows),
        "jobs": {
            job: {
                "operations_of_a_run": whole["operations"],
                "seconds_of_a_run": round(whole["seconds"], 2),
                "files_compared": len(whole["files"]),
                "signals": {kind: number for (other, kind), number in sorted(sent.items()) if other == job},
            }
            for job, whole in wholes.items()
        },
        "different": [row for row in rows if row["different"]],
    }
    text = json.dumps(record, indent=1) + "\n"
    if options.record is None:
        print(text, end="")
    else:
        options.record.write_text(text)
    return 1 if record["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
