"""Mutated ``.caplet`` files: how many were refused, how many loaded and ran, and that nothing else happened.

Runs ``tests/program/fuzz_program_file.py``, which says how files are mutated; any other outcome ends it with a
traceback and without a record. Counts, the slowest load and the process's peak memory are recorded.

    python benchmarks/hostile_files.py                         # 100,000 files; five minutes on an idle core
    python benchmarks/hostile_files.py --files 2000 --no-record
"""

import argparse
import json
import platform
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

RECORDS = Path(__file__).parent / "records"
SCRIPT = Path(__file__).parent.parent / "tests" / "program" / "fuzz_program_file.py"


def main() -> int:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(options.seed), str(options.files)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        return done.returncode
    counts = json.loads(done.stdout)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "benchmarks/hostile_files.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        **counts,
        "other_outcomes": counts["files"] - counts["refused"] - counts["ran"],
        "peak_memory_kib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }
    print(json.dumps(record, indent=1))
    if not options.no_record:
        path = RECORDS / f"{record['date']}-hostile-files.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
