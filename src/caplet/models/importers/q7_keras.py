"""Q7-CapsNets models in Keras HDF5 files (Costa et al. 2022): any number of stem convolutions, then capsules.

Only float datasets and, where present, the ``model_config`` attribute (JSON text, read as data) are looked at.

A full model file says strides, routing iterations and image size in ``model_config``. A file of weights alone does
not: then activations are ReLU, iterations 3, and strides 1 in the stem and 2 in the primary capsules if these lead from
a usual image (28, 32, 64) to the capsule count, else the fewest and latest strides of 2 in the stem that do. Whoever
knows better says so (:mod:`caplet.models.importers.assume`).

Differences in layout that the import removes: kernels are HWIO; primary capsules are listed position by position and
within a position type by type; class-capsule weights are (out, in, out_dim, in_dim). Class capsules have no bias.
"""

import re
from collections.abc import Iterator
from itertools import combinations, product
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import assemble, listed, shape_text
from caplet.models.base import CapsNet, check_finite
from caplet.models.importers.assume import Assumptions
from caplet.models.importers.keras import PARTS, KerasFile, Layer, read_keras
from caplet.models.importers.keras_layers import ConvAbout, Described, NormAbout, describe
from caplet.models.importers.sizes import Conv, capsule_count, chain_size, pick_image, preferred
from caplet.models.shallow import ShallowCapsConfig, StemConv
from caplet.nn.layer import Padding

#: The longest chain of convolutions whose strides are inferred.
MOST_INFERRED = 10


class _Conv(NamedTuple):
    """A convolution's tensors: kernel OIHW, bias or None, and the batch norm after its ReLU where that stays one."""

    name: str
    kernel: Tensor
    bias: Tensor | None
    norm: Layer | None


