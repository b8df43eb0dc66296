"""Q7-CapsNets models in Keras HDF5 files (Costa et al. 2022): any number of stem convolutions, then capsules.

Only float datasets and, where present, the ``model_config`` attribute (JSON text, read as data) are looked at.

A full model file says strides, routing iterations and image size in ``model_config``. A file of weights alone does
not: then iterations are 3, and strides are 1 in the stem and 2 in the primary capsules if these lead from a usual image
(28, 32, 64) to the capsule count, else the fewest and latest strides of 2 in the stem that do. Where several patterns
fit, only the full model file can tell.

Differences in layout that the import removes: kernels are HWIO; primary capsules are listed position by position and
within a position type by type; class-capsule weights are (out, in, out_dim, in_dim). Class capsules have no bias.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import ImageSize, assemble, shape_text
from caplet.models.base import CapsNet, check_finite
from caplet.models.importers.keras import Described, KerasFile, LayerWeights, describe, is_hdf5_file, read_keras
from caplet.models.importers.sizes import Conv, chain_size, pick_image, preferred, square_side
from caplet.models.shallow import ShallowCapsConfig, StemConv

ABOUT = "Keras .h5 model or weights: convolutions, primary capsules, class capsules"

recognises = is_hdf5_file

#: Routing iterations where the file does not say.
ITERATIONS = 3
#: The longest chain of convolutions whose strides are inferred.
MOST_INFERRED = 10


@dataclass(frozen=True)
class _Parts:
    """The network's tensors: ``convs`` (kernel OIHW, bias or None; the last is the primary capsules'), ``capsules``."""

    convs: tuple[tuple[str, Tensor, Tensor | None], ...]
    capsules: Tensor  # (out, in, out_dim, in_dim)

    @property
    def kernels(self) -> tuple[int, ...]:
        return tuple(kernel.shape[2] for _, kernel, _ in self.convs)


def read(path: Path, image_size: ImageSize | None = None) -> CapsNet:
    """Read a Q7-CapsNets file; see :func:`caplet.models.importers.import_model`."""
    where = str(path)
    content = read_keras(path)
    for layer in content.layers:
        check_finite({f"{layer.name}/{name}": tensor for name, tensor in layer.tensors().items()}, where)
    described = None if content.config is None else describe(content.config, where)
    parts = _parts(content, described, where)
    classes, count, class_dim, dim = parts.capsules.shape
    channels = parts.convs[0][1].shape[1]
    out_channels = parts.convs[-1][1].shape[0]
    if out_channels % dim:
        raise ModelError(
            f"{where}: the primary capsules' convolution has {out_channels} channels, not a multiple of the capsule"
            f" dimension {dim} of the class capsules' weights; is it another network?"
        )
    types = out_channels // dim
    strides = described.strides if described else _infer_strides(parts, types, channels, image_size, where)
    chain = [Conv(kernel, stride) for kernel, stride in zip(parts.kernels, strides, strict=True)]
    if image_size is None and described is not None:
        image_size = described.image
    rows, columns = pick_image(
        count, lambda r, c: types * chain_size(r, chain) * chain_size(c, chain), channels, image_size, where
    )
    config = ShallowCapsConfig(
        image=(channels, rows, columns),
        classes=classes,
        stem=tuple(
            StemConv(kernel=conv.kernel, stride=conv.stride, channels=kernel.shape[0])
            for conv, (_, kernel, _) in zip(chain[:-1], parts.convs[:-1], strict=True)
        ),
        primary_types=types,
        primary_dim=dim,
        primary_kernel=chain[-1].kernel,
        primary_stride=chain[-1].stride,
        class_dim=class_dim,
        iterations=described.iterations if described else ITERATIONS,
        primary_bias=parts.convs[-1][2] is not None,
        class_bias=False,
    )
    tensors: dict[str, Tensor] = {}
    for index, (_, kernel, bias) in enumerate(parts.convs[:-1], start=1):
        tensors[f"conv{index}.weight"] = kernel
        tensors[f"conv{index}.bias"] = torch.zeros(kernel.shape[0]) if bias is None else bias
    _, kernel, bias = parts.convs[-1]
    tensors["primary.weight"] = kernel
    if bias is not None:
        tensors["primary.bias"] = bias
    shape = (chain_size(rows, chain), chain_size(columns, chain), types)
    tensors["digit.weight"] = reorder_capsules(parts.capsules, shape)
    return assemble("shallow", config, tensors, where)


def reorder_capsules(weights: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Class-capsule weights (out, in, out_dim, in_dim) -> ours (in, in_dim, out * out_dim).

    Args:
        weights: its input capsules are ordered row, column, type; ours type, row, column.
        shape: (rows, columns, types) of the primary capsules.
    """
    classes, count, class_dim, dim = weights.shape
    split = weights.reshape(classes, *shape, class_dim, dim)  # out, row, column, type, out_dim, in_dim
    return split.permute(3, 1, 2, 5, 0, 4).reshape(count, dim, classes * class_dim)


