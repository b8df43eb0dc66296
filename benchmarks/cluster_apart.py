"""A Dask cluster whose scheduler, two workers and client are in network namespaces of their own, joined by a bridge.

    sudo env PATH="$PATH" python benchmarks/cluster_apart.py --out record.json

``caplet quantize`` of a shipped network on digits, by one process, then by the cluster: undisturbed; a worker killed,
or its link cut, in the middle; the scheduler killed, or the link of the client cut, in the middle. The first three must
leave the bytes of one process, the last two end with one line. A link that is cut is silent: nobody is told. Linux with
iproute2, as root.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

BRIDGE, HOST, PORT = "capbridge", "10.77.0.{}", 8786
NAMES = ("scheduler", "one", "two", "client")
SAME = ("tuning.jsonl", "sensitivities.jsonl", "search.json", "plan_satisfied.json", "model_satisfied.caplet")
LIMIT = 1200.0


def ip(words: str) -> None:
    """Run iproute2."""
    subprocess.run(["ip", *words.split()], check=True)


@contextmanager
def network() -> Iterator[None]:
    """A bridge, and a namespace for each of :data:`NAMES`: number n has the address 10.77.0.n + 1."""
    try:
        ip(f"link add {BRIDGE} type bridge")
        ip(f"link set {BRIDGE} up")
        for number, name in enumerate(NAMES, 1):
            ip(f"netns add cap-{name}")
            ip(f"link add cap{number} type veth peer name eth0 netns cap-{name}")
            ip(f"link set cap{number} master {BRIDGE} up")
            ip(f"-n cap-{name} addr add {HOST.format(number)}/24 dev eth0")
            for device in ("eth0", "lo"):
                ip(f"-n cap-{name} link set {device} up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", f"cap-{name}"], check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], check=False)


def start(name: str, *words: str, log: Path) -> "subprocess.Popen[bytes]":
    """A Python module's command in a namespace."""
    command = ["ip", "netns", "exec", f"cap-{name}", sys.executable, "-m", *words]
    return subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def files(run: Path) -> dict[str, Any]:
    """What must be equal; of evaluations all but their seconds."""
    probes = [{**json.loads(line), "seconds": 0} for line in (run / "probes.jsonl").read_text().splitlines()]
    return {name: (run / name).read_bytes() for name in SAME} | {"probes": probes}


def case(folder: Path, name: str, model: str, reference: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
    """One command with ``name``'s disturbance; what came of it, and its files."""
    folder.mkdir()
    run, address = folder / "run", f"tcp://{HOST.format(1)}:{PORT}"
    processes: dict[str, subprocess.Popen[bytes]] = {}
    ask = ["caplet", "quantize", model, "--data", "digits", "--calibration-size", "300", "--tolerance", "5"]
    ask += ["--accept", "measured", "--effort", "quick", "--engine", "interpreter", "--out", str(run)]
    try:
        if name != "one process":
            words = ("scheduler", "--host", HOST.format(1), "--port", str(PORT), "--no-dashboard")
            processes["scheduler"] = start("scheduler", "distributed.cli.dask_scheduler", *words[1:], log=folder / "s")
            for worker in ("one", "two"):
                more = ("--nworkers", "1", "--nthreads", "1", "--no-nanny", "--no-dashboard")
                processes[worker] = start(worker, "distributed.cli.dask_worker", address, *more, log=folder / worker)
            wait(lambda: all("Registered to" in (folder / each).read_text() for each in ("one", "two")))
        who = ("--workers", "1") if name == "one process" else ("--cluster", address)
        began = time.perf_counter()
        client = processes["client"] = start("client", *ask, *who, log=folder / "client")
        disturbed = disturb(name, run, processes)
        client.wait(LIMIT)
        seconds = time.perf_counter() - began
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
        for number in range(1, len(NAMES) + 1):
            ip(f"link set cap{number} up")
    told = (folder / "client").read_text().strip().splitlines()
    found = files(run) if client.returncode == 0 else None
    row = {"case": name, "exit": client.returncode, "seconds": round(seconds, 1), "said": told[-1] if told else ""}
    row |= {"disturbed_after_rows": disturbed, "equal": None if found is None or not reference else found == reference}
    return row, found


def wait(for_: Callable[[], bool]) -> None:
    """Until something holds. Raises TimeoutError."""
    end = time.monotonic() + LIMIT
    while not for_():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


def disturb(name: str, run: Path, processes: "dict[str, subprocess.Popen[bytes]]") -> int | None:
    """Once some noises are measured, kill a process or cut a link; how many there were."""
    what, _, who = name.partition(" of ")
    if not who:
        return None
    log = run / "sensitivities.jsonl"
    wait(lambda: processes["client"].poll() is not None or (log.exists() and log.read_bytes().count(b"\n") > 8))
    if what == "kill":
        processes[who].kill()
    else:
        ip(f"link set cap{NAMES.index(who) + 1} down")
    return log.read_bytes().count(b"\n")


def main() -> None:
    """Run all cases, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="trained:digits")
    parser.add_argument("--out", type=Path, default=Path("cluster_apart.json"))
    parser.add_argument("--case", action="append", help="only these")
    arguments = parser.parse_args()
    cases = ("undisturbed", "kill of one", "cut of one", "kill of scheduler", "cut of client")
    rows = []
    with network(), TemporaryDirectory() as folder:
        _, reference = case(Path(folder) / "reference", "one process", arguments.model, None)
        for name in arguments.case or cases:
            row, _ = case(Path(folder) / name.replace(" ", "-"), name, arguments.model, reference)
            rows.append(row)
            print(rows[-1], flush=True)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cases": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    good = [row["equal"] if row["case"] in cases[:3] else row["exit"] == 3 for row in rows]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
