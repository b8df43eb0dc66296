"""Damaged files of every kind that caplet reads: each is read, or refused by a CapletError of one line; nothing else.

    python benchmarks/hostile_files.py --count 200000 --out hostile.jsonl          # goes on where hostile.jsonl ends
    python benchmarks/hostile_files.py --count 500 --only "PyTorch archive" --out one.jsonl
    python benchmarks/hostile_files.py --again 4711                                # one file, with its traceback

``mutations.py`` damages, ``hostile_kinds.py`` has the sound files and what reads them. File number n of a seed is
always the same. A process forked from this one reads :data:`CHUNK` files, one after another; it may take 1 GB of memory
more than it has when it begins, and 10 seconds of the processor for a file (60 where a whole job goes on), or
:data:`PATIENCE` times that by the clock, which other programs slow down. Counted as a fault are: another exception than
a CapletError, one of several lines, too much memory, an end of the process, too long a time, and text on stdout or
stderr. Libraries' warnings are off, as the command line has them.

A fault is looked at again in a process of its own, its file is kept in the folder OUT.kept, and OUT gets a line of JSON
for each CHUNK. Where memory was asked for, also where an error message was made of its refusal, the second process gets
all it asks for: a file of which it then uses less than 1 GB counts as ``asked``, and is no fault. POSIX only.
"""

import argparse
import importlib
import json
import logging
import os
import platform
import random
import re
import resource
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from hostile_kinds import KINDS, Kind, in_cache, make_samples, samples, targets
from mutations import FORMS, mutate

import caplet
from caplet.errors import CapletError

RECORDS = Path(__file__).parent / "records"
CHUNK = 500
OUTCOMES = ("read", "refused", "asked", "fault")
MEMORY = 1 << 30
PATIENCE = 6
_TOO_MUCH = re.compile(r"allocate|out of memory|bad_alloc|MemoryError|not enough memory", re.I)


def forged(draw: random.Random, data: bytes) -> bytes:
    """A ``.caplet`` file with a changed document and a right checksum; ``data`` is the one that the tests make."""
    found: bytes = importlib.import_module("fuzz_program_file").forged(draw)
    return found


FORMS["forged"] = forged


class Files:
    """The damaged files of a seed by number.

    Args:
        only: a part of the names of the kinds; "" for all.
    """

    def __init__(self, seed: int, only: str) -> None:
        self.seed = seed
        self.kinds = {name: kind for name, kind in KINDS.items() if only in name}
        self.targets = {name: targets(kind) for name, kind in self.kinds.items()}
        assert all(self.targets.values()), [name for name, found in self.targets.items() if not found]

    def draw(self, number: int) -> tuple[str, Kind, Path, bytes]:
        """Name and kind of a file, where in the kind's folder it belongs, and its bytes."""
        draw = random.Random(f"{self.seed}/{number}")
        name = draw.choices(list(self.kinds), [kind.weight for kind in self.kinds.values()])[0]
        kind = self.kinds[name]
        place = draw.choice(self.targets[name])
        whole = (samples() / kind.sample / place).read_bytes()
        with warnings.catch_warnings(action="ignore"):
            return name, kind, place, mutate(draw, whole, kind.form_of(place))


def look(drawn: tuple[str, Kind, Path, bytes], work: Path, printed: int, limited: bool) -> dict[str, Any]:
    """Read a damaged file by caplet; what came of it, JSON values.

    Args:
        drawn: see :meth:`Files.draw`.
        work: folder for copies of samples, which belongs to this process.
        printed: the descriptor of the file that stdout and stderr go to.
        limited: whether memory is; then what its refusal led to is a fault.
    """
    name, kind, place, data = drawn
    folder = work / kind.sample
    if not folder.exists():
        shutil.copytree(samples() / kind.sample, folder)
    (folder / place).write_bytes(data)
    error: BaseException | None = None
    began = processor()
    try:
        with in_cache(folder / "cache"):
            kind.read(folder, folder / place)
    except Exception as caught:
        error = caught
    found = {"kind": name, "seconds": round(processor() - began, 3), "fault": fault_of(error, limited)}
    if resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > MEMORY >> 10:
        found["fault"] = "memory of a child process"
    sys.stdout.flush()
    sys.stderr.flush()
    if size := os.fstat(printed).st_size:
        text = os.pread(printed, 300, 0).decode(errors="replace")
        found["fault"] = found["fault"] or f"printed: {text}"
        os.ftruncate(printed, 0)
        os.lseek(printed, 0, os.SEEK_SET)
        found["printed"] = size
    found["outcome"] = "fault" if found["fault"] else "read" if error is None else "refused"
    if found["fault"] and error is not None:
        found["where"] = [
            f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)
        ]
    if kind.writes:
        shutil.rmtree(folder)
    else:
        shutil.copy(samples() / kind.sample / place, folder / place)
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return found