def _parts(content: KerasFile, described: Described | None, where: str) -> _Parts:
    layers = list(content.layers)
    if described is not None:
        order = {name: place for place, name in enumerate(described.names)}
        layers = [layer for layer in layers if layer.name in order]
        layers.sort(key=lambda layer: order[layer.name])
    convs: list[tuple[str, Tensor, Tensor | None]] = []
    for layer in layers:
        if layer.kernel is None:
            capsules = _capsule_weights(layer, where)
            break
        convs.append(_convolution(layer, convs[-1] if convs else None, where))
    else:
        raise ModelError(
            f"{where}: no class-capsule weights (a 4-axis tensor out x in x out_dim x in_dim that is no kernel) among"
            f" its {len(layers)} layers with weights; is it another network?"
        )
    if not convs:
        raise ModelError(f"{where}: no convolution before the class capsules; is it another network?")
    if described is not None and len(convs) != len(described.strides):
        raise ModelError(
            f"{where}: its model_config describes {len(described.strides)} convolutions before the class capsules, but"
            f" {len(convs)} have weights; the file is incomplete or of another network"
        )
    return _Parts(tuple(convs), capsules)


def _convolution(
    layer: LayerWeights, previous: tuple[str, Tensor, Tensor | None] | None, where: str
) -> tuple[str, Tensor, Tensor | None]:
    assert layer.kernel is not None
    if layer.others or layer.kernel.ndim != 4:
        found = ", ".join([*layer.others, *(() if layer.kernel.ndim == 4 else ("kernel",))])
        raise ModelError(
            f"{where}: layer {layer.name} is no plain convolution (its {found}, kernel"
            f" {shape_text(layer.kernel.shape)}); Q7-CapsNets networks have convolutions, then primary"
            " and class capsules"
        )
    kernel = layer.kernel.permute(3, 2, 0, 1)  # HWIO -> OIHW
    if kernel.shape[2] != kernel.shape[3]:
        raise ModelError(
            f"{where}: layer {layer.name} has a {kernel.shape[2]}x{kernel.shape[3]} kernel; only square ones"
        )
    if previous is not None and kernel.shape[1] != previous[1].shape[0]:
        raise ModelError(
            f"{where}: layer {layer.name} takes {kernel.shape[1]} channels, but {previous[0]} before it gives"
            f" {previous[1].shape[0]}; is it another network?"
        )
    if layer.bias is not None and tuple(layer.bias.shape) != (kernel.shape[0],):
        raise ModelError(
            f"{where}: layer {layer.name} has a bias of shape {shape_text(layer.bias.shape)}, expected"
            f" ({kernel.shape[0]},)"
        )
    return layer.name, kernel, layer.bias


def _capsule_weights(layer: LayerWeights, where: str) -> Tensor:
    if len(layer.others) != 1 or layer.bias is not None:
        names = ", ".join(sorted([*layer.others, *(() if layer.bias is None else ("bias",))])) or "nothing"
        raise ModelError(f"{where}: layer {layer.name} holds {names}; class capsules hold one tensor of weights")
    ((name, weights),) = layer.others.items()
    if weights.ndim != 4 or 0 in weights.shape:
        raise ModelError(
            f"{where}: tensor {layer.name}/{name} has shape {shape_text(weights.shape)}; class-capsule weights have"
            " 4 axes (out, in, out_dim, in_dim), none empty"
        )
    return weights


def _strides(convs: int) -> Iterator[tuple[int, ...]]:
    """Stride patterns, likeliest first: 2 in the primary capsules, then 1; in the stem the fewest and latest 2."""
    for primary in (2, 1):
        for strided in range(convs):
            for places in combinations(reversed(range(convs - 1)), strided):
                yield (*(2 if place in places else 1 for place in range(convs - 1)), primary)


def _infer_strides(parts: _Parts, types: int, channels: int, image_size: ImageSize | None, where: str) -> Sequence[int]:
    count = parts.capsules.shape[1]
    if image_size is None:
        sizes = [(side, side) for side in preferred(channels)]
    else:
        sizes = [(image_size, image_size) if isinstance(image_size, int) else image_size]
    if len(parts.kernels) > MOST_INFERRED:
        raise ModelError(
            f"{where}: strides of {len(parts.kernels)} convolutions cannot be inferred (at most {MOST_INFERRED}); give"
            " a file with the model's description (model.save, not save_weights)"
        )
    patterns = list(_strides(len(parts.kernels)))
    usual, others = patterns[:1], patterns[1:]
    for choice, size in [(p, s) for s in sizes for p in usual] + [(p, s) for s in sizes for p in others]:
        chain = [Conv(kernel, stride) for kernel, stride in zip(parts.kernels, choice, strict=True)]
        if types * chain_size(size[0], chain) * chain_size(size[1], chain) == count:
            return choice
    if image_size is None and (count % types or square_side(count // types) is None):
        raise ModelError(
            f"{where}: {count} capsules of {types} types do not form a square map; give the images' size (image_size)"
        )
    return usual[0]