def read(path: Path, open_: Assumptions) -> CapsNet:
    """Read a Q7-CapsNets file; see :func:`caplet.models.importers.import_model`."""
    where, file = open_.where, read_keras(path)
    check_finite(file.tensors, where)
    about = _undescribed(file, open_) if file.config is None else describe(file.config, where)
    capsules = _capsule_weights(about.capsules[-1], file.layer(about.capsules), where)
    convs = _convolutions(file, about.convs, open_)
    open_.read += about.read
    if file.source not in ("", path.name):
        open_.read.append(f"the model's description is from {file.source}")
    *stem, primary = convs
    classes, count, class_dim, dim = capsules.shape
    channels = convs[0].kernel.shape[1]
    types, rest = divmod(primary.kernel.shape[0], dim)
    if rest or about.convs[-1].dim not in (None, dim):
        raise ModelError(
            f"{where}: the primary capsules' convolution has {len(primary.kernel)} channels, not a multiple of the"
            f" capsule dimension {dim} of the class capsules' weights; is it another network?"
        )
    kernels = tuple(conv.kernel.shape[2] for conv in convs)
    if file.config is None:
        known, padding = "strides" in open_.stated, about.convs[0].padding
        inferred = () if known else _infer_strides(kernels, padding, count, types, channels, open_)
        strides = open_.take("strides", ",".join(map(str, inferred)))
        if len(strides) != len(kernels):
            raise ModelError(f"{where}: cannot assume {len(strides)} strides; it has {len(kernels)} convolutions")
        for each, stride in zip(about.convs, strides, strict=True):
            each.stride = stride
    chain = [Conv(kernel, conv.stride, conv.padding) for kernel, conv in zip(kernels, about.convs, strict=True)]
    open_.size = open_.size or about.image
    rows, columns = pick_image(count, types, [chain], channels, open_)
    config = ShallowCapsConfig(
        image=(channels, rows, columns),
        classes=classes,
        stem=tuple(
            StemConv(
                kernel=kernel,
                stride=each.stride,
                channels=len(conv.kernel),
                padding=each.padding,
                batch_norm=None if conv.norm is None else each.after[0].eps,
                slope=each.slope or 0.0,
            )
            for kernel, conv, each in zip(kernels, stem, about.convs, strict=False)
        ),
        primary_types=types,
        primary_dim=dim,
        primary_kernel=kernels[-1],
        primary_stride=about.convs[-1].stride,
        primary_padding=about.convs[-1].padding,
        class_dim=class_dim,
        iterations=about.iterations or open_.take("iterations"),
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
        own |= {f"conv{index}.batch_norm.{name}": tensor for name, tensor in (conv.norm or {}).items()}
    unfolded = open_.fold(own, "conv1" if stem else "primary", padded=chain[0].padding != 0)
    return assemble("shallow", config.model_copy(update=unfolded), own, where)


def _undescribed(file: KerasFile, open_: Assumptions) -> Described:
    """What a file of weights alone tells: convolutions up to the first layer that has weights but no kernel."""
    where, convs = open_.where, list[ConvAbout]()
    same, slope = open_.take("padding"), open_.take("activation")
    order = [(name, file.layer((name,))) for name in file.order]
    for index, (name, layer) in enumerate(order):
        if "moving_mean" in layer and "kernel" not in layer:
            beside = (order[index - 1], *order[index + 1 : index + 2])
            near = [re.match("activation|(leaky_)?re_?lu", other) is not None for other, _ in beside]
            if not convs or sum(near) != 1:
                todo = "give the model's description (model.to_json()) in a .json beside it"
                raise ModelError(f"{where}: unclear whether the batch norm {name} is before or after a ReLU; {todo}")
            (convs[-1].after if near[0] else convs[-1].before).append(NormAbout((name,)))
        elif "kernel" in layer:
            convs.append(ConvAbout((name,), padding="same" if same else 0, slope=slope))
        elif layer:
            if not convs:
                raise ModelError(f"{where}: no convolution before the class capsules; is it another network?")
            return Described(convs, (name,))
    raise ModelError(
        f"{where}: no class-capsule weights (a 4-axis tensor out x in x out_dim x in_dim that is no kernel) among"
        f" its {sum(bool(layer) for _, layer in order)} layers with weights; is it another network?"
    )


def _convolutions(file: KerasFile, described: list[ConvAbout], open_: Assumptions) -> list[_Conv]:
    """The convolutions, the primary capsules' last, with all batch norms folded into them that fold exactly.

    Those are the ones before a ReLU or a squash, and after a ReLU where the next convolution has no padding.
    """
    convs: list[_Conv] = []
    where, folded = open_.where, list[str]()
    for index, about in enumerate(described):
        layer, name = file.layer(about.path), about.path[-1]
        parts = PARTS if index + 1 == len(described) else PARTS[:2]  # primary capsules may have a batch norm inside
        kernel, bias = _convolution(name, layer, parts, convs[-1] if convs else None, where)
        zero = kernel.new_zeros(len(kernel))
        ahead = described[index - 1].after if index and not about.padding else []
        for norm in reversed(ahead):
            scale, offset = _affine(file, norm, kernel.shape[1], where)
            bias = (zero if bias is None else bias) + (kernel * offset.view(-1, 1, 1)).sum((1, 2, 3))
            kernel = kernel * scale.view(-1, 1, 1)
        inside = [NormAbout(about.path)] if set(PARTS[2:]) & set(layer) else []
        folded += [norm.path[-1] for norm in (*ahead, *inside, *about.before)]
        open_.read += [f"batch norm inside {norm.path[-1]}: epsilon {norm.eps} is assumed" for norm in inside]
        for norm in (*inside, *about.before):
            scale, offset = _affine(file, norm, len(kernel), where)
            bias = (zero if bias is None else bias) * scale + offset
            kernel = kernel * scale.view(-1, 1, 1, 1)
        stays = about.after if index + 1 < len(described) and described[index + 1].padding else []
        if len(stays) > 1:
            raise ModelError(f"{where}: two batch norms, then padding, after the ReLU of layer {name}; use one")
        own = _norm_tensors(file, stays[0], len(kernel), where) if stays else None
        convs.append(_Conv(name, kernel.float(), None if bias is None else bias.float(), own))
    open_.read += [f"batch norms folded into convolutions: {', '.join(folded)}"] if folded else []
    return convs


def _norm_tensors(file: KerasFile, norm: NormAbout, channels: int, where: str) -> Layer:
    """The tensors of a batch norm by PyTorch's names; Keras leaves a scale of 1 and a center of 0 out if told so."""
    layer, ones = file.layer(norm.path), torch.ones(channels)
    tensors = {
        "weight": layer.get("gamma", ones),
        "bias": layer.get("beta", 0 * ones),
        "running_mean": layer.get("moving_mean", ones[:0]),
        "running_var": layer.get("moving_variance", ones[:0]),
    }
    if any(tuple(tensor.shape) != (channels,) for tensor in tensors.values()) or tensors["running_var"].min() < 0:
        rule = f"a mean and a variance of at least 0 for each of {channels} channels; is it another network?"
        raise ModelError(f"{where}: batch norm {norm.path[-1]} does not hold {rule}")
    return tensors


def _affine(file: KerasFile, norm: NormAbout, channels: int, where: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of a batch norm, float64 (channels,) each."""
    gamma, beta, mean, variance = (t.double() for t in _norm_tensors(file, norm, channels, where).values())
    scale = gamma / torch.sqrt(variance + norm.eps)
    return scale, beta - mean * scale


def _convolution(
    name: str, layer: Layer, parts: tuple[str, ...], previous: _Conv | None, where: str
) -> tuple[Tensor, Tensor | None]:
    """Kernel OIHW and bias, float64."""
    kernel, bias = layer.get("kernel"), layer.get("bias")
    others = [part for part in layer if part not in parts]
    if others or kernel is None or kernel.ndim != 4:
        found = listed(others or list(layer)) or "no weights"
        raise ModelError(f"{where}: layer {name} is no plain convolution (it has {found}); is it another network?")
    kernel = kernel.permute(3, 2, 0, 1).double()  # HWIO -> OIHW
    out, channels, rows, columns = kernel.shape
    if rows != columns:
        raise ModelError(f"{where}: layer {name} has a {rows}x{columns} kernel; only square ones")
    if previous is not None and channels != len(previous.kernel):
        given = f"{previous.name} before it gives {len(previous.kernel)}; is it another network?"
        raise ModelError(f"{where}: layer {name} takes {channels} channels, but {given}")
    if bias is not None and tuple(bias.shape) != (out,):
        raise ModelError(f"{where}: layer {name} has a bias of shape {shape_text(bias.shape)}, expected ({out},)")
    return kernel, None if bias is None else bias.double()


def _capsule_weights(name: str, layer: Layer, where: str) -> Tensor:
    if len(layer) != 1 or "bias" in layer:
        held = ", ".join(sorted(layer)) or "no weights"
        raise ModelError(f"{where}: layer {name} holds {held}; class capsules hold one tensor of weights")
    ((part, weights),) = layer.items()
    if weights.ndim != 4 or 0 in weights.shape:
        found = f"tensor {name}/{part} has shape {shape_text(weights.shape)}"
        raise ModelError(f"{where}: {found}; class-capsule weights have 4 axes")
    return weights


def _strides(convs: int) -> Iterator[tuple[int, ...]]:
    """Stride patterns, likeliest first: 2 in the primary capsules, then 1; in the stem the fewest and latest 2."""
    for primary in (2, 1):
        for strided in range(convs):
            for places in combinations(reversed(range(convs - 1)), strided):
                yield (*(2 if place in places else 1 for place in range(convs - 1)), primary)


def _infer_strides(
    kernels: tuple[int, ...], padding: Padding, count: int, types: int, channels: int, open_: Assumptions
) -> tuple[int, ...]:
    if len(kernels) > MOST_INFERRED:
        many = f"more than {MOST_INFERRED} convolutions"
        raise ModelError(f"{open_.where}: strides of {many} are not inferred; give the file of model.save")
    sizes = [open_.size] if open_.size is not None else [(side, side) for side in preferred(channels)]
    usual, *others = _strides(len(kernels))
    for choice, size in (*product([usual], sizes), *((p, s) for s in sizes for p in others)):
        chain = [Conv(kernel, stride, padding) for kernel, stride in zip(kernels, choice, strict=True)]
        if capsule_count(types, [chain], *size) == count:
            return choice
    if open_.size is None and (count % types or isqrt(count // types) ** 2 * types != count):
        todo = "give the images' size (image_size)"
        raise ModelError(f"{open_.where}: {count} capsules of {types} types do not form a square map; {todo}")
    return usual
