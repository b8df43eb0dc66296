"""A second device in pure Python, called ``elsewhere``: its tensors hold CPU tensors, which do the arithmetic.

What runs here as on the CPU, to the last bit, moves what it needs to the device and back. As a GPU does, the device
refuses operations that mix its tensors with those of the CPU, and numpy cannot see its tensors. Beyond a GPU it refuses
to draw random numbers: draws must not depend on the device.

The device counts what is copied to it and from it. It is there from this module's import to the end of the process.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_GET_DATA, _SET_DATA = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]
copies: Counter[str] = Counter()
"""How many tensors of one element or more went ``to`` the device and ``from`` it."""


class DeviceModule:
    """What torch asks of ``torch.elsewhere``."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False  # to what looks for any device, such as DataParallel in other tests of this process

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class DeviceTensor(Tensor):
    """A tensor of the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        inference = torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if inference else nullcontext():  # the inner tensor is one of inference
            found: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                layout=inner.layout,
                device=_DEVICE,
                requires_grad=False,
            )
        found.inner = inner
        return found

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"DeviceTensor({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func == _SET_DATA:  # torch would change what is around the inner tensor only
            _set_data(*args)
            return None
        if func == _GET_DATA:
            return DeviceTensor(args[0].inner)
        if func == Tensor.tolist:
            return args[0].cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        special = _SPECIAL.get(func.overloadpacket)
        if special is not None:
            return special(func, *args, **kwargs)
        if _has_parts(func):  # inference mode leaves it to this one
            return func.decompose(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{func} draws random numbers on the device; draw on the CPU")
        found = func(*_mapped(_only_inside, args), **_mapped(_only_inside, kwargs))
        if (changed := _changed(func)) is None:
            return _mapped(_outside, found)
        written = tuple(kwargs[name] if name in kwargs else args[place] for name, place in changed)
        _mapped(_check_size, written)
        return None if found is None else written[0] if len(func._schema.returns) == 1 else written


def _set_data(tensor: DeviceTensor, value: DeviceTensor) -> None:
    if tensor.stride() == value.stride():
        tensor.inner = value.inner
        return
    fresh = DeviceTensor(value.inner).requires_grad_(tensor.requires_grad)
    vars(fresh).update({name: kept for name, kept in vars(tensor).items() if name != "inner"})
    torch.utils.swap_tensors(tensor, fresh)


def _mapped(one: Callable[[Any], Any], values: Any) -> Any:
    """``one`` of every value in nested tuples, lists and dicts; far faster than torch's trees, which take any class."""
    if type(values) is tuple or type(values) is list:
        return type(values)([_mapped(one, value) for value in values])
    return {name: _mapped(one, value) for name, value in values.items()} if type(values) is dict else one(values)


def _inside(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _only_inside(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) and value.ndim:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and"
            f" {value.device}!"
        )
    return _inside(value)


def _outside(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, Tensor) else value


def _check_size(value: Any) -> None:
    if isinstance(value, DeviceTensor) and value.shape != value.inner.shape:
        raise NotImplementedError(f"an operation changes the size of a tensor of {tuple(value.shape)}")


@cache
def _has_parts(func: Any) -> bool:
    """Whether an operation is made of others."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return key in func.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


@cache
def _changed(func: Any) -> tuple[tuple[str, int], ...] | None:
    """Names and places of the arguments that an operation changes and gives back; None for other operations."""
    found = [
        (at, a) for at, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write
    ]
    returned = func._schema.returns
    if not found or (returned and returned[0].alias_info is None):  # batch norms change a buffer and give new tensors
        return None
    return tuple((a.name, at) for at, a in found)


def _to_copy(func: Any, value: Tensor, **kwargs: Any) -> Tensor:
    """Between the devices, and between dtypes and memory formats."""
    device = torch.device(kwargs.pop("device", None) or value.device)
    inner = value.inner if isinstance(value, DeviceTensor) else value
    found: Tensor = torch.ops.aten._to_copy.default(inner, **{**kwargs, "pin_memory": None, "non_blocking": False})
    if device.type == "cpu":
        copies["from"] += isinstance(value, DeviceTensor)
        return found
    copies["to"] += not isinstance(value, DeviceTensor)
    return DeviceTensor(found)


def _copy_(func: Any, into: Tensor, value: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(into, DeviceTensor) != isinstance(value, DeviceTensor):
        copies["to" if isinstance(into, DeviceTensor) else "from"] += 1
    func(_inside(into), _inside(value))
    return into


_SPECIAL: dict[Any, Callable[..., Any]] = {torch.ops.aten._to_copy: _to_copy, torch.ops.aten.copy_: _copy_}
_FACTORIES = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "full", "zeros", "ones",
    "eye", "eye.m", "scalar_tensor", "linspace",
)  # fmt: skip


def _factory(name: str) -> Callable[..., Tensor]:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def make(*args: Any, **kwargs: Any) -> Tensor:
        return DeviceTensor(
            func(*_mapped(_inside, args), **{**_mapped(_inside, kwargs), "device": torch.device("cpu")})
        )

    return make


def _refuse(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("random numbers drawn on the device; draw on the CPU")


_setup_privateuseone_for_python_backend(rename=NAME, backend_module=DeviceModule())
_DEVICE = torch.device(NAME, 0)
_library = torch.library.Library("aten", "IMPL")
for _name in _FACTORIES:
    _library.impl(_name, _factory(_name), "PrivateUse1")
for _name in ("rand", "randn", "randint", "randperm", "rand.generator", "randint.generator", "randperm.generator"):
    _library.impl(_name, _refuse, "PrivateUse1")
_library.impl("_to_copy", lambda *args, **kwargs: _to_copy(None, *args, **kwargs), "PrivateUse1")
