"""What a Keras model's description says: its convolutions and capsules, in the order in which an image passes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from caplet.errors import ModelError
from caplet.models.assemble import listed
from caplet.models.importers.keras import DescribedLayer, LayerPath, described_layers, layer_names

#: What Keras adds to a batch norm's variance where nothing else is said.
EPSILON = 1e-3
_HARMLESS = frozenset({"InputLayer", "Dropout", "SpatialDropout2D", "GaussianNoise", "ActivityRegularization"})
_ITERATIONS = ("routings", "num_routing", "iterations")


class NormAbout(NamedTuple):
    """A batch norm: its layer, and what it adds to the variance."""

    path: LayerPath
    eps: float = EPSILON


@dataclass
class ConvAbout:
    """A convolution: its layer, and what follows it up to the next one.

    Attributes:
        slope: of negative values in its ReLU (0) or LeakyReLU; None where there is neither.
        before, after: batch norms before its ReLU or squash, and after its ReLU.
        dim: dimension of the capsules into which a Reshape cuts its output; None where there is none.
        squashed: the convolution is that of primary capsules.
    """

    path: LayerPath
    stride: int = 0
    padding: Literal["same", 0] = 0
    slope: float | None = None
    before: list[NormAbout] = field(default_factory=list)
    after: list[NormAbout] = field(default_factory=list)
    dim: int | None = None
    squashed: bool = False


class Described(NamedTuple):
    """A network as its file describes it.

    Attributes:
        convs: the convolutions, the primary capsules' last.
        capsules: the class capsules' layer.
        iterations: routing iterations; None where it is not said.
        image: (rows, columns), or None where the file leaves it open.
        read: a line on each thing that was left out or taken by its name.
    """

    convs: list[ConvAbout]
    capsules: LayerPath
    iterations: int | None = None
    image: tuple[int, int] | None = None
    read: tuple[str, ...] = ()


def describe(config: Mapping[str, Any], where: str) -> Described:
    """Read what lies between the image and the class capsules; the rest (lengths, decoder) is left out.

    Raises ModelError: a layer or setting that a :class:`caplet.models.shallow.ShallowCaps` does not have.
    """
    convs: list[ConvAbout] = []
    image: tuple[int, int] | None = None
    read: list[str] = []
    steps = _chain(config, where)
    for kind, path, settings in steps:
        at = f"{where}: layer {listed([path[-1]])}"
        image = image or _image(settings)
        last = convs[-1] if convs else None
        plain = last is not None and last.dim is None and not last.squashed
        if kind == "Conv2D" or "primary" in kind.lower():
            if last is not None and (last.slope is None or not plain):
                before = listed([last.path[-1]])
                raise ModelError(f"{where}: layer {before} has no ReLU after it; only Conv2D + ReLU can be imported")
            last = ConvAbout(path, *_convolution(settings, at))
            last.squashed = kind != "Conv2D"
            last.slope = None if last.squashed else _slope(kind, settings, at)
            convs.append(last)
        elif _is_capsules(kind):
            if last is None or not last.squashed:
                raise ModelError(f"{at}: no primary capsules (Conv2D, Reshape, squash, or one layer) before it")
            rest = _rest(config, steps, where)
            read += [f"left out: {listed(rest)}"] if rest else []
            return Described(convs, path, _iterations(settings, at), image, tuple(read))
        elif last is not None and last.slope is None and not last.squashed and _is_squash(kind, settings, path[-1]):
            if last.dim is None:
                raise ModelError(f"{at}: a squash of whole channels; a Reshape into capsules comes before it")
            last.squashed = True
            read.append(f"layer {listed([path[-1]])} is taken for squash by its name")
        elif kind in ("Activation", "ReLU", "LeakyReLU"):
            slope = _slope(kind, settings, at)
            if slope is not None:
                if last is None or not plain or last.slope is not None:
                    raise ModelError(f"{at}: a ReLU that follows no convolution; only Conv2D + ReLU can be imported")
                last.slope = slope
        elif kind == "BatchNormalization" and last is not None and plain:
            (last.before if last.slope is None else last.after).append(_norm(path, settings, at))
        elif kind == "Reshape" and last is not None and plain and last.slope is None:
            last.dim = _capsule_dim(settings, at)
        elif kind not in _HARMLESS:
            raise ModelError(
                f"{at} is a {listed([kind])} where there can be none; Q7-CapsNets has Conv2D, batch norm and ReLU, then"
                " primary capsules and class capsules only"
            )
    raise ModelError(f"{where}: its model_config has no class-capsule layer; is it another network?")


Step = tuple[str, LayerPath, Mapping[str, Any]]
"""Class, path and settings of a layer."""


def _is_capsules(kind: str) -> bool:
    return "caps" in kind.lower() and "primary" not in kind.lower() and kind != "Conv2D"


def _holds_capsules(layer: DescribedLayer, where: str) -> bool:
    inner = layer.inner
    if inner is None:
        return _is_capsules(layer.kind)
    return any(_holds_capsules(other, where) for other in described_layers(inner, where))


def _chain(config: Mapping[str, Any], where: str, within: LayerPath = ()) -> list[Step]:
    """The layers from the image to the first class capsules, or to the output of an inner model without."""
    layers = described_layers(config, where)
    end = next((layer for layer in layers if _holds_capsules(layer, where)), None)
    if end is None and not within:
        return [(layer.kind, (layer.name,), layer.settings) for layer in layers]
    by_name = {layer.name: layer for layer in layers}
    if end is None:
        outputs = layer_names([config["config"].get("output_layers")])
        end = by_name.get(outputs[0] if outputs else layers[-1].name, layers[-1])
    order = layers[: layers.index(end) + 1]
    if any(layer.sources for layer in layers):
        order = [end]
        while order[0].sources:
            sources = [by_name[name] for name in order[0].sources if name in by_name]
            if len(sources) != 1 or sources[0] in order:
                name, read = listed([order[0].name]), listed(list(order[0].sources))
                raise ModelError(f"{where}: layer {name} reads {read}; only a network without branches can be imported")
            order = [sources[0], *order]
    steps: list[Step] = []
    for layer in order:
        path = (*within, layer.name)
        inner = layer.inner
        steps += [(layer.kind, path, layer.settings)] if inner is None else _chain(inner, where, path)
    return steps


def _rest(config: Mapping[str, Any], steps: list[Step], where: str) -> list[str]:
    """The layers that are no steps. Raises ModelError where one of them has capsules, too."""
    used = {path[0] for _, path, _ in steps}
    rest = [layer for layer in described_layers(config, where) if layer.name not in used and layer.kind != "InputLayer"]
    again = [layer.name for layer in rest if any(key in layer.settings for key in _ITERATIONS)]
    if again:
        rule = "only networks with one layer of class capsules can be imported"
        raise ModelError(f"{where}: layer {again[0]} routes capsules after {steps[-1][1][-1]}; {rule}")
    return [layer.name for layer in rest if "length" not in layer.kind.lower()]  # lengths are what caplet compares


def _iterations(settings: Mapping[str, Any], at: str) -> int | None:
    iterations = next((settings[key] for key in _ITERATIONS if key in settings), None)
    if iterations is not None and (not _is_int(iterations) or not 1 <= iterations <= 100):
        raise ModelError(f"{at}: routings is {str(iterations)[:40]!r}, expected a whole number from 1 to 100")
    return iterations


def _image(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    shape = settings.get("batch_input_shape", settings.get("batch_shape"))
    if isinstance(shape, list) and len(shape) == 4 and all(_is_int(side) for side in shape[1:3]):
        return shape[1], shape[2]
    return None


def _convolution(settings: Mapping[str, Any], at: str) -> tuple[int, Literal["same", 0]]:
    """Stride and padding of a convolution, after checking that it is one that we have."""
    rules = {"padding": ("valid", "same"), "data_format": ("channels_last",), "groups": (1,)}
    for key, rule in rules.items():
        found = settings.get(key, rule[0])
        if found not in rule:
            allowed = " or ".join(map(repr, rule))
            raise ModelError(f"{at}: {key} is {str(found)[:40]!r}; only {allowed} can be imported")
    if _pair(settings.get("dilation_rate", 1), "dilation_rate", at) != 1:
        raise ModelError(f"{at}: dilated convolutions cannot be imported")
    same = settings.get("padding") == "same" and settings.get("kernel_size") not in (1, [1, 1])
    return _pair(settings.get("strides", 1), "strides", at), "same" if same else 0


def _norm(path: LayerPath, settings: Mapping[str, Any], at: str) -> NormAbout:
    axis, eps = settings.get("axis", -1), settings.get("epsilon", EPSILON)
    if axis not in (-1, 3, [-1], [3]) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise ModelError(f"{at}: a batch norm over axis {axis!s:.40} with epsilon {eps!s:.40}; the channels are 3")
    return NormAbout(path, float(eps))


def _capsule_dim(settings: Mapping[str, Any], at: str) -> int:
    shape = settings.get("target_shape")
    if not isinstance(shape, list) or len(shape) != 2 or not _is_int(shape[1]) or shape[1] < 1:
        raise ModelError(f"{at}: it reshapes into {str(shape)[:40]}; expected capsules x dimension, such as [-1, 8]")
    dim: int = shape[1]
    return dim


def _is_squash(kind: str, settings: Mapping[str, Any], name: str) -> bool:
    """Whether a layer squashes, by name: what a Lambda computes is code, which is never run."""
    texts = [kind, str(settings.get("activation")), *([name, str(settings.get("function"))] * (kind == "Lambda"))]
    return any("squash" in text.lower() for text in texts)


def _slope(kind: str, settings: Mapping[str, Any], at: str) -> float | None:
    """The slope of negative values in the ReLU (0) or LeakyReLU of a layer, None without; raises for any other."""
    if kind == "LeakyReLU":
        slope = settings.get("negative_slope", settings.get("alpha", 0.3))
        if not isinstance(slope, int | float) or not 0 <= slope < 1:
            raise ModelError(f"{at}: a LeakyReLU of slope {str(slope)[:40]}; the rule is at least 0 and below 1")
        return float(slope)
    if kind == "ReLU":
        if any(settings.get(key) not in (None, 0, 0.0) for key in ("max_value", "negative_slope", "threshold")):
            raise ModelError(f"{at}: a ReLU with a limit, slope or threshold; only the plain one can be imported")
        return 0.0
    activation = settings.get("activation", "linear")
    if activation not in ("relu", "linear"):
        raise ModelError(f"{at}: its activation is {str(activation)[:40]!r}; only 'relu' can be imported")
    return 0.0 if activation == "relu" else None


def _pair(value: Any, key: str, at: str) -> int:
    sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(_is_int(side) and 1 <= side <= 1000 for side in sides) or sides[0] != sides[1]:
        raise ModelError(f"{at}: {key} is {str(value)[:40]}; expected one positive number for rows and columns")
    return int(sides[0])


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
