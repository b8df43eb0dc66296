"""Q7-CapsNets models in Keras HDF5 files (Costa et al. 2022): any number of stem convolutions, then capsules.

Only float datasets and, where present, the ``model_config`` attribute (JSON text, read as data) are looked at.

A full model file says strides, routing iterations and image size in ``model_config``. A file of weights alone does
not: then activations are ReLU, iterations 3, and strides 1 in the stem and 2 in the primary capsules if these lead from
a usual image (28, 32, 64) to the capsule count, else the fewest and latest strides of 2 in the stem that do. Whoever
knows better says so (:mod:`caplet.models.importers.assume`).

Differences in layout that the import removes: kernels are HWIO; primary capsules are listed position by position and
within a position type by type; class-capsule weights are (out, in, out_dim, in_dim). Class capsules have no bias.
"""

from collections.abc import Iterator
from itertools import combinations, product
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import ImageSize, assemble, shape_text
from caplet.models.base import CapsNet, check_finite
from caplet.models.importers.assume import Assumptions
from caplet.models.importers.keras import Described, Layer, describe, read_keras
from caplet.models.importers.sizes import Conv, capsule_count, chain_size, pick_image, preferred
from caplet.models.shallow import ShallowCapsConfig, StemConv

#: The longest chain of convolutions whose strides are inferred.
MOST_INFERRED = 10


class _Conv(NamedTuple):
    """A convolution's tensors: kernel OIHW, bias or None."""

    name: str
    kernel: Tensor
    bias: Tensor | None


def read(path: Path, image_size: ImageSize | None, open_: Assumptions) -> CapsNet:
    """Read a Q7-CapsNets file; see :func:`caplet.models.importers.import_model`."""
    where = str(path)
    layers, about = read_keras(path)
    for layer, tensors in layers.items():
        check_finite({f"{layer}/{name}": tensor for name, tensor in tensors.items()}, where)
    described = None if about is None else describe(about, where)
    (*stem, primary), capsules = _parts(layers, described, where)
    classes, count, class_dim, dim = capsules.shape
    channels = (*stem, primary)[0].kernel.shape[1]
    types, rest = divmod(primary.kernel.shape[0], dim)
    if rest:
        raise ModelError(
            f"{where}: the primary capsules' convolution has {primary.kernel.shape[0]} channels, not a multiple of the"
            f" capsule dimension {dim} of the class capsules' weights; is it another network?"
        )
    kernels = tuple(conv.kernel.shape[2] for conv in (*stem, primary))
    if described is not None:
        strides, iterations, slope = described.strides, described.iterations, 0.0
    else:
        inferred = (
            () if "strides" in open_.stated else _infer_strides(kernels, count, types, channels, image_size, where)
        )
        strides = open_.take("strides", ",".join(map(str, inferred)))
        iterations, slope = open_.take("iterations"), open_.take("activation")
        if len(strides) != len(kernels):
            raise ModelError(f"{where}: cannot assume {len(strides)} strides; it has {len(kernels)} convolutions")
    chain = [Conv(*sizes) for sizes in zip(kernels, strides, strict=True)]
    if image_size is None and described is not None:
        image_size = described.image
    rows, columns = open_.image(pick_image(count, types, [chain], channels, image_size, where), image_size)
    config = ShallowCapsConfig(
        image=(channels, rows, columns),
        classes=classes,
        stem=tuple(
            StemConv(kernel=kernel, stride=stride, channels=conv.kernel.shape[0], slope=slope)
            for (kernel, stride, _), conv in zip(chain, stem, strict=False)
        ),
        primary_types=types,
        primary_dim=dim,
        primary_kernel=kernels[-1],
        primary_stride=strides[-1],
        class_dim=class_dim,
        iterations=iterations,
        primary_bias=primary.bias is not None,
        class_bias=False,
    )
    positions = (chain_size(rows, chain), chain_size(columns, chain))
    split = capsules.reshape(classes, *positions, types, class_dim, dim)  # out, row, column, type, out_dim, in_dim
    digit = split.permute(3, 1, 2, 5, 0, 4).reshape(count, dim, classes * class_dim)
    own = {"primary.weight": primary.kernel, "digit.weight": digit}
    if primary.bias is not None:
        own["primary.bias"] = primary.bias
    for index, conv in enumerate(stem, start=1):
        own[f"conv{index}.weight"] = conv.kernel
        own[f"conv{index}.bias"] = torch.zeros(len(conv.kernel)) if conv.bias is None else conv.bias
    open_.fold(own, "conv1" if stem else "primary")
    return assemble("shallow", config, own, where)


