"""Print how many lines of each file the tests ran, from SlipCover's JSON, and fail below the floor.

    python .ci/coverage.py build/coverage.json

SlipCover has such a floor, too, but reads the workers' figures twice with it, and finds none the second time.
"""

import json
import sys
from pathlib import Path

FLOOR = 95.0
"""Percent of the lines of src/caplet."""

files = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["files"]
ran = {name: (len(found["executed_lines"]), len(found["missing_lines"])) for name, found in files.items()}
for name, (executed, missing) in sorted(ran.items()):
    if missing:
        lines = ", ".join(map(str, files[name]["missing_lines"]))
        print(f"{name:50} {executed + missing:5} lines, {missing:4} missing: {lines:.80}")
executed, missing = (sum(column) for column in zip(*ran.values(), strict=True))
percent = 100 * executed / (executed + missing)
print(f"{executed:,} of {executed + missing:,} lines were run, {percent:.1f} % (floor {FLOOR:g} %)")
sys.exit(0 if percent >= FLOOR else 2)
