"""What a Keras ``model_config`` says about a capsule network: strides, iterations, image size. Read as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caplet.errors import ModelError
from caplet.models.assemble import listed

_HARMLESS = frozenset({"InputLayer", "Dropout", "SpatialDropout2D", "GaussianNoise", "ActivityRegularization"})


@dataclass(frozen=True)
class Described:
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
    for kind, name, settings in _layers(config, where):
        at = f"{where}: layer {listed([name])}"
        image = image or _image(settings)
        lowered = kind.lower()
        if kind == "Conv2D":
            _need_relu(pending, where)
            names.append(name)
            strides.append(_convolution(settings, at))
            pending = None if _activation(settings, at) == "relu" else name
        elif kind in ("Activation", "ReLU"):
            pending = _rectify(kind, settings, pending, at)
        elif "primary" in lowered:
            _need_relu(pending, where)
            pending = None
            names.append(name)
            strides.append(_convolution(settings, at))
        elif "capsule" in lowered or "caps" in lowered:
            names.append(name)
            _need_relu(pending, where)
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


def _layers(config: Mapping[str, Any], where: str) -> list[tuple[str, str, Mapping[str, Any]]]:
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


def _activation(settings: Mapping[str, Any], at: str) -> str:
    activation = settings.get("activation", "linear")
    if activation not in ("relu", "linear"):
        raise ModelError(f"{at}: its activation is {str(activation)[:40]!r}; only 'relu' can be imported")
    return activation


def _rectify(kind: str, settings: Mapping[str, Any], pending: str | None, at: str) -> str | None:
    if kind == "ReLU":
        plain = all(settings.get(key) in (None, 0, 0.0) for key in ("max_value", "negative_slope", "threshold"))
        if not plain:
            raise ModelError(f"{at}: a ReLU with a limit, slope or threshold; only the plain one can be imported")
        return None
    return None if _activation(settings, at) == "relu" else pending


def _need_relu(pending: str | None, where: str) -> None:
    if pending is not None:
        raise ModelError(f"{where}: layer {listed([pending])} has no ReLU after it; only Conv2D + ReLU can be imported")


def _pair(value: Any, key: str, at: str) -> int:
    sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(_is_int(side) and 1 <= side <= 1000 for side in sides) or sides[0] != sides[1]:
        raise ModelError(f"{at}: {key} is {str(value)[:40]}; expected one positive number for rows and columns")
    return int(sides[0])


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
