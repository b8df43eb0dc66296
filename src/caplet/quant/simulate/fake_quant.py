"""Fake quantization: a float model whose every point holds only the values that the plan's formats can hold."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from caplet.errors import PlanError
from caplet.fixed import FixedFormat, PlanFormat, Rounding, stochastic_noise
from caplet.fixed import softmax as integer_softmax
from caplet.fixed import squash as integer_squash
from caplet.fixed.squash import check_squash_formats, squash_factor
from caplet.models.base import CapsNet
from caplet.nn.points import Handler, PointSpec, Role, Storage
from caplet.quant.plan.formats import in_memory_order
from caplet.quant.plan.plan import QuantPlan, sibling

LARGEST = 1 << 17
"""Longer tables are not made."""
_BLOCK = 1 << 18  # elements rounded at a time: one block stays in the cache through all passes
_VERSIONS = 2
"""Quantized forms of one constant that are remembered."""


def table_length(fmt: FixedFormat, dims: int) -> int:
    """Entries that a table for capsules of ``dims`` codes in ``fmt`` needs: their squared lengths, 0 to the largest."""
    largest = max(-fmt.min_code, fmt.max_code)
    return dims * largest * largest + 1


def table_squash(capsules: Tensor, fmt: FixedFormat, out: FixedFormat, rounding: Rounding) -> Tensor | None:
    """Squash capsules along the last axis to exactly the values that :func:`caplet.fixed.squash` gives.

    Args:
        capsules: float32 values of ``fmt``, shape (..., D), contiguous.
        rounding: nearest or truncate.

    Returns:
        A new float32 tensor of values of ``out``; None where a table would not pay: wide codes, few capsules.

    Raises:
        PlanError: formats that squash does not accept.
    """
    dims = capsules.shape[-1]
    check_squash_formats(fmt, out, dims)
    entries = table_length(fmt, dims)
    if entries > min(LARGEST, capsules.numel() // dims):
        return None
    factors = _factors(entries, fmt.frac_bits, out.frac_bits)
    result = torch.empty_like(capsules)
    rows, wanted = capsules.view(-1, dims), result.view(-1, dims)
    step = max(1, _BLOCK // dims)
    for low in range(0, len(rows), step):
        codes = rows[low : low + step] * 2.0**fmt.frac_bits
        length = (codes * codes).sum(-1).to(torch.int64)  # exact: below 2**24
        values = codes.double().mul_(torch.take(factors, length).unsqueeze(-1))
        if rounding is Rounding.NEAREST:  # half up without a rounded sum, as FixedFormat does
            values.mul_(2.0).floor_().add_(1.0).mul_(0.5)
        values.floor_().clamp_(out.min_code, out.max_code).mul_(out.step)
        wanted[low : low + step] = values
    return result


@lru_cache(maxsize=256)
def _factors(entries: int, frac_bits: int, out_frac_bits: int) -> Tensor:
    """The factor of every squared length, float64 (entries,), exact: 31 bits times a power of two."""
    mult, shift = squash_factor(torch.arange(entries), frac_bits, out_frac_bits)
    result: Tensor = mult.double() * torch.exp2(-shift.double())
    return result


def point_noise(seed: int, key: str, spec: PointSpec, iteration: int = 0) -> Tensor:
    """The noise of stochastic rounding at a point, the same for every image: int64 in [0, 2**32), shape ``spec.shape``.

    Elements are numbered in the device's order (``spec.device_axes``), those of routing iteration t from
    ``t * spec.elements`` on (see :func:`caplet.fixed.stochastic_noise`).
    """
    axes = spec.device_axes
    draw = stochastic_noise(seed, key, spec.elements, iteration * spec.elements).astype(np.int64)
    return torch.from_numpy(draw).view([spec.shape[axis] for axis in axes]).permute(*np.argsort(axes).tolist())


def quantize_in_place(value: Tensor, fmt: FixedFormat, rounding: Rounding) -> Tensor:
    """``value.copy_(fmt.quantize(value, rounding))`` in cache-sized blocks; not for stochastic rounding.

    value: float32, any shape and strides without overlap; holds no NaN. Returns ``value``.
    """
    ordered, _ = in_memory_order(value)
    if not ordered.is_contiguous():
        return value.copy_(fmt.quantize(value, rounding))
    scale = 2.0**fmt.frac_bits
    for block in torch.split(ordered.view(-1), _BLOCK):
        if rounding is Rounding.NEAREST:  # half up without a rounded sum, as FixedFormat does
            block.mul_(2.0 * scale).floor_().add_(1.0).mul_(0.5).floor_()
        else:
            block.mul_(scale).floor_()
        block.clamp_(fmt.min_code, fmt.max_code).mul_(fmt.step)
    return value


def quantize_carried(votes: Tensor, fmt: FixedFormat) -> Tensor:
    """Values of ``fmt`` for votes float32 (B, G, I, D), with remainders carried on from input capsule to input capsule.

    The running sums are float64: exact as long as they stay below 2**52 steps of the products.

    Source: see :func:`caplet.fixed.carried_shift`.
    """
    result = torch.empty_like(votes)
    for part, into in zip(torch.split(votes, 1), torch.split(result, 1), strict=True):
        sums = part.double().mul_(2.0**fmt.frac_bits).cumsum_(2).add_(0.5).floor_()
        sums[:, :, 1:] -= sums[:, :, :-1].clone()
        into.copy_(sums.clamp_(fmt.min_code, fmt.max_code).mul_(fmt.step))
    return result


def quantized_constant(plan: QuantPlan, key: str, spec: PointSpec, value: Tensor) -> Tensor:
    """A constant's values under ``plan``, a new tensor."""
    rounding = plan.rounding_of(key, spec)
    noise = point_noise(plan.seed, key, spec).to(value.device) if rounding is Rounding.STOCHASTIC else None
    result: Tensor = plan.points[key].quantize(value, rounding, noise)
    return result


