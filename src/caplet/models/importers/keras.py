"""Keras HDF5 files read as data: float datasets by layer, bounded in size, and what the model_config says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import first_line, listed, shape_text

SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: Keras stores weights uncompressed; this leaves room for a file that was repacked with compression.
MOST_EXPANSION = 16


Layer = dict[str, Tensor]
"""The tensors of one Keras layer, float32: its ``kernel``, its ``bias``, any others by their path in the layer."""


class KerasFile(NamedTuple):
    """The layers that have weights by name, in the model's order, and the model's description if the file has one."""

    layers: dict[str, Layer]
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
            own = isinstance(file.get("model_weights", getlink=True), h5py.HardLink)
            root = file["model_weights"] if own and isinstance(file["model_weights"], h5py.Group) else file
            return KerasFile(_layers(root, path), _config(file, path))
    except ModelError:
        raise
    except Exception as error:  # the HDF5 library reports damage by many exception types
        raise ModelError(f"{path}: damaged or truncated HDF5 file ({first_line(error)}); download it again") from None


def _layers(root: h5py.Group, path: Path) -> dict[str, Layer]:
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer_weights/"):
            found[name] = item

    root.visititems(visit)  # hard links only
    room = MOST_EXPANSION * path.stat().st_size
    layers: dict[str, Layer] = {}
    for name, dataset in found.items():
        room -= _check(name, dataset, room, path)
        layer, _, rest = name.partition("/")
        tensors, leaf = layers.setdefault(layer, {}), rest.rpartition("/")[2].removesuffix(":0")
        part = leaf if leaf in ("kernel", "bias") and leaf not in tensors else rest or name
        tensors[part] = torch.from_numpy(np.asarray(dataset[()], dtype=np.float32))
    if not layers:
        raise ModelError(f"{path}: an HDF5 file without weights; save a Keras model or its weights into it")
    order = [_text(name) for name in np.ravel(root.attrs.get("layer_names", []))]
    return {name: layers[name] for name in dict.fromkeys((*order, *sorted(layers))) if name in layers}


def _check(name: str, dataset: h5py.Dataset, room: int, path: Path) -> int:
    where = f"{path}: dataset {listed([name])}"
    if dataset.dtype.kind not in "fiu" or dataset.shape is None:
        raise ModelError(f"{where} is of type {dataset.dtype}, not numbers; weights are plain floats")
    if 0 in dataset.shape:
        raise ModelError(f"{where} is empty (shape {shape_text(dataset.shape)}); the file is damaged")
    if dataset.is_virtual or dataset.external:
        raise ModelError(f"{where} keeps its data in another file, which is not read; save the model into one file")
    size: int = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
    if size > room:
        raise ModelError(
            f"{where} declares shape {shape_text(dataset.shape)}, {size:,} bytes, but the file has only"
            f" {path.stat().st_size:,}; it is damaged or crafted"
        )
    return size


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


_HARMLESS = frozenset({"InputLayer", "Dropout", "SpatialDropout2D", "GaussianNoise", "ActivityRegularization"})


class Described(NamedTuple):
    """A network as its file describes it.

    Attributes:
        names: the layers with weights in order: convolutions, primary capsules, class capsules.
        strides: of the convolutions, the primary capsules' last.
        iterations: routing iterations.
        image: (rows, columns), or None where the file leaves it open.
    """

    names: tuple[str, ...]
    strides: tuple[int, ...]
    iterations: int
    image: tuple[int, int] | None


def describe(config: Mapping[str, Any], where: str) -> Described:
    """Read the layer list of a Keras model up to its class capsules; what follows (lengths, decoder) is left out.

    Raises:
        ModelError: a layer or setting that a :class:`caplet.models.shallow.ShallowCaps` does not have.
    """
    names: list[str] = []
    strides: list[int] = []
    image: tuple[int, int] | None = None
    pending: str | None = None  # a convolution whose ReLU has not been seen
    for kind, name, settings in _described_layers(config, where):
        at = f"{where}: layer {listed([name])}"
        image = image or _image(settings)
        is_capsule = kind != "Conv2D" and any(word in kind.lower() for word in ("primary", "caps"))
        if pending is not None and (is_capsule or kind == "Conv2D"):
            raise ModelError(
                f"{where}: layer {listed([pending])} has no ReLU after it; only Conv2D + ReLU can be imported"
            )
        if kind in ("Activation", "ReLU"):
            pending = None if _is_relu(kind, settings, at) else pending
        elif kind == "Conv2D" or (is_capsule and "primary" in kind.lower()):
            names.append(name)
            strides.append(_convolution(settings, at))
            pending = None if is_capsule or _is_relu(kind, settings, at) else name
        elif is_capsule:
            names.append(name)
            iterations = settings.get("routings", settings.get("num_routing", settings.get("iterations", 3)))
            if not _is_int(iterations) or not 1 <= iterations <= 100:
                raise ModelError(f"{at}: routings is {str(iterations)[:40]!r}, expected a whole number from 1 to 100")
            return Described(tuple(names), tuple(strides), iterations, image)
        elif kind not in _HARMLESS:
            raise ModelError(
                f"{at} is a {listed([kind])}; a Q7-CapsNets network has Conv2D + ReLU layers, primary capsules and"
                " class capsules only"
            )
    raise ModelError(f"{where}: its model_config has no class-capsule layer; is it another network?")


def _described_layers(config: Mapping[str, Any], where: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # old Sequential models: a bare list
    result: list[tuple[str, str, Mapping[str, Any]]] = []
    for layer in layers if isinstance(layers, list) else []:
        settings = layer.get("config") if isinstance(layer, dict) else None
        if not isinstance(settings, dict):
            break
        result.append((str(layer.get("class_name")), str(settings.get("name", layer.get("name"))), settings))
    if not result:
        raise ModelError(f"{where}: its model_config lists no layers; the file is damaged or of another network")
    return result


def _image(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    shape = settings.get("batch_input_shape", settings.get("batch_shape"))
    if isinstance(shape, list) and len(shape) == 4 and all(_is_int(side) for side in shape[1:3]):
        return shape[1], shape[2]
    return None


def _convolution(settings: Mapping[str, Any], at: str) -> int:
    """The stride of a convolution, after checking that it is one that we have."""
    rules = {"padding": "valid", "data_format": "channels_last", "groups": 1}
    for key, rule in rules.items():
        found = settings.get(key, rule)
        if found != rule:
            raise ModelError(f"{at}: {key} is {str(found)[:40]!r}; only {rule!r} can be imported")
    if _pair(settings.get("dilation_rate", 1), "dilation_rate", at) != 1:
        raise ModelError(f"{at}: dilated convolutions cannot be imported")
    return _pair(settings.get("strides", 1), "strides", at)


def _is_relu(kind: str, settings: Mapping[str, Any], at: str) -> bool:
    """Whether a layer ends in the plain ReLU; raises for any other activation."""
    if kind == "ReLU":
        if any(settings.get(key) not in (None, 0, 0.0) for key in ("max_value", "negative_slope", "threshold")):
            raise ModelError(f"{at}: a ReLU with a limit, slope or threshold; only the plain one can be imported")
        return True
    activation = settings.get("activation", "linear")
    if activation not in ("relu", "linear"):
        raise ModelError(f"{at}: its activation is {str(activation)[:40]!r}; only 'relu' can be imported")
    return bool(activation == "relu")


def _pair(value: Any, key: str, at: str) -> int:
    sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(_is_int(side) and 1 <= side <= 1000 for side in sides) or sides[0] != sides[1]:
        raise ModelError(f"{at}: {key} is {str(value)[:40]}; expected one positive number for rows and columns")
    return int(sides[0])


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
