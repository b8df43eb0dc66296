"""A user's PyTorch module as a caplet model: its layers are named, its outputs compared on random images.

Codes of capsule networks differ in the order of primary capsules and in the axes of the votes' weights: all are tried.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from caplet.errors import ModelError, suggest
from caplet.models.assemble import assemble, first_line, listed, shape_text
from caplet.models.base import CapsNet
from caplet.models.importers.assume import Assumptions
from caplet.models.importers.sizes import Case, Reading, difference, errors, readings, search
from caplet.models.shallow import ShallowCapsConfig
from caplet.nn.layer import Padding

IMAGES, EQUAL, EPSILON = 6, 1e-4, 1e-5
"""Random images, the largest difference of equal maps, and the epsilon of a batch norm that is kept."""
Calls = dict[str, list[tuple[Tensor | None, Tensor | None]]]
"""By path of a part, for each of its calls the first tensor that it read and the first that it gave."""


def adopt(
    module: nn.Module,
    image: tuple[int, int, int],
    stem: Sequence[str],
    primary: str,
    digits: str,
    *,
    norm: str | None = None,
    bias: str | None = None,
    iterations: int | None = None,
    assume: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
) -> CapsNet:
    """Make a caplet model of a PyTorch module, and prove on random images that both give the same.

    Args:
        module: takes float images (B, C, H, W) alone and returns class capsules (B, classes, D), their lengths
            (B, classes) or a softmax of these, at any depth; the rest is left out. It may be wrapped, on any device, of
            16 to 64 bits, in training mode, with weight norm or masks; it is run in evaluation mode and left as it is.
        image: (channels, rows, columns).
        stem: in order, the path of each Conv2d and BatchNorm2d before the capsules, or of a Sequential of these; ReLU
            and LeakyReLU are found, named or not.
        primary: path of the primary capsules' Conv2d, or of a list of Conv2d whose channels follow one another. What
            makes a capsule, and the order of capsules, is found.
        digits: path of the class capsules' weights, a Parameter or a ParameterList. What its axes hold is found.
        norm: path of a batch norm between the primary capsules' convolution and squash.
        bias: path of a Parameter (classes, D) that is added before the class capsules' squash.
        iterations: how often class capsules are computed for an image; None to find it.
        assume: ``normalize`` (mean, std) and ``channels`` ("bgr"), as for :func:`caplet.load`: how images are prepared
            for the module. The model takes pixels in [0, 1], RGB.
        tolerance: largest difference of outputs, relative to each image's largest value (0.01 at least).

    Returns:
        The model, float32, in evaluation mode; ``notes["read"]`` says what was found.

    Raises:
        ModelError: a layer that is not as named, or outputs that differ: by how much, and in which layer first.

    >>> adopt(nn.Sequential(nn.ReLU()), (1, 8, 8), ["conv1"], "primary.conv", "digits.W")
    Traceback (most recent call last):
    ...
    caplet.errors.ModelError: Sequential: there is no layer or parameter 'conv1'; it has 0
    """
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module = module.module
    net = getattr(module, "_orig_mod", module)  # of torch.compile
    name, open_ = type(net).__name__, Assumptions(assume or {}, "assume", None)
    try:
        if not isinstance(net, nn.Module) or isinstance(net, torch.jit.ScriptModule):
            raise ModelError("it cannot be adopted; give the torch.nn.Module itself, no file, script or trace")
        if isinstance(stem, str) or not all(isinstance(path, str) for path in (*stem, primary, digits)):
            raise ModelError("stem is a list of paths, primary and digits are paths: texts such as 'primary.conv'")
        if isinstance(tolerance, str) or isinstance(iterations, bool | str | float):
            raise ModelError(
                f"iterations={iterations!r}, tolerance={tolerance!r}; the rule is a whole number or None, a number"
            )
        images = _images(ShallowCapsConfig(image=image).image)
        convs, case = _case(net, images, open_, tolerance, [*stem], primary, norm, digits, bias)
        reading, count = search(case, iterations, tolerance)
        model = _build(images.shape[1:], convs, reading, count, case, open_)
        with torch.no_grad():
            worst = max(errors(model(images), case.targets), default=torch.inf)
        if not worst <= tolerance:
            raise ModelError(f"the caplet model's outputs differ by {worst:.1e}, {tolerance:g} is allowed")
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error.__cause__
    found = f"dim={reading.sizes['k']}, capsules={reading.capsules}, order={reading.order}, layout={reading.layout}"
    same = f"outputs equal within {worst:.1e} on {IMAGES} random images"
    model.notes = open_.notes() | {"assumed": {}, "read": [f"{name}: {found}, iterations={count}; {same}"]}
    return model


def _images(shape: tuple[int, int, int]) -> Tensor:
    """Noise, and in each half an image of black and white blocks: edges reach values that noise does not."""
    seeded, (channels, rows, columns) = torch.Generator().manual_seed(0), shape
    images = torch.rand(IMAGES, *shape, generator=seeded)
    blocks = torch.rand(2, channels, -(-rows // 4), -(-columns // 4), generator=seeded).round()
    images[:: IMAGES // 2] = F.interpolate(blocks, (rows, columns))
    return images


def watch(net: nn.Module, images: Tensor) -> tuple[list[Tensor], Calls]:
    """All tensors that ``net`` returns in evaluation mode, 16 bits as float32, and its parts' calls; it stays as is."""
    calls: Calls = {}

    def note(path: str, _: nn.Module, *values: Any) -> None:
        read, given = (next(_tensors(value), None) for value in values)
        calls.setdefault(path, []).append((read, given))

    tensors = dict((*net.named_parameters(), *net.named_buffers()))
    wide = {name: t.float() for name, t in tensors.items() if t.dtype in (torch.float16, torch.bfloat16)}
    for tensor in tensors.values():
        images = images.to(tensor.device, torch.promote_types(images.dtype, tensor.dtype))
    modes = [(part, part.training) for part in net.modules()]
    hooks = [part.register_forward_hook(partial(note, path)) for path, part in net.named_modules()]
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return [*_tensors(functional_call(net.eval(), wide, (images,)))], calls
    except Exception as error:  # a user's code can fail in any way
        text = f"its forward fails on one argument, images {shape_text(images.shape)}: {first_line(error)}"
        raise ModelError(f"{text}; give their size, and the part that takes images alone") from error
    finally:
        for part, mode in modes:
            part.training = mode
        for hook in hooks:
            hook.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Copies on the CPU, floating-point values as float32: what comes later may change the original in place."""
    if isinstance(value, Tensor):
        yield value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
    for entry in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ():
        yield from _tensors(entry)


@dataclass
class ReadConv:
    """A convolution, float64, with its batch norms; slope, and scale and offset, of what is ``after`` it."""

    name: str
    weight: Tensor
    bias: Tensor
    stride: int
    padding: Padding
    slope: float | None = None
    after: tuple[Tensor, Tensor] | None = None


def _convolutions(
    net: nn.Module, names: list[str], last: list[Any], x: Tensor, calls: Calls
) -> tuple[list[ReadConv], Tensor]:
    """The convolutions in ``names``, then that of ``last`` and its batch norm, and what these two give (B, C, H, W)."""
    found: list[ReadConv] = []
    for path, part in _expanded(net, names):
        _, x = _met(path, found, x, calls)
        found = [*found, _read(path, part)] if isinstance(part, nn.Conv2d) else _folded(path, part, found)
    end = _part(net, last[0])
    ends = {last[0]: end}
    if isinstance(end, nn.ModuleList | nn.Sequential):
        ends = {f"{last[0]}.{name}": part for name, part in end.named_children()} or ends
    parts = [_read(path, part) for path, part in ends.items()]
    if len({(one.weight.shape, one.stride, one.padding) for one in parts}) > 1:
        raise ModelError(f"{last[0]}: its convolutions differ in shape, stride or padding; name one of them")
    read, _ = _met(parts[0].name, found, x, calls)
    maps = torch.cat([_met(path, [], read, calls)[1] for path in ends], 1)
    weight, bias = (torch.cat([getattr(one, name) for one in parts]) for name in ("weight", "bias"))
    found.append(ReadConv(last[0], weight, bias, parts[0].stride, parts[0].padding))
    if last[1] is not None:
        _, maps = _met(last[1], [], maps, calls)
        _folded(last[1], _part(net, last[1]), found)
    for before, conv in pairwise(found):
        if before.slope is None:
            raise ModelError(f"no activation between {before.name} and {conv.name}: a ReLU or LeakyReLU is needed")
        if before.after and not conv.padding:
            (scale, offset), before.after = before.after, None
            conv.bias = conv.bias + (conv.weight * offset.view(-1, 1, 1)).sum((1, 2, 3))
            conv.weight = conv.weight * scale.view(-1, 1, 1)
    return found, maps


def _met(path: str, found: list[ReadConv], x: Tensor, calls: Calls) -> tuple[Tensor, Tensor]:
    """What a part reads, ``x`` or its ReLU or LeakyReLU, which then the last one found has; and what it gives."""
    own, before = calls.get(path, []), found[-1] if found else None
    read, given = own[0] if len(own) == 1 else (None, None)
    if read is None or given is None:
        raise ModelError(f"{path} runs {len(own)} times for a batch; a layer here runs once")
    if read.shape != x.shape:
        shapes = f"{shape_text(read.shape[1:])}, but what is named before it gives {shape_text(x.shape[1:])}"
        raise ModelError(f"{path} reads {shapes}; name all layers, in the order in which they run")
    if (error := difference(x, read)) > EQUAL and before is not None and before.slope is None:
        below = x < 0
        slope = max(0.0, round(float((read * x)[below].sum() / (x * x)[below].sum()), 6))
        if slope < 1 and difference(F.leaky_relu(x, slope), read) <= EQUAL:
            before.slope, error = slope, 0.0
    if error > EQUAL:
        source = f"what {before.name} and the layers named after it give" if before else "the images"
        todo = "name what is between" if before else "state how they are prepared (assume), or name a part within"
        raise ModelError(f"first difference in {path}: it reads other maps than {source} ({error:.1e}); {todo}")
    return read, given


def _expanded(net: nn.Module, names: list[str]) -> Iterator[tuple[str, Any]]:
    """Convolutions and batch norms, those of a Sequential one by one; activations are found, whether named or not."""
    for name in names:
        part = None if name in ("relu", "leaky_relu") else _part(net, name)
        if isinstance(part, nn.Sequential):
            yield from _expanded(net, [f"{name}.{child}" for child, _ in part.named_children()])
        elif not isinstance(part, nn.ReLU | nn.LeakyReLU | nn.PReLU | nn.Identity | nn.Dropout | nn.Dropout2d | None):
            yield name, part


def _part(net: nn.Module, path: str) -> Any:
    found: Any = net
    for name in path.split("."):
        found = getattr(found, name, None)
    if found is None:
        names = [name for name, _ in (*net.named_modules(), *net.named_parameters()) if name]
        hint = suggest(path, names) or f"; it has {listed(names)}"
        raise ModelError(f"there is no layer or parameter {path!r}{hint}")
    return found


def _parameter(net: nn.Module, path: str) -> Tensor:
    if isinstance(found := _part(net, path), nn.ParameterList):
        found = torch.stack(tuple(found))
    if not isinstance(found, Tensor):
        raise ModelError(f"{path} is {found!s:.60}; the rule is a Parameter: name that of the votes' weights in it")
    return next(_tensors(found)).float()


def _read(path: str, part: Any) -> ReadConv:
    padding: Any = getattr(part, "padding", 0)
    sides = (0, 0) if isinstance(padding, str) else padding
    plain = isinstance(part, nn.Conv2d) and all(len({*p}) == 1 for p in (part.kernel_size, part.stride, sides))
    if not plain or part.groups > 1 or max(part.dilation) > 1 or part.padding_mode != "zeros":
        inner = part.named_modules() if isinstance(part, nn.Module) else ()
        names = listed([f"{path}.{name}" for name, each in inner if isinstance(each, nn.Conv2d) and name])
        rule = "a Conv2d with one kernel size, stride and padding both ways, no groups, dilation or reflection"
        raise ModelError(f"{path} is {' '.join(str(part).split())[:120]}; the rule is {rule}{names and f': {names}'}")
    weight = part.weight.detach().cpu().double()
    bias = torch.zeros(len(weight)).double() if part.bias is None else part.bias.detach().cpu().double()
    same = padding == "same" and part.kernel_size[0] > 1
    return ReadConv(path, weight, bias, part.stride[0], "same" if same else int(sides[0]))


def _folded(path: str, part: Any, found: list[ReadConv]) -> list[ReadConv]:
    """Fold a batch norm into the last convolution, or into what is after its ReLU."""
    if not isinstance(part, nn.BatchNorm2d) or part.running_mean is None or not found:
        known = "Conv2d, then BatchNorm2d with a mean and a variance, ReLU and LeakyReLU"
        raise ModelError(f"{path} is {' '.join(str(part).split())[:120]}; the rule is {known}; name what is in it")
    norm: dict[str, Any] = {name: tensor.detach().cpu().double() for name, tensor in part.state_dict().items()}
    scale = norm.get("weight", 1.0) * torch.rsqrt(norm["running_var"] + part.eps)
    offset, conv = norm.get("bias", 0.0) - norm["running_mean"] * scale, found[-1]
    if conv.slope is None:
        conv.weight, conv.bias = conv.weight * scale.view(-1, 1, 1, 1), conv.bias * scale + offset
    else:
        first, added = conv.after or (torch.ones_like(scale), torch.zeros_like(scale))
        conv.after = first * scale, added * scale + offset
    return found


def _case(
    net: nn.Module, images: Tensor, open_: Assumptions, tolerance: float, stem: list[str], *paths: Any
) -> tuple[list[ReadConv], Case]:
    """The convolutions, and what is known of the capsules; half of the ``images`` are changed."""
    (*last, digits, bias), prepared = paths, open_.prepared(images)
    strength = _convolutions(net, stem, last, prepared, watch(net, prepared)[1])[1].std()
    # In half of the images, primary capsules are about one long: an untrained network's are else too short to tell.
    images[IMAGES // 2 :] *= min(1000.0, max(1.0, 0.5 / float(strength.clamp(min=1e-9))))
    prepared = open_.prepared(images)
    outputs, calls = watch(net, prepared)
    convs, maps = _convolutions(net, stem, last, prepared, calls)
    for first, alone in zip(outputs, watch(net, prepared[: IMAGES // 2])[0], strict=False):
        alike = first.is_floating_point() and first.shape == (IMAGES, *alone.shape[1:]) and len(alone) == IMAGES // 2
        if alike and (worst := difference(alone, first[: IMAGES // 2])) > tolerance:
            rule = "no caplet model has dropout, batch statistics or routing logits averaged over a batch"
            raise ModelError(f"its outputs change from run to run, or with the other images, by {worst:.1e}; {rule}")
    own = calls.get(digits.rpartition(".")[0] or "?", [])  # this part may read primary capsules and give class capsules
    parts = (found[-1][1] for path, found in calls.items() if path not in last)
    read = [t for t in (*parts, *(r for r, _ in own)) if t is not None and t.numel() == maps.numel()]
    given = [*outputs, *(t for _, t in own if t is not None and len(own) == 1)]
    targets = [t for t in given if t.ndim > 1 and t.is_floating_point()]
    weight, added = _parameter(net, digits), None if bias is None else _parameter(net, bias)
    counts = {size for target in targets for size in target.shape[:3]}  # of classes, among others
    ways = [*readings(maps.shape[1:], weight.shape, counts, None if added is None else added.numel())]
    if targets and not ways:
        shapes = f"{digits} has shape {shape_text(weight.shape)}, {last[0]} {shape_text(maps.shape[1:])}"
        rule = "axes of as many values as primary capsules, their components, classes and theirs"
        raise ModelError(f"{shapes}; the rule is {rule}, and a bias of the last two: check these paths")
    return convs, Case(last[0], digits, maps, read[-1] if read else None, targets, weight, added, ways)


def _build(
    image: Any, convs: list[ReadConv], reading: Reading, iterations: int, case: Case, open_: Assumptions
) -> CapsNet:
    sizes, kernel, bias = reading.sizes, convs[-1].weight, convs[-1].bias
    digit = reading.weights(case.weight).flatten(2)
    types = len(kernel) // sizes["k"]
    if reading.capsules == "components":
        kernel = kernel.view(sizes["k"], types, *kernel.shape[1:]).transpose(0, 1).flatten(0, 1)
        bias = bias.view(sizes["k"], types).T.flatten()
    if reading.order == "positions":
        digit = digit.view(-1, types, *digit.shape[1:]).transpose(0, 1).flatten(0, 1)
    tensors = {"primary.weight": kernel, "digit.weight": digit} | ({"primary.bias": bias} if bool(bias.any()) else {})
    tensors |= {} if case.bias is None else {"digit.bias": case.bias.reshape(sizes["o"], sizes["d"])}
    windows = [{"kernel": c.weight.shape[2], "stride": c.stride, "padding": c.padding} for c in convs]
    stem: list[dict[str, Any]] = []
    for index, (conv, window) in enumerate(zip(convs[:-1], windows, strict=False), start=1):
        stem.append({**window, "channels": len(conv.weight), "slope": conv.slope})
        tensors |= {f"conv{index}.weight": conv.weight, f"conv{index}.bias": conv.bias}
        if conv.after is not None:  # as a batch norm whose mean and variance change nothing
            stem[-1]["batch_norm"], (scale, offset) = EPSILON, conv.after
            norm = {"weight": scale, "bias": offset, "running_mean": 0 * scale, "running_var": 0 * scale + 1 - EPSILON}
            tensors |= {f"conv{index}.batch_norm.{name}": tensor for name, tensor in norm.items()}
    primary = {**windows[-1], "types": types, "dim": sizes["k"], "flat": reading.capsules == "flat"}
    config = {"image": tuple(image), "classes": sizes["o"], "class_dim": sizes["d"], "iterations": iterations}
    config |= {f"primary_{name}": value for name, value in primary.items()}
    config |= {"stem": stem, "class_bias": case.bias is not None, "primary_bias": "primary.bias" in tensors}
    config |= open_.fold(tensors, "conv1" if stem else "primary", padded=convs[0].padding != 0)
    return assemble("shallow", config, tensors, "as read")