def _parts(layers: dict[str, Layer], described: Described | None, where: str) -> tuple[list[_Conv], Tensor]:
    """The convolutions, the primary capsules' last, and the class capsules' weights (out, in, out_dim, in_dim)."""
    if described is not None:
        layers = {name: layers[name] for name in described.names if name in layers}
    convs: list[_Conv] = []
    for name, layer in layers.items():
        if "kernel" not in layer:
            capsules = _capsule_weights(name, layer, where)
            break
        convs.append(_convolution(name, layer, convs[-1] if convs else None, where))
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
    return convs, capsules


def _convolution(name: str, layer: Layer, previous: _Conv | None, where: str) -> _Conv:
    kernel, bias = layer["kernel"], layer.get("bias")
    others = [part for part in layer if part not in ("kernel", "bias")]
    if others or kernel.ndim != 4:
        raise ModelError(
            f"{where}: layer {name} is no plain convolution (its {', '.join(others) or 'kernel'}, kernel"
            f" {shape_text(kernel.shape)}); Q7-CapsNets networks have convolutions, then primary and class capsules"
        )
    kernel = kernel.permute(3, 2, 0, 1)  # HWIO -> OIHW
    out, channels, rows, columns = kernel.shape
    if rows != columns:
        raise ModelError(f"{where}: layer {name} has a {rows}x{columns} kernel; only square ones")
    if previous is not None and channels != len(previous.kernel):
        raise ModelError(
            f"{where}: layer {name} takes {channels} channels, but {previous.name} before it gives"
            f" {len(previous.kernel)}; is it another network?"
        )
    if bias is not None and tuple(bias.shape) != (out,):
        raise ModelError(f"{where}: layer {name} has a bias of shape {shape_text(bias.shape)}, expected ({out},)")
    return _Conv(name, kernel, bias)


def _capsule_weights(name: str, layer: Layer, where: str) -> Tensor:
    if len(layer) != 1 or "bias" in layer:
        raise ModelError(
            f"{where}: layer {name} holds {', '.join(sorted(layer))}; class capsules hold one tensor of weights"
        )
    ((part, weights),) = layer.items()
    if weights.ndim != 4 or 0 in weights.shape:
        raise ModelError(
            f"{where}: tensor {name}/{part} has shape {shape_text(weights.shape)}; class-capsule weights have 4 axes"
            " (out, in, out_dim, in_dim), none empty"
        )
    return weights


def _strides(convs: int) -> Iterator[tuple[int, ...]]:
    """Stride patterns, likeliest first: 2 in the primary capsules, then 1; in the stem the fewest and latest 2."""
    for primary in (2, 1):
        for strided in range(convs):
            for places in combinations(reversed(range(convs - 1)), strided):
                yield (*(2 if place in places else 1 for place in range(convs - 1)), primary)


def _infer_strides(
    kernels: tuple[int, ...], count: int, types: int, channels: int, image_size: ImageSize | None, where: str
) -> tuple[int, ...]:
    if len(kernels) > MOST_INFERRED:
        raise ModelError(
            f"{where}: strides of {len(kernels)} convolutions cannot be inferred (at most {MOST_INFERRED}); give a file"
            " with the model's description (model.save, not save_weights)"
        )
    if image_size is None:
        sizes = [(side, side) for side in preferred(channels)]
    else:
        sizes = [(image_size, image_size) if isinstance(image_size, int) else image_size]
    usual, *others = _strides(len(kernels))
    for choice, size in (*product([usual], sizes), *((p, s) for s in sizes for p in others)):
        chain = [Conv(kernel, stride) for kernel, stride in zip(kernels, choice, strict=True)]
        if capsule_count(types, [chain], *size) == count:
            return choice
    if image_size is None and (count % types or isqrt(count // types) ** 2 * types != count):
        raise ModelError(
            f"{where}: {count} capsules of {types} types do not form a square map; give the images' size (image_size)"
        )
    return usual
