"""The training checkpoint: everything a run needs to go on exactly where it was."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from caplet.data.splits import Splits
from caplet.errors import ArtefactError, ConfigError
from caplet.files import access, check_regular, write_bytes
from caplet.train.settings import LoopSettings

FORMAT, VERSION = "caplet-training", 1
SHUFFLE, AUGMENT, INITIALISE, VIEW = range(4)
"""What a random draw is for; part of its key."""


def generator(*key: int) -> torch.Generator:
    """A generator whose seed is a hash of ``key``."""
    (seed,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


@dataclass
class Position:
    """Where a run is. Random draws depend on (seed, epoch, step) alone, so no generator state is needed beside this.

    Attributes:
        epoch, step: the next step to run: epoch from 0, step within it from 0.
        sums: sums over the epoch's steps so far: ``loss``, ``margin``, ``reconstruction``, ``accuracy``
            (each times the batch size), ``images``, ``seconds``; ``distillation`` likewise.
        history: one record per finished epoch.
        best_accuracy, best_epoch: of the epoch whose weights are kept; -1 before the first.
        waited: epochs since the calibration accuracy last rose.
        stopped: the run ended early for lack of patience.
        votes_at_once: images of which votes are kept at once; None for a batch's.
        seconds, images: time spent training (all parts of a resumed run) and images trained on.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_accuracy: float = -1.0
    best_epoch: int = -1
    waited: int = 0
    stopped: bool = False
    seconds: float = 0.0
    images: int = 0
    votes_at_once: int | None = None


def fingerprint(settings: LoopSettings, splits: Splits) -> dict[str, str]:
    """What must be equal for a run to be resumed, by name: every setting, and the data's hashes."""
    made = {name: json.dumps(value, sort_keys=True) for name, value in settings.model_dump(mode="json").items()}
    for split in (splits.train, splits.calibration):
        made[f"data of split {split.name.rsplit('/', 1)[-1]!r}"] = split.sha256()
    return made


def save_state(path: Path, position: Position, made: dict[str, str], tensors: dict[str, Any]) -> None:
    """Write the checkpoint: it is there whole or not at all, and an older one stays until then.

    Args:
        tensors: state dicts by name (``model``, ``average``, ``optimizer``, ...); they are written as CPU tensors.

    Raises:
        ArtefactError: the file cannot be written.
    """
    record = {"format": FORMAT, "version": VERSION, "made": made, "position": vars(position), **on_cpu(tensors)}
    stream = io.BytesIO()  # written to a file by torch itself, a full disk would be an error without a reason
    torch.save(record, stream)
    write_bytes(path, stream.getbuffer(), "the training checkpoint")


def on_cpu(value: Any) -> Any:
    """A dict with tensors of any device, at any depth, as one with tensors of the CPU; itself if it has no others."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        moved = type(value)((key, on_cpu(each)) for key, each in value.items())
        getattr(moved, "__dict__", {}).update(getattr(value, "__dict__", {}))  # of a state dict, its version
        return value if all(moved[key] is each for key, each in value.items()) else moved
    return value


def load_state(path: Path, made: dict[str, str], settings: LoopSettings) -> tuple[Position, dict[str, Any]]:
    """Read a checkpoint and make sure that it belongs to this run. Nothing in the file can run code.

    Args:
        made: what must be equal; settings that the file does not know yet had their defaults' effect.

    Returns:
        The position, and the state dicts by name.

    Raises:
        ArtefactError: the file is unreadable, damaged or not a training checkpoint.
        ConfigError: it was made with other settings or other data; the message names them.
    """
    check_regular(path, "the training checkpoint")
    fields = type(settings).model_fields.items()  # a setting that did not exist yet had the effect of its default
    before = {name: json.dumps(field.default) for name, field in fields if not field.is_required()}
    try:
        with access("read the training checkpoint", path):
            record = torch.load(path, map_location="cpu", weights_only=True)
        known = record["format"], record["version"]
        before |= TypeAdapter(dict[str, str]).validate_python(record["made"])
        position = TypeAdapter(Position).validate_python(record["position"])
    except ArtefactError:
        raise
    except Exception as error:  # a malformed pickle can fail in any way; nothing of it has been executed
        raise ArtefactError(f"{path} is damaged or not a training checkpoint; delete it to start anew") from error
    if known != (FORMAT, VERSION):
        raise ArtefactError(f"{path} is not a training checkpoint of this version of caplet; delete it to start anew")
    if before.get("exponents") == '"refit"':
        before["exponents"] = '"recalibrate"'  # its earlier name
    changed = [name for name in {**made, **before} if before.get(name) != made.get(name)]
    if changed:
        raise ConfigError(f"cannot resume {path}: {'; '.join(_change(n, before, made) for n in changed)}")
    tensors = {key: value for key, value in record.items() if key not in ("format", "version", "made", "position")}
    return position, tensors


def _change(name: str, before: dict[str, str], now: dict[str, str]) -> str:
    if name.startswith("data"):
        return f"the {name} is not the same"
    return f"setting {name!r} was {before.get(name, 'absent')}, now {now.get(name, 'absent')}"