def processor(process: int | None = None) -> float:
    """Seconds of the processor that a process and the children that it has waited for have taken; None for this one."""
    text = Path(f"/proc/{process or os.getpid()}/stat").read_text()
    return sum(map(int, text.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")


def fault_of(error: BaseException | None, limited: bool) -> str:
    """Why an exception is a fault of caplet's; empty where it is none."""
    if error is None:
        return ""
    text = f"{type(error).__name__}: {error}"
    cause: BaseException | None = error
    while cause is not None and limited:
        if isinstance(cause, MemoryError) or _TOO_MUCH.search(f"{type(cause).__name__} {cause}"):
            return f"memory: {text}"[:600]
        cause = cause.__cause__ or cause.__context__
    if not isinstance(error, CapletError):
        return text[:600]
    return f"several lines: {text}"[:600] if len(str(error).splitlines()) > 1 else ""


def child(files: Files, numbers: list[int], pipe: int, work: Path, limited: bool) -> None:
    """Look at some files and report each before and after; never returns."""
    printed = os.open(work / "printed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    if limited:
        resource.setrlimit(resource.RLIMIT_AS, (memory(os.getpid(), 0) + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(pipe, "w") as report:
        for number in numbers:
            drawn = files.draw(number)
            report.write(json.dumps({"begun": number, "limit": drawn[1].seconds}) + "\n")
            report.flush()
            report.write(json.dumps({"number": number, **look(drawn, work, printed, limited)}) + "\n")
            report.flush()
    os._exit(0)


def memory(process: int, which: int) -> int:
    """Bytes of memory that a process has asked for (0) or uses (1)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[which]) * resource.getpagesize()


def outcomes(files: Files, numbers: list[int], work: Path, limited: bool = True) -> Iterator[dict[str, Any]]:
    """What came of each file, read in as many processes as it takes; not ``limited``, used memory is watched."""
    while numbers:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        source, sink = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(source)
            os.setpgid(0, 0)
            try:
                child(files, numbers, sink, work, limited)
            except BaseException:
                traceback.print_exc()  # to the file that the text below is from
            finally:
                os._exit(1)
        os.close(sink)
        begun, ended, limit, spent = None, "", 60.0, 0.0
        lines, began, least = b"", time.monotonic(), memory(process, 1)
        while not ended:
            if not select.select([source], [], [], 1.0 if limited else 0.01)[0]:
                if processor(process) - spent > limit:
                    ended = f"hang: more than {limit:g} s of the processor"
                elif began + PATIENCE * limit <= time.monotonic():
                    ended = f"hang: more than {PATIENCE * limit:g} s"
                elif memory(process, 1) > least + MEMORY:
                    ended = "memory: more than 1 GB in use"
                continue
            piece = os.read(source, 1 << 16)
            if not piece:
                break
            *whole, lines = (lines + piece).split(b"\n")
            for line in map(json.loads, whole):
                began, spent, begun = time.monotonic(), processor(process), line.get("begun", begun)
                limit = line.get("limit", limit)
                if "number" in line:
                    begun, limit = None, 600.0  # to damage the next file is no work of caplet's
                    numbers = numbers[1:]
                    yield line
        if ended:
            os.killpg(process, signal.SIGKILL)
        os.close(source)
        status = os.waitpid(process, 0)[1]
        if numbers:
            text = (work / "printed").read_text(errors="replace")[-2000:]
            assert begun == numbers[0], f"before {numbers[0]}: {ended}, status {status}: {text}"
            code = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
            fault = ended or f"crash: {code}"
            yield {"number": begun, "kind": files.draw(begun)[0], "outcome": "fault", "seconds": limit, "fault": fault}
            numbers = numbers[1:]


def keep(files: Files, number: int, folder: Path) -> str:
    """Keep the damaged file for a person to look at; its name."""
    name, _, place, data = files.draw(number)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{place.name}"
    path.write_bytes(data)
    return path.name


def run(files: Files, count: int, out: Path, work: Path) -> tuple[Counter[tuple[str, str]], list[dict[str, Any]]]:
    """Look at the files 0 to ``count`` - 1 that the log does not know; counts by kind and outcome, and the faults."""
    from rich.progress import Progress

    counts, faults, done = Counter[tuple[str, str]](), list[dict[str, Any]](), set[int]()
    for line in map(json.loads, out.read_text().splitlines() if out.exists() else ()):
        if line["seed"] != files.seed or line["version"] != caplet.__version__:
            raise SystemExit(f"{out} is of seed {line['seed']}, caplet {line['version']}: choose another --out")
        counts.update({tuple(key.rsplit(": ", 1)): value for key, value in line["counts"].items()})
        faults += line["faults"]
        done |= set(range(line["from"], line["to"]))
    with out.open("a") as log, Progress(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("files", total=count, completed=len(done))
        for start in range(0, count, CHUNK):
            numbers = [number for number in range(start, min(start + CHUNK, count)) if number not in done]
            found, wrong, began = Counter[str](), list[dict[str, Any]](), time.perf_counter()
            spent, slowest = Counter[str](), dict[str, float]()
            for row in outcomes(files, numbers, work):
                kind, seconds = row["kind"], row["seconds"]
                found[f"{kind}: {row['outcome']}"] += 1
                spent[kind] += seconds
                slowest[kind] = max(seconds, slowest.get(kind, 0.0))
                if row["outcome"] == "fault":
                    wrong.append(row)
                bar.advance(task)
            for row in list(wrong):  # a process that has read many files has other memory, another state
                [alone] = outcomes(files, [row["number"]], work, False)
                row["alone"] = alone.get("fault") or "no fault"
                if row["fault"].startswith("memory: ") and not alone["fault"]:
                    wrong.remove(row)
                    found[f"{row['kind']}: fault"] -= 1
                    found[f"{row['kind']}: asked"] += 1
                    continue
                row["file"] = keep(files, row["number"], out.with_suffix(".kept"))
                print(f"{row['number']} {row['kind']}: {row['fault'][:200]}", file=sys.stderr)
            if numbers:
                place = {"from": numbers[0], "to": numbers[-1] + 1, "seed": files.seed, "version": caplet.__version__}
                times = {"seconds": round(time.perf_counter() - began, 1), "spent": spent, "slowest": slowest}
                log.write(json.dumps({**place, **times, "counts": found, "faults": wrong}) + "\n")
                log.flush()
                counts.update({tuple(key.rsplit(": ", 1)): value for key, value in found.items()})  # type: ignore[misc]
                faults += wrong
    return counts, faults


def again(files: Files, number: int, work: Path) -> None:
    """Read one file in this process, without limits, with everything that it prints."""
    name, kind, place, data = files.draw(number)
    folder = work / kind.sample
    shutil.copytree(samples() / kind.sample, folder)
    (folder / place).write_bytes(data)
    print(f"{name}: {place}, {len(data):,} bytes")
    with in_cache(folder / "cache"):
        try:
            kind.read(folder, folder / place)
        except CapletError as error:
            print(f"refused: {error}")
        else:
            print("read")


def main() -> int:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="files in all, those of an earlier call included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only kinds whose name holds this")
    parser.add_argument(
        "--out", type=Path, default=Path("hostile.jsonl"), help="the log, which a later call goes on with"
    )
    parser.add_argument("--samples", type=Path, help="folder for the sound files, which a later call finds again")
    parser.add_argument("--again", type=int, metavar="NUMBER", help="read this file alone, and show what happens")
    parser.add_argument("--record", type=Path, help="the record; default: none is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        make_samples(options.samples or Path(name) / "samples")
        files = Files(options.seed, options.only)
        if options.again is not None:
            again(files, options.again, Path(name) / "work")
            return 0
        began = time.perf_counter()
        counts, faults = run(files, options.count, options.out, Path(name) / "work")
        outcome = Counter[str]()
        for (_, what), number in counts.items():
            outcome[what] += number
        record = {
            "date": date.today().isoformat(),
            "command": shlex.join(["python", "benchmarks/hostile_files.py", *sys.argv[1:]]),
            "version": caplet.__version__,
            "python": platform.python_version(),
            "seed": options.seed,
            "files": counts.total(),
            "outcomes": dict(sorted(outcome.items())),
            "seconds_of_this_call": round(time.perf_counter() - began),
            "kinds": {
                kind: {what: counts[kind, what] for what in OUTCOMES}
                for kind in KINDS
                if any(counts[kind, what] for what in OUTCOMES)
            },
            "faults": [{key: row[key] for key in ("number", "kind", "fault", "alone")} for row in faults],
        }
    text = json.dumps(record, indent=1) + "\n"
    if options.record is None:
        print(text, end="")
    else:
        options.record.write_text(text)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
