"""Print the lowest version that pyproject.toml allows of every dependency, as pip constraints."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"

for requirement in tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]:
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
    if found is None:
        raise SystemExit(f"{PROJECT}: dependency {requirement!r} has no lowest version")
    print(f"{found[1]}=={found[2]}")
