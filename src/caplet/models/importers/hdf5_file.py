"""Weights from Keras HDF5 files: float datasets by layer, bounded in size; links and other files are not followed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import first_line, listed, shape_text

SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: Keras stores weights uncompressed; this leaves room for a file that was repacked with compression.
MOST_EXPANSION = 16


@dataclass
class LayerWeights:
    """The tensors of one Keras layer, float32: its ``kernel``, its ``bias`` and any others by name."""

    name: str
    kernel: Tensor | None = None
    bias: Tensor | None = None
    others: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        named = {"kernel": self.kernel, "bias": self.bias, **self.others}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True)
class KerasFile:
    """The layers that have weights, in the model's order, and the model's description if the file has one."""

    layers: tuple[LayerWeights, ...]
    config: Mapping[str, Any] | None


def is_hdf5_file(head: bytes) -> bool:
    """Whether a file starts as an HDF5 file does."""
    return head.startswith(SIGNATURE)


def read_keras(path: Path) -> KerasFile:
    """Read a Keras model (``model.save``) or weights (``model.save_weights``) in HDF5.

    Raises:
        ModelError: truncated or damaged; no weights; a dataset that is not of plain floats, that lives in another file,
            or that declares more data than the file can hold.
    """
    try:
        with h5py.File(path, "r") as file:
            root = file["model_weights"] if _is_group(file, "model_weights") else file
            return KerasFile(_layers(root, path), _config(file, path))
    except ModelError:
        raise
    except Exception as error:  # the HDF5 library reports damage by many exception types
        raise ModelError(f"{path}: damaged or truncated HDF5 file ({first_line(error)}); download it again") from None


def _is_group(parent: h5py.Group, name: str) -> bool:
    return isinstance(parent.get(name, getlink=True), h5py.HardLink) and isinstance(parent[name], h5py.Group)


def _layers(root: h5py.Group, path: Path) -> tuple[LayerWeights, ...]:
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer_weights/"):
            found[name] = item

    root.visititems(visit)  # hard links only
    room = MOST_EXPANSION * path.stat().st_size
    layers: dict[str, LayerWeights] = {}
    for name, dataset in found.items():
        room -= _check(name, dataset, room, path)
        layer, _, rest = name.partition("/")
        entry = layers.setdefault(layer, LayerWeights(layer))
        tensor = torch.from_numpy(np.asarray(dataset[()], dtype=np.float32))
        leaf = rest.rsplit("/", 1)[-1].removesuffix(":0")
        if leaf == "kernel" and entry.kernel is None:
            entry.kernel = tensor
        elif leaf == "bias" and entry.bias is None:
            entry.bias = tensor
        else:
            entry.others[rest or name] = tensor
    if not layers:
        raise ModelError(f"{path}: an HDF5 file without weights; save a Keras model or its weights into it")
    order = {name: place for place, name in enumerate(_names(root))}
    return tuple(sorted(layers.values(), key=lambda layer: (order.get(layer.name, len(order)), layer.name)))


def _check(name: str, dataset: h5py.Dataset, room: int, path: Path) -> int:
    where = f"{path}: dataset {listed([name])}"
    if dataset.dtype.kind not in "fiu" or dataset.shape is None:
        raise ModelError(f"{where} is of type {dataset.dtype}, not numbers; weights are plain floats")
    if 0 in dataset.shape:
        raise ModelError(f"{where} is empty (shape {shape_text(dataset.shape)}); the file is damaged")
    if dataset.is_virtual or dataset.external:
        raise ModelError(f"{where} keeps its data in another file, which is not read; save the model into one file")
    size = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
    if size > room:
        raise ModelError(
            f"{where} declares shape {shape_text(dataset.shape)}, {size:,} bytes, but the file has only"
            f" {path.stat().st_size:,}; it is damaged or crafted"
        )
    return size


def _names(root: h5py.Group) -> list[str]:
    return [_text(name) for name in np.ravel(root.attrs["layer_names"])] if "layer_names" in root.attrs else []


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _config(file: h5py.File, path: Path) -> Mapping[str, Any] | None:
    if "model_config" not in file.attrs:
        return None
    try:
        config = json.loads(_text(file.attrs["model_config"]))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its model_config is not JSON ({first_line(error)}); the file is damaged") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: its model_config is a {type(config).__name__}, not a description of a model")
    return config
