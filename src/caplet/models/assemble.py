"""Models from named tensors and back: the names under which tensors are stored, and the checks on the way in."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from caplet.errors import ModelError
from caplet.models.base import CapsNet, ModelConfig, check_finite
from caplet.models.registry import build
from caplet.nn.points import Storage

#: A side of a square image, or (rows, columns).
ImageSize = int | tuple[int, int]


def named_tensors(model: CapsNet) -> dict[str, Tensor]:
    """Every parameter and batch-norm buffer by its stored name, ``"<layer>.<tensor>"``, in order of execution.

    The names follow the layers' point names (``block1.l1.weight``), not the nesting of Python objects, so that files
    outlive a rearrangement of the code.
    """
    return {
        f"{layer.name}.{name}": tensor
        for layer in model.layers()
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers())
    }


def tensor_parts(tensors: Mapping[str, Tensor]) -> Iterator[str | memoryview]:
    """Name and content of every tensor in turn, for :func:`caplet.files.digest`."""
    for name, tensor in tensors.items():
        yield name
        yield tensor.detach().cpu().contiguous().numpy().data


def assemble(family: str, config: ModelConfig | dict[str, Any], tensors: Mapping[str, Tensor], where: str) -> CapsNet:
    """Build a model and give it the tensors of :func:`named_tensors`, checked one by one.

    Nothing is allocated before the shapes agree: settings that claim a gigantic network cost nothing. Floating-point
    tensors become float32. ``num_batches_tracked`` counters may be absent (then 0).

    Args:
        where: what the errors start with, such as the file's path.

    Returns:
        The model in evaluation mode, owning its tensors.

    Raises:
        ModelError: invalid settings, a missing or unexpected tensor, a wrong shape or type, a NaN or infinity.
    """
    model = skeleton(family, config, where)
    expected = named_tensors(model)
    given, device = dict(tensors), next((tensor.device for tensor in tensors.values()), None)
    for name, tensor in expected.items():
        if name.endswith(".num_batches_tracked"):
            given.setdefault(name, torch.zeros(tensor.shape, dtype=tensor.dtype, device=device))
    check_names(given, expected, where, f"this {family} model")
    for name, tensor in expected.items():
        check_shape(name, given[name], tuple(tensor.shape), where)
    owner = {id(tensor): name for name, tensor in expected.items()}
    state = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        value = given[owner[id(tensor)]].detach().to(tensor.dtype)
        state[key] = value.clone(memory_format=torch.contiguous_format)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(True)
    model.to(memory_format=torch.channels_last)
    check_finite(named_tensors(model), where)
    return model.eval()


def skeleton(family: str, config: ModelConfig | dict[str, Any], where: str = "settings") -> CapsNet:
    """A model without data: every tensor has its shape only (device ``meta``). Raises ModelError."""
    try:
        with torch.device("meta"), _NoInitialisation():
            model = build(family, config)
        stored = sum(prod(spec.shape) for spec in model.points().values() if spec.storage is Storage.RAM)
        for count, most, what in ((model.parameter_count(), 1 << 30, "weights"), (stored, 1 << 28, "values per image")):
            if count > most:
                raise ModelError(f"the network has {count:,} {what}, at most {most:,} are: choose smaller sizes")
        return model
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    except (RuntimeError, OverflowError, TypeError) as error:  # what torch raises for sizes beyond 64 bits
        raise ModelError(f"{where}: settings of a network too large for any machine ({first_line(error)})") from None


class _NoInitialisation(TorchFunctionMode):
    """Leaves random initial values out: pointless without data, and PyTorch would load its compiler for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_names(found: Iterable[str], expected: Iterable[str], where: str, what: str) -> None:
    """Raise :class:`ModelError` naming up to three missing and three unexpected tensors of ``what``."""
    found, expected = dict.fromkeys(found), dict.fromkeys(expected)
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        parts = [f"{word} {listed(names)}" for word, names in (("missing", missing), ("unexpected", extra)) if names]
        raise ModelError(f"{where}: its tensors are not those of {what}: {'; '.join(parts)}; is it another network?")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    """Raise :class:`ModelError` unless ``tensor`` has ``shape``."""
    if tuple(tensor.shape) != shape:
        rule = f"the network needs {shape_text(shape)}; is it another network or image size?"
        raise ModelError(f"{where}: tensor {name} has shape {shape_text(tensor.shape)}, {rule}")


def shape_text(shape: Iterable[int]) -> str:
    """A shape for messages, such as ``(256, 1, 9, 9)``."""
    return f"({', '.join(map(str, shape))})"


def listed(names: list[str], most: int = 3) -> str:
    """Up to ``most`` names for a message, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(_short(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(name: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable if len(printable) <= 60 else printable[:57] + "..."


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message, at most 160 characters; its class name if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__
