"""A user's PyTorch module as a caplet model: its layers are named, its outputs compared on random images.

Codes of capsule networks differ in the order of primary capsules and in the axes of the votes' weights. What the user
does not state is tried, and what gives the module's outputs is taken. The model that is returned was itself compared.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from caplet.errors import ModelError, suggest
from caplet.models.assemble import assemble, listed
from caplet.models.base import CapsNet
from caplet.models.importers.assume import Assumptions
from caplet.models.importers.fit import CHANNELS, LISTED, Case, Fit, Primary, Routed, errors, search
from caplet.models.importers.stem import StemPart, primary_convolution, read_stem
from caplet.models.importers.watch import Seen, check_alone, unwrapped, watch
from caplet.models.shallow import ShallowCapsConfig, StemConv

IMAGES = 6
"""Random images, half of them in [0, 1], half so strong that primary capsules are about one long."""


def adopt(
    module: nn.Module,
    image: tuple[int, int, int],
    layers: Sequence[str | Primary | Routed],
    *,
    assume: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
) -> CapsNet:
    """Make a caplet model of a PyTorch module, and prove on random images that both give the same.

    Args:
        module: takes float images (B, C, H, W) alone and returns, at any depth, class capsules (B, classes, D), or
            their lengths (B, classes) or a softmax of these; other outputs (reconstructions) are left out. It may be
            wrapped (``DataParallel``, ``compile``), on any device, of 16, 32 or 64 bits, in training mode, with
            weight norm or pruning masks; it is run in evaluation mode and left as it is.
        image: (channels, rows, columns).
        layers: in order, the path of each Conv2d, BatchNorm2d, ReLU, LeakyReLU or Sequential of these; ``"relu"`` or
            ``"leaky_relu:SLOPE"`` for one that is a function (one that is left out is found); then one
            :class:`caplet.Primary` and one :class:`caplet.Routed`.
        assume: ``normalize`` (mean, std) and ``channels`` ("bgr"), as for :func:`caplet.load`: how images are prepared
            for the module. The model takes pixels in [0, 1], RGB.
        tolerance: largest difference of outputs, relative to each image's largest value (0.01 at least).

    Returns:
        The model, float32, in evaluation mode; ``notes["read"]`` says what was found.

    Raises:
        ModelError: a path or type that is not there, shapes that do not fit, or outputs that differ; the message has
            the numbers and the first layer that differs.

    >>> adopt(nn.Sequential(nn.Linear(4, 2)), (1, 8, 8), [Primary("0"), Routed("0.weight")])
    Traceback (most recent call last):
    ...
    caplet.errors.ModelError: Sequential: 0 is a Linear; name a Conv2d, or a list of them
    """
    net, image = unwrapped(module), ShallowCapsConfig(image=image).image
    where = type(net).__name__
    open_ = Assumptions(assume or {}, where, None)
    *names, primary, routed = (None, None, *layers)[min(len(layers), 2) :]
    stem_names = [name for name in names if isinstance(name, str)]
    if len(stem_names) < len(names) or not isinstance(primary, Primary) or not isinstance(routed, Routed):
        raise ModelError(f"{where}: layers are paths, then one Primary(...) and one Routed(...), in this order")
    _check_stated(primary, routed, tolerance, where)
    images = torch.rand(IMAGES, *image, generator=torch.Generator().manual_seed(0))
    last = primary_convolution(net, primary.conv, primary.norm, where)
    prepared = _prepared(images, open_)
    _, maps = read_stem(net, stem_names, last, prepared, watch(net, prepared, where), where)
    images[IMAGES // 2 :] *= min(1000.0, max(1.0, 0.5 / float(maps.std().clamp(min=1e-9))))
    last = primary_convolution(net, primary.conv, primary.norm, where)
    prepared = _prepared(images, open_)
    given = watch(net, prepared, where)
    stem, maps = read_stem(net, stem_names, last, prepared, given, where)
    check_alone(net, prepared, given.outputs, tolerance, where)
    case = _case(net, last, primary, routed, maps, given, where)
    fit = search(case, tolerance)
    model = _build(image, stem, last, fit, case, open_)
    with torch.no_grad():
        error = max(errors(model(images), case.targets), default=torch.inf)
    if not error <= tolerance:
        raise ModelError(f"{where}: the caplet model's outputs differ by {error:.1e}, {tolerance:g} is allowed")
    folded = [name for part in (*stem, last) for name in part.folded]
    open_.read += [f"batch norms folded into convolutions: {', '.join(folded)}"] if folded else []
    open_.read += [
        f"{primary.conv}: dim={fit.grouping.dim}, channels={fit.grouping.channels}, listed={fit.grouping.listed}",
        f"{routed.weight}: layout={fit.layout.axes}, iterations={fit.iterations}",
        f"outputs equal those of {where} within {error:.1e} on {IMAGES} random images",
    ]
    model.notes = open_.notes() | {"assumed": {}}
    return model


def _check_stated(primary: Primary, routed: Routed, tolerance: float, where: str) -> None:
    for name, word, known in (("channels", primary.channels, CHANNELS), ("listed", primary.listed, LISTED)):
        if word is not None and word not in known:
            raise ModelError(f"{where}: {name}={word!r}{suggest(str(word), known)} (known: {', '.join(known)})")
    for name, value, most in (("iterations", routed.iterations, 100), ("dim", primary.dim, 4096)):
        if value is not None and not (isinstance(value, int) and 1 <= value <= most):
            raise ModelError(f"{where}: {name}={value!r}; the rule is a whole number, 1 to {most}, or None to find it")
    if routed.layout is not None and sorted(routed.layout.replace(" ", "")) != sorted("ikod"):
        raise ModelError(f"{where}: layout={routed.layout!r}; the rule is each of the letters i, k, o, d once")
    if not 0 < tolerance <= 0.1:
        raise ModelError(f"{where}: tolerance={tolerance}; the rule is above 0, at most 0.1")


def _prepared(images: Tensor, open_: Assumptions) -> Tensor:
    mean, std = (tensor.float().view(-1, 1, 1) for tensor in open_.take("normalize"))
    if len(mean) not in (1, images.shape[1]):
        raise ModelError(
            f"{open_.where}: cannot assume normalize for {len(mean)} channels; images have {images.shape[1]}"
        )
    if images.shape[1] == 3 and open_.take("channels"):
        images = images.flip(1)
    prepared: Tensor = (images - mean) / std
    return prepared


def _case(
    net: nn.Module, last: StemPart, primary: Primary, routed: Routed, maps: Tensor, given: Seen, where: str
) -> Case:
    """What is known of the capsules; the part that owns the weights may read primary and give class capsules."""
    path = routed.weight.rpartition(".")[0]
    weight = _parameter(net, routed.weight, where)
    bias = None if routed.bias is None else _parameter(net, routed.bias, where)
    own = given.parts.get(path, []) if path else []
    before = (*last.paths, primary.norm)
    whole = [*(calls[-1][1] for part, calls in given.parts.items() if part not in before), *(call[0] for call in own)]
    read = [tensor for tensor in whole if tensor is not None and tensor.numel() == maps.numel()]
    found = [*given.outputs, *([call[1] for call in own] if len(own) == 1 else [])]
    targets = [tensor for tensor in found if tensor is not None and tensor.ndim > 1 and tensor.is_floating_point()]
    parameters = (net.get_submodule(path) if path else net).named_parameters(path, recurse=bool(path))
    others = {other: tensor.detach().float().cpu() for other, tensor in parameters if other != routed.weight}
    return Case(where, primary, routed, maps, weight, bias, read[-1] if read else None, targets, others)


def _parameter(net: nn.Module, path: str, where: str) -> Tensor:
    try:
        found: Any = reduce(getattr, path.split("."), net)
    except AttributeError:
        names = [name for name, _ in net.named_parameters()]
        hint = suggest(path, names) or f"; it has {listed(names)}"
        raise ModelError(f"{where}: no parameter {path!r}{hint}") from None
    if isinstance(found, nn.ParameterList):
        found = torch.stack(tuple(found))
    if not isinstance(found, Tensor):
        names = [name for name, _ in net.named_parameters() if name.startswith(f"{path}.")]
        raise ModelError(f"{where}: {path} is a {type(found).__name__}, not a parameter; it has {listed(names)}")
    tensor: Tensor = found.detach().float().cpu()
    return tensor


def _build(
    image: tuple[int, int, int], stem: list[StemPart], last: StemPart, fit: Fit, case: Case, open_: Assumptions
) -> CapsNet:
    grouping, sizes = fit.grouping, fit.layout.sizes
    types = len(last.weight) // grouping.dim
    kernel, bias, digit = last.weight, last.bias, fit.layout(case.weight).flatten(2)
    if grouping.channels == "components":
        kernel = kernel.view(grouping.dim, types, *kernel.shape[1:]).transpose(0, 1).flatten(0, 1)
        bias = None if bias is None else bias.view(grouping.dim, types).T.flatten()
    if grouping.listed == "positions":
        digit = digit.view(-1, types, *digit.shape[1:]).transpose(0, 1).flatten(0, 1)
    config = ShallowCapsConfig(
        image=image,
        classes=sizes["o"],
        stem=tuple(
            StemConv(
                kernel=part.weight.shape[2],
                stride=part.stride,
                channels=len(part.weight),
                padding=part.padding,
                batch_norm=None if part.kept is None else part.kept.eps,
                slope=part.slope or 0.0,
            )
            for part in stem
        ),
        primary_types=types,
        primary_dim=grouping.dim,
        primary_kernel=kernel.shape[2],
        primary_stride=last.stride,
        primary_padding=last.padding,
        primary_flat=grouping.channels == "flat",
        class_dim=sizes["d"],
        iterations=fit.iterations,
        primary_bias=bias is not None,
        class_bias=case.bias is not None,
    )
    tensors = {"primary.weight": kernel, "digit.weight": digit}
    tensors |= {} if bias is None else {"primary.bias": bias}
    tensors |= {} if case.bias is None else {"digit.bias": case.bias.reshape(sizes["o"], sizes["d"])}
    for index, part in enumerate(stem, start=1):
        tensors[f"conv{index}.weight"] = part.weight
        tensors[f"conv{index}.bias"] = torch.zeros(len(part.weight)) if part.bias is None else part.bias
        norm = {} if part.kept is None else part.kept.tensors
        tensors |= {f"conv{index}.batch_norm.{name}": tensor for name, tensor in norm.items()}
    padded = (*stem, last)[0].padding != 0
    unfolded = open_.fold(tensors, "conv1" if stem else "primary", padded=padded)
    return assemble("shallow", config.model_copy(update=unfolded), tensors, case.where)