class WeightCache:
    """Quantized constants by (point, format, rounding, seed): the last :data:`_VERSIONS` of each point.

    An entry belongs to one parameter in one state: it is dropped when the parameter is another or was changed in
    place. Constants derived from parameters (batch norm) are small and computed anew.
    """

    def __init__(self) -> None:
        self._entries: dict[str, dict[tuple[PlanFormat, Rounding, int], tuple[Tensor, int, Tensor]]] = {}

    def get(self, key: str, plan: QuantPlan, spec: PointSpec, value: Tensor) -> Tensor:
        """The quantized form of ``value`` under ``plan``; computed where it is not known."""
        if not isinstance(value, torch.nn.Parameter):
            return quantized_constant(plan, key, spec, value)
        rounding = plan.rounding_of(key, spec)
        wanted = (plan.points[key], rounding, plan.seed if rounding is Rounding.STOCHASTIC else 0)
        versions = self._entries.setdefault(key, {})
        found = versions.pop(wanted, None)
        if found is None or found[0] is not value or found[1] != value._version:
            found = (value, value._version, quantized_constant(plan, key, spec, value.detach()))
        versions[wanted] = found  # the last one used comes last
        if len(versions) > _VERSIONS:
            del versions[next(iter(versions))]
        return found[2]


class FakeQuant(Handler):
    """A :class:`~caplet.nn.points.Handler` that rounds every tensor to the plan's format of its point.

    Softmax and squash are the integer functions of :mod:`caplet.fixed` on codes, the same that the interpreter and
    the C code run. Sums of products (convolutions, votes, agreement) are float32: they equal the integer sums as long
    as these stay below 2**24, and beyond that may differ in the last place before rounding.

    Args:
        plan: must cover the points (see :meth:`QuantPlan.check`).
        specs: the model's points by key.
        weights: quantized constants to share between several handlers of one model.

    For inference (no gradients flow through rounding). Tensors may be rounded in place: outputs of layers are fresh.
    """

    fixed_point = True

    def __init__(self, plan: QuantPlan, specs: Mapping[str, PointSpec], *, weights: WeightCache | None = None) -> None:
        self.plan, self.specs = plan, specs
        self.weights = WeightCache() if weights is None else weights
        self._exact: Tensor | None = None  # what softmax or squash just returned: already on the grid
        self._noises: dict[tuple[str, int], Tensor] = {}

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        if value is self._exact:
            self._exact = None
            return value
        if spec.storage is Storage.FLASH:
            return self.weights.get(key, self.plan, spec, value)
        fmt, rounding = self.plan.points[key], self.plan.rounding_of(key, spec)
        noise = self._noise(key, iteration, value)
        if not isinstance(fmt, FixedFormat):
            raise PlanError(f"point {key}: format {fmt}; such formats are for weights, this is a {spec.role}")
        if spec.role is Role.IMAGE:  # the caller's tensor; the device reads its codes from a table, always nearest
            image: Tensor = fmt.quantize(value)
            return image
        if rounding is Rounding.CARRY:
            return quantize_carried(value, fmt)
        if torch.is_grad_enabled():
            rounded: Tensor = fmt.quantize(value, rounding, noise)
            return rounded
        if noise is None:
            return quantize_in_place(value, fmt, rounding)
        for part in torch.split(value, max(1, _BLOCK // spec.elements)):
            part.copy_(fmt.quantize(part, rounding, noise))
        return value

    def softmax(self, key: str, logits: Tensor, dim: int, iteration: int) -> Tensor:
        fmt, out = self._format(sibling(key, "logits")), self._format(key)
        codes = (logits * 2.0**fmt.frac_bits).to(torch.int32)
        noise = self._noise(key, iteration, logits)
        coupling = integer_softmax(codes, fmt, out, dim, self.plan.rounding.alone, noise)
        self._exact = out.decode(coupling)
        return self._exact

    def squash(self, key: str, capsules: Tensor, dim: int, iteration: int) -> Tensor:
        fmt, out = self._format(sibling(key, "preactivation")), self._format(key)
        ordered, order = in_memory_order(capsules, last=dim % capsules.ndim)
        noise = self._noise(key, iteration, capsules)
        values = None
        if noise is not None:
            noise = noise.permute(order)
        elif ordered.is_contiguous() and ordered.device.type == "cpu":
            values = table_squash(ordered, fmt, out, self.plan.rounding.alone)
        if values is None:
            codes = (ordered * 2.0**fmt.frac_bits).to(torch.int32)
            values = out.decode(integer_squash(codes, fmt, out, self.plan.rounding.alone, noise))
        self._exact = values.permute(*np.argsort(order).tolist())
        return self._exact

    def _format(self, key: str) -> FixedFormat:
        fmt = self.plan.points.get(key)
        if not isinstance(fmt, FixedFormat):
            raise PlanError(f"point {key}: format {fmt}; a computed tensor needs a fixed-point format")
        return fmt

    def _noise(self, key: str, iteration: int, like: Tensor) -> Tensor | None:
        """The point's noise with a leading batch axis of 1, where ``like`` is; None where the plan draws none."""
        if self.plan.rounding_of(key, self.specs[key]) is not Rounding.STOCHASTIC:
            return None
        if (key, iteration) not in self._noises:
            noise = point_noise(self.plan.seed, key, self.specs[key], iteration)
            self._noises[key, iteration] = noise.unsqueeze(0).to(like.device)
        return self._noises[key, iteration]


@contextmanager
def fake_quantized(model: CapsNet, plan: QuantPlan) -> Iterator[CapsNet]:
    """Within a ``with`` block, ``model`` computes with the plan's numbers; call it under ``torch.no_grad()``.

    Raises:
        PlanError: the plan does not fit the model.

    Example: ``with torch.no_grad(), fake_quantized(model, plan): capsules = model(images)``
    """
    plan.check(model)
    with model.handle(FakeQuant(plan, model.points())):
        yield model
