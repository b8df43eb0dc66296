"""Native float checkpoints: one safetensors file with the tensors, the settings that rebuild the model, and notes.

The file holds every parameter and batch-norm buffer under the names of :func:`caplet.models.assemble.named_tensors`,
and one metadata entry, ``caplet``: JSON with ``format``, ``version``, ``family``, ``config`` and the caller's
``metadata``. Equal models and metadata give equal bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from caplet.errors import ModelError
from caplet.files import write_bytes
from caplet.models.assemble import ImageSize, assemble, named_tensors
from caplet.models.base import CapsNet
from caplet.models.importers import import_model
from caplet.models.importers.files import damaged, is_safetensors_file, read_head

FORMAT, VERSION = "caplet-model", 1
_KEY = "caplet"


def save_model(model: CapsNet, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a float checkpoint; the file is there whole or not at all, and an older one is replaced only at the end.

    Args:
        path: by convention ``*.safetensors``; a missing folder is created.
        metadata: JSON values to keep (dataset, accuracy, ...) beside what its ``notes`` have of classes and ``stated``.

    Raises:
        ArtefactError: no permission, disk full, a file in the place of its folder.
        TypeError: ``metadata`` is not JSON-able (a mistake in the calling program).
    """
    kept = {key: model.notes[key] for key in ("stated", "classes") if model.notes.get(key)}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "family": model.family,
        "config": model.config.model_dump(mode="json"),
        "metadata": {**kept, **(metadata or {})},
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors(model).items()}
    content = save(tensors, {_KEY: text})
    write_bytes(path, content, todo="nothing was changed there")


def load_model(
    path: str | Path, image_size: ImageSize | None = None, assume: Mapping[str, Any] | None = None
) -> CapsNet:
    """Read a float model: a native checkpoint, or any foreign format that :func:`import_model` knows, by content.

    Args:
        image_size: for foreign files that leave it open, see :func:`caplet.models.importers.import_model`; for a
            native one it must be what the file says.
        assume: for foreign files, what they do not say; as there.

    Returns:
        The model, float32, in evaluation mode.

    Raises:
        ModelError: missing, truncated or unknown file, tensors that do not fit the settings, NaN weights, ...
    """
    path = Path(path)
    found = _read(path) if is_safetensors_file(read_head(path)) else None
    if found is None:
        return import_model(path, image_size, assume)
    if assume:
        raise ModelError(f"{path}: a caplet model, which says everything itself; leave --assume out")
    family, config, notes, tensors = found
    model = assemble(family, config, tensors, str(path))
    own = ("assumed", "stated", "read")
    model.notes = {key: value for key, value in notes.items() if key not in own or isinstance(value, dict)}
    asked = (image_size, image_size) if isinstance(image_size, int) else image_size
    if asked is not None and asked != model.config.image[1:]:
        rows, columns = model.config.image[1:]
        raise ModelError(f"{path}: the model is for {rows}x{columns} images, {asked[0]}x{asked[1]} was asked for")
    return model


def _read(path: Path) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Tensor]] | None:
    """Family, settings, notes and tensors; None where another program wrote the file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                return None
            return *_described(metadata, path), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None


def _described(stored: Mapping[str, str], path: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    try:
        header = json.loads(stored[_KEY])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelError(f"{path}: a safetensors file, but not a caplet model (no {FORMAT} in it); save it with caplet")
    if header.get("version") != VERSION:
        found = header.get("version")
        raise ModelError(f"{path}: model file version {found!r}, this caplet reads version {VERSION}; update caplet")
    family, config, metadata = header.get("family"), header.get("config"), header.get("metadata")
    if not isinstance(family, str) or not isinstance(config, dict) or not isinstance(metadata, dict):
        raise ModelError(f"{path}: its description lacks family, config or metadata; the file is damaged")
    return family, config, metadata
