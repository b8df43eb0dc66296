"""Run folders: everything a run leaves behind, each file written whole or not at all."""

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from caplet.errors import ArtefactError, ConfigError
from caplet.files import LOCK, access, locked, read_json, write_bytes, write_json

SETTINGS, ENVIRONMENT, SPLITS, METRICS = "settings.json", "environment.json", "splits.json", "metrics.json"
_UNFINISHED = ".part"
RUNNING = f".run{_UNFINISHED}"
"""In the folder from a run's start to its end: where it is left, the run stopped, and other files may be older."""
_TODO = "delete the folder or use --force"
T = TypeVar("T")
_PACKAGES = ("caplet", "numpy", "torch", "torchvision", "safetensors", "scipy", "scikit-learn")


def write_record(path: Path, data: Any) -> None:
    """Write dataclasses and JSON values, indented and in the order of names. Raises ArtefactError where it cannot."""
    write_json(path, plain(data), sort_keys=True)


def plain(data: Any) -> Any:
    """JSON values, as a file would give them back, of dataclasses, tuples and JSON values in each other."""
    return json.loads(json.dumps(data, default=asdict))


def read_record(path: Path, kind: type[T]) -> T:
    """Read a JSON file of a run folder; see :func:`typed`. Raises ArtefactError when it is missing or damaged, too."""
    return typed(kind, read_json(path, todo=_TODO), str(path))


def typed(kind: type[T], data: Any, what: str) -> T:
    """JSON values as ``kind``: a dataclass, of which they may have more names than its fields, a list, a table.

    Args:
        what: what they are, for the message.

    Raises:
        ArtefactError: one of another form, as in damaged records or those of another version.
    """
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise _other(what, f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")) from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Values in records that contradict each other become one ArtefactError about ``what``."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _other(what, f"{type(error).__name__}: {error}") from error


def _other(what: str, why: str) -> ArtefactError:
    return ArtefactError(
        f"{what} is not what this version of caplet writes ({why}); {_TODO}, or use the version that made it"
    )


def remove(path: Path) -> None:
    """Remove a file or a folder that an earlier run left, if it is there. Raises ArtefactError when it cannot be."""
    with access("remove", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


@contextmanager
def open_run(
    path: str | Path, settings: dict[str, Any], *, resume: bool = False, force: bool = False, shared: bool = False
) -> Iterator[Path]:
    """Open a run folder for writing and keep other processes out of it for the duration of the ``with`` block.

    What can be checked without the folder is checked before it is opened: a mistake in the settings must not cost the
    results of an earlier run, nor leave a folder behind.

    Args:
        path: created with its parents.
        settings: the resolved settings, JSON values; written to ``settings.json``.
        resume: the folder may hold an earlier part of the same run; its settings must be equal.
        shared: several processes work on the run: wait for the folder, and join a run that has not come to its end.
        force: the folder may hold anything; files of the new run replace files of the same name, one by one.

    Raises:
        ArtefactError: the folder is not empty (and neither ``resume`` nor ``force``), is in use, or cannot be written;
            ``resume`` in a folder that holds something else than a run.
        ConfigError: ``resume`` with other settings (the message names the first that differs), or with ``force``.
    """
    run = Path(path)
    if resume and force:
        raise ConfigError("--resume goes on with a run and --force overwrites it; give one of them")
    settings = plain(settings)
    with locked(run, "--out", wait=shared):
        occupied = sorted(name for name in os.listdir(run) if name != LOCK and not _unfinished(name))
        joins = shared and not force and METRICS not in occupied
        if (resume or joins) and SETTINGS in occupied:
            _check_same(run, settings)
        elif resume and occupied:
            raise ArtefactError(
                f"the folder {run} holds no run to resume (it has {occupied[0]}, but no {SETTINGS});"
                " choose the --out of the interrupted run"
            )
        elif occupied and not force:
            raise ArtefactError(
                f"the folder {run} is not empty ({occupied[0]}, ...); use --resume to go on with the run in it,"
                " --force to overwrite it, or choose another --out"
            )
        write_record(run / SETTINGS, settings)
        write_record(run / ENVIRONMENT, environment())
        for name in os.listdir(run):  # also the mark of a run that stopped; with force, what would be resumed from
            if _unfinished(name) or (force and name.endswith((".jsonl", ".ckpt"))):
                remove(run / name)
        write_bytes(run / RUNNING, b"")
        yield run
        remove(run / RUNNING)


@dataclass(frozen=True)
class Environment:
    """Versions and machine of a process; nothing that names the user or a path but the command."""

    command: str
    started: str
    python: str
    system: str
    machine: str
    cores: int | None
    packages: dict[str, str | None]


def environment() -> Environment:
    """Of this process."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return Environment(
        shlex.join(["caplet", *sys.argv[1:]]),
        datetime.now(UTC).isoformat(timespec="seconds"),
        platform.python_version(),
        platform.system(),
        platform.machine(),
        os.cpu_count(),
        versions,
    )


def is_finished(run: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    return (run / METRICS).exists() and not (run / RUNNING).exists()


def _check_same(run: Path, settings: dict[str, Any]) -> None:
    before, now = _flat(read_record(run / SETTINGS, dict)), _flat(settings)
    if "job" not in before:  # begun by a version that did not write it
        now.pop("job", None)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"cannot resume {run}: setting {key!r} was {before.get(key)!r} and is now {now.get(key)!r};"
                " use the same settings, model and data, or --force to start again"
            )


RENAMED = {"equalise": "equalization", "exponents": "scales", "channels": "per-channel", "joint": "end-to-end"}
"""Parts of reconstruction that had other names in older runs; ``recalibrate`` was called ``refit``."""


def _flat(settings: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Settings by dotted name, tables of settings opened.

    >>> _flat({"a": 1, "limits": {"flash": 2}})
    {'a': 1, 'limits.flash': 2}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "reconstruct" and isinstance(value, list):
            value = [RENAMED.get(str(part), part) for part in value]
        elif key == "fit" and isinstance(value, str):
            value = ",".join(RENAMED.get(part, part) for part in value.split(","))
        elif key == "exponents" and value == "refit":
            value = "recalibrate"
        found |= _flat(value, f"{place}{key}.") if isinstance(value, dict) and value else {f"{place}{key}": value}
    return found


def _unfinished(name: str) -> bool:
    """Whether a file is what a killed process had not finished writing."""
    return name.startswith(".") and name.endswith(_UNFINISHED)


def sweep(folder: Path) -> None:
    """Remove, in a folder and those below it, what a killed process had not finished writing; marks of runs stay.

    Raises ArtefactError where a file cannot be removed.
    """
    for path in list(folder.rglob(f".*{_UNFINISHED}")):
        if path.name != RUNNING:
            remove(path)
