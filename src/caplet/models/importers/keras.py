"""Keras files read as data: float datasets, bounded in size, and the description of the model.

Read are the HDF5 files of ``model.save`` and ``model.save_weights``, and Keras 3's archives (``.keras``) and weights
(``.weights.h5``). A file of weights is completed by the model's description (``model.to_json()``) in a file beside it.
"""

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import first_line, listed, shape_text
from caplet.models.importers.files import ZIP

SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: Keras stores weights uncompressed; this leaves room for a file that was repacked with compression.
MOST_EXPANSION = 16
#: The longest description that is read.
_MOST_TEXT = 1 << 24
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"

Layer = dict[str, Tensor]
"""The tensors of one Keras layer, float32: those of :data:`PARTS` by these names, any others by path in the layer."""
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
PARTS = ("kernel", "bias", *NORM)
LayerPath = tuple[str, ...]
"""The name of a layer, after those of the models that it is nested in."""


class KerasFile(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by path, such as ``"conv2d/conv2d/kernel"``.
        order: the names of the layers, those without weights too where the file lists them.
        config: the model's description, None where there is none.
        source: the name of the file that the description is from.
    """

    tensors: dict[str, Tensor]
    order: tuple[str, ...]
    config: Mapping[str, Any] | None
    source: str

    def layer(self, path: LayerPath) -> Layer:
        """The tensors of one layer, empty where it has none."""
        for prefix in ("/".join(path) + "/", f"{path[0]}/{path[-1]}/"):  # HDF5 leaves inner models out
            found: Layer = {}
            for name in (name for name in self.tensors if name.startswith(prefix)):
                rest = name.removeprefix(prefix)
                leaf = rest.rpartition("/")[2]
                found[leaf if leaf in PARTS and leaf not in found else rest] = self.tensors[name]
            if found:
                break
        return found


def is_keras_file(head: bytes, path: Path) -> bool:
    """Whether a file starts as an HDF5 file does, or is an archive of Keras 3."""
    if not head.startswith(ZIP):
        return head.startswith(SIGNATURE)
    try:
        with zipfile.ZipFile(path) as archive:
            return {_CONFIG, _WEIGHTS} <= set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_keras(path: Path) -> KerasFile:
    """Read a Keras model or its weights.

    Raises ModelError: truncated or damaged; no weights; a dataset that is not of plain floats, that lives in another
    file, or that declares more data than the file can hold; weights of Keras 3 without a description.
    """
    kind, config = "HDF5 file", None
    try:
        content = path.read_bytes()
        if not content.startswith(SIGNATURE):
            kind = "Keras archive"
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for name, most in ((_CONFIG, _MOST_TEXT), (_WEIGHTS, MOST_EXPANSION * len(content))):
                    if archive.getinfo(name).file_size > most:
                        raise ModelError(f"{path}: its {name} unpacks to more than {most:,} bytes; it is damaged")
                config = _parse(archive.read(_CONFIG), f"{path}: its {_CONFIG}")
                content = archive.read(_WEIGHTS)
        _check_heaps(content)
        with h5py.File(io.BytesIO(content), "r") as file:
            return _read(file, path, config)
    except ModelError:
        raise
    except Exception as error:  # the HDF5 library reports damage by many exception types
        raise ModelError(f"{path}: damaged or truncated {kind} ({first_line(error)}); download it again") from None


def _check_heaps(content: bytes) -> None:
    """Raise ValueError for a heap of texts with an entry of no size, which would keep the HDF5 library for ever."""
    for heap in re.finditer(rb"GCOL\x01...(.{8})", content, re.DOTALL):
        at, end = heap.end(), min(heap.start() + int.from_bytes(heap[1], "little"), len(content))
        while at + 16 <= end:
            free, size = not any(content[at : at + 2]), int.from_bytes(content[at + 8 : at + 16], "little")
            if free and not size:
                raise ValueError("an entry of no size")
            at += size if free else 16 + -(-size // 8) * 8


def _read(file: h5py.File, path: Path, config: Mapping[str, Any] | None) -> KerasFile:
    own = isinstance(file.get("model_weights", getlink=True), h5py.HardLink)
    root = file["model_weights"] if own and isinstance(file["model_weights"], h5py.Group) else file
    tensors, source = _tensors(root, path), path
    if config is None and "model_config" in file.attrs:
        config = _parse(_text(file.attrs["model_config"]), f"{path}: its model_config")
    if config is None:
        config, source = _beside(path)
    if any(re.match(r"layers/.*\bvars/\d+$", name) for name in tensors):
        if config is None:
            todo = f"put its description, model.to_json(), beside them as {_stem(path)}.json, or give the .keras file"
            raise ModelError(f"{path}: weights of Keras 3, which do not say what model they are of; {todo}")
        tensors = _by_name(tensors, described_layers(config, str(path)), str(path))
    names = [_text(name) for name in np.ravel(root.attrs.get("layer_names", []))]
    order = dict.fromkeys((*names, *sorted(name.partition("/")[0] for name in tensors)))
    return KerasFile(tensors, tuple(order), config, source.name)


def _tensors(root: h5py.Group, path: Path) -> dict[str, Tensor]:
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith(("optimizer_weights/", "optimizer/")):
            found[name] = item

    root.visititems(visit)  # hard links only
    room = MOST_EXPANSION * path.stat().st_size
    tensors: dict[str, Tensor] = {}
    for name, dataset in found.items():
        where = f"{path}: dataset {listed([name])}"
        whole = "" if len(dataset.shape or ()) > 1 else "iu"  # counters, not codes of another tool
        if dataset.dtype.kind not in f"f{whole}" or dataset.shape is None:
            raise ModelError(f"{where} is of type {dataset.dtype}; weights are plain floats")
        shape = shape_text(dataset.shape)
        if 0 in dataset.shape:
            raise ModelError(f"{where} is empty (shape {shape}); the file is damaged")
        if dataset.is_virtual or dataset.external:
            raise ModelError(f"{where} keeps its data in another file, which is not read; save the model into one file")
        size = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
        if size > room:
            much = f"{size:,} bytes, but the file has only {path.stat().st_size:,}"
            raise ModelError(f"{where} declares shape {shape}, {much}; it is damaged")
        room -= size
        tensors[name.removesuffix(":0")] = torch.from_numpy(np.asarray(dataset[()], dtype=np.float32))
    if not tensors:
        raise ModelError(f"{path}: an HDF5 file without weights; save a Keras model or its weights into it")
    return tensors


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _parse(text: str | bytes, what: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is not JSON ({first_line(error)}); the file is damaged") from None
    if not isinstance(config, dict):
        raise ModelError(f"{what} is a {type(config).__name__}, not a description of a model")
    return config


def _stem(path: Path) -> str:
    return path.name.removesuffix(".h5").removesuffix(".weights")


def _beside(path: Path) -> tuple[Mapping[str, Any] | None, Path]:
    """The description of a model in a file beside its weights, and that file."""
    for name in (f"{_stem(path)}.json", f"{_stem(path)}.{_CONFIG}", _CONFIG):
        beside = path.with_name(name)
        if beside.is_file() and beside.stat().st_size <= _MOST_TEXT:
            config = _parse(beside.read_bytes(), str(beside))
            if isinstance(config.get("config"), dict | list) and "class_name" in config:
                return config, beside
    return None, path


class DescribedLayer(NamedTuple):
    """A layer as the description lists it: the class, the name, the settings, and the layers that it reads."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    sources: tuple[str, ...]

    @property
    def inner(self) -> Mapping[str, Any] | None:
        """The description of a model that is a layer of another."""
        return {"config": self.settings} if isinstance(self.settings.get("layers"), list) else None


def described_layers(config: Mapping[str, Any], where: str) -> list[DescribedLayer]:
    """The layers of a model in the order of its description. Raises ModelError where there are none."""
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # old Sequential models: a bare list
    result: list[DescribedLayer] = []
    for layer in layers if isinstance(layers, list) else []:
        settings = layer.get("config") if isinstance(layer, dict) else None
        if not isinstance(settings, dict):
            break
        kind = str(layer.get("class_name")).rpartition(">")[2]  # registered classes are "package>Class"
        name = str(settings.get("name", layer.get("name")))
        sources = dict.fromkeys(layer_names(layer.get("inbound_nodes")))
        result.append(DescribedLayer(kind, name, settings, tuple(sources)))
    if not result:
        raise ModelError(f"{where}: its model_config lists no layers; the file is damaged or of another network")
    return result


def layer_names(nodes: Any, depth: int = 12) -> list[str]:
    """The layers that the nodes of a description name: ``["name", 0, 0, ...]``, or in Keras 3 a ``keras_history``."""
    if isinstance(nodes, dict):
        history = nodes.get("keras_history")
        nodes = [history] if isinstance(history, list) else list(nodes.values())
    if not isinstance(nodes, list) or not depth:
        return []
    own = nodes[:1] if len(nodes) >= 3 and isinstance(nodes[0], str) and isinstance(nodes[1], int) else []
    return own + [name for node in nodes for name in layer_names(node, depth - 1)]


def _by_name(tensors: Mapping[str, Tensor], layers: list[DescribedLayer], where: str) -> dict[str, Tensor]:
    """Keras 3 counts the layers of a class (``layers/conv2d_1/vars/0``); here their own names and their tensors'."""
    result: dict[str, Tensor] = {}
    used: Counter[str] = Counter()
    for layer in layers:
        group = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", layer.kind))
        group = re.sub("([a-z])([A-Z])", r"\1_\2", group).lower()
        prefix = f"layers/{group}_{used[group]}/" if used[group] else f"layers/{group}/"
        used[group] += 1
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if layer.inner is not None:
            own = _by_name(own, described_layers(layer.inner, where), where)
        else:
            own = _by_part(own, layer.settings)
        result |= {f"{layer.name}/{name}": tensor for name, tensor in own.items()}
    return result


def _by_part(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names for the numbered tensors of a layer and of the layers inside it, by their axes."""
    folders: dict[str, list[Tensor]] = {}
    for name in sorted(tensors, key=lambda name: (len(name), name)):
        folders.setdefault(name.rpartition("vars/")[0], []).append(tensors[name])
    norm = [part for part, use in zip(NORM, ("scale", "center", "", ""), strict=True) if settings.get(use, True)]
    result: dict[str, Tensor] = {}
    for folder, values in folders.items():
        axes = [value.ndim for value in values]
        parts = ["kernel", "bias"][: len(axes)] if axes in ([4], [4, 1]) else norm if axes == [1] * len(norm) else []
        parts = parts or [*map(str, range(len(axes)))]
        result |= {f"{folder}{part}": value for part, value in zip(parts, values, strict=True)}
    return result
