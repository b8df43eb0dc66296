"""Exponents: those of all points tuned together, and one for every output channel of a weight.

:mod:`caplet.quant.measure.effects` chooses the exponent of one point while everything else is in float. Errors of
several points do not simply add up, so here the whole plan is quantized and one exponent after the other takes the step
that brings the lengths of the class capsules nearest to the float model's.

With an exponent per output channel each channel has its own best range, for one small shift each.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import PlanError
from caplet.fixed import ChannelFormat, FixedFormat, PlanFormat, Rounding
from caplet.fixed.format import MAX_FRAC_BITS, SHIFT_BITS
from caplet.models.base import CapsNet, State
from caplet.models.staged import StagedModel
from caplet.nn.functional import lengths
from caplet.nn.points import PointSpec, Role, Storage
from caplet.quant.plan.formats import FormatRule, FormatSource
from caplet.quant.plan.plan import QuantPlan, output_axis
from caplet.quant.reconstruct.linear_maps import parameter_of
from caplet.quant.simulate.fake_quant import FakeQuant, WeightCache

_FARTHEST = 3
"""Steps that an exponent may move in one sweep."""
_HARM = 1e-2
"""A step that adds more than this fraction of the error is not tried again in a later sweep."""
_GAIN = 1e-3
"""A step must take away at least this fraction of the error, or it is no more than noise."""
_FIRST, _CLEAR = 4, 0.1
"""A step that adds more than the fraction ``_CLEAR`` of the error on a part of the images, one in ``_FIRST``, and more
than its standard error there, is not looked at on the others: most steps are of this kind."""
_ENOUGH = 0.05
"""A sweep that takes away less than this fraction of the error is the last one."""
_REACH = 4
"""Exponents of channels are tried this far on both sides of the whole tensor's."""
_TINY = 1e-30
_Result = tuple[list[State], Tensor]
"""Of some images, states before every stage, and the squared differences of the class capsules' lengths, float (N,)."""


class ComputedOnly(FakeQuant):
    """Fake-quant of computed tensors; constants pass as they are."""

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        if spec.storage is Storage.FLASH:
            return value
        return super().tap(key, spec, value, iteration)


class ScaleSearch:
    """Searches the exponents of all points together, on one model and a few images.

    Args:
        model: whose quantized form is measured (its weights may be reconstructed already).
        source: the float model that gives the wanted lengths; it may be ``model`` itself.
        images: uint8 (N, C, H, W), a few dozen calibration images.
        constants: False leaves constants as they are during the search.
        wanted: of an earlier search on the same ``source`` and images.

    Attributes:
        wanted: the lengths that ``source`` gives, float (part of the images, classes) for each part.
    """

    def __init__(
        self,
        model: CapsNet,
        source: CapsNet,
        images: Tensor,
        *,
        constants: bool = True,
        wanted: list[Tensor] | None = None,
    ) -> None:
        self._staged = StagedModel(model)
        self._specs = model.points()
        self._weights = WeightCache()
        self._handler = FakeQuant if constants else ComputedOnly
        first = -(-len(images) // _FIRST)
        self._parts = [to_float(part, model.device) for part in (images[:first], images[first:]) if len(part)]
        self._harmful: set[tuple[str, PlanFormat]] = set()
        with torch.no_grad():
            self.wanted = wanted or [lengths(source.eval()(part)) for part in self._parts]

    def search(self, plan: QuantPlan, keys: Iterable[str], sweeps: int = 2) -> tuple[QuantPlan, float, float]:
        """Move the exponents of the fixed-point points ``keys``, in order of execution, until little helps.

        Args:
            sweeps: passes over all keys at most.

        Returns:
            The plan with the exponents found; before and after, the mean squared difference of the class-capsule
            lengths to the float model's.
        """
        wanted = set(keys)
        order = [key for key in self._specs if key in wanted and isinstance(plan.points[key], FixedFormat)]
        results = [self._run(plan, part, [(images,)]) for part, images in enumerate(self._parts)]
        before = self._mean(results)
        self._harmful.clear()
        for _ in range(sweeps):
            start = self._mean(results)
            for key in order:
                plan, results = self._move(plan, key, results)
            if self._mean(results) >= (1 - _ENOUGH) * start:
                break
        return plan, before, self._mean(results)

    def _mean(self, results: Sequence[_Result]) -> float:
        return sum(float(errors.sum()) for _, errors in results) / sum(wanted.numel() for wanted in self.wanted)

    def _move(self, plan: QuantPlan, key: str, results: list[_Result]) -> tuple[QuantPlan, list[_Result]]:
        """Step by step in the direction that helps."""
        fmt = plan.points[key]
        assert isinstance(fmt, FixedFormat)
        for direction in (1, -1):
            start = plan
            for distance in range(1, _FARTHEST + 1):
                moved = replace(fmt, frac_bits=fmt.frac_bits + direction * distance)
                tried = plan.with_formats({key: moved})
                if (key, moved) in self._harmful or not self._works(tried):
                    break
                found, change = self._change(tried, key, results)
                if change >= -_GAIN:
                    if change > _HARM:
                        self._harmful.add((key, moved))
                    break
                plan, results = tried, found
            if plan != start:
                break
        return plan, results

    def _change(self, plan: QuantPlan, key: str, results: Sequence[_Result]) -> tuple[list[_Result], float]:
        """The results under ``plan``, which differs at ``key`` only, and the fraction that it adds to the error; of
        the first part alone where that is clear."""
        first, found, change = self._staged.stage_of[key] + 1, list[_Result](), 0.0
        for part, (states, _) in enumerate(results):
            found.append(self._run(plan, part, states[:first]))
            errors, reached = (torch.cat([each for _, each in of[: part + 1]]) for of in (results, found))
            total, added = max(float(errors.sum()), _TINY), reached - errors
            change = float(added.sum()) / total
            if change > _CLEAR and change > float(added.std() * len(added) ** 0.5) / total:
                break
        return found, change

    def _works(self, plan: QuantPlan) -> bool:
        """Whether softmax and squash can work with the formats."""
        with suppress(PlanError):
            plan.check(self._staged.model)
            return True
        return False

    def _run(self, plan: QuantPlan, part: int, prefix: list[State]) -> _Result:
        """What ``plan`` gives on a part of the images, of which the first states are known."""
        states = list(prefix)
        handler = self._handler(plan, self._specs, weights=self._weights)

        def keep(stage: int, state: State) -> None:
            states.append(tuple(tensor.clone() for tensor in state))  # the next stage may round in place

        first = len(states) - 1
        with torch.no_grad():
            state = tuple(tensor.clone() for tensor in states[-1])
            capsules = self._staged.run_from(first, state, handler, keep=keep)[0]
        states.pop()
        return states, (lengths(capsules) - self.wanted[part]).square().sum(1)


def with_channel_formats(model: CapsNet, plan: QuantPlan) -> QuantPlan:
    """``plan`` with an exponent per output channel for every weight in fixed point."""
    formats: dict[str, PlanFormat] = {}
    for layer in model.layers():
        for name, spec in layer.specs.items():
            fmt = plan.points[f"{layer.name}.{name}"]
            if spec.role is Role.WEIGHT and isinstance(fmt, FixedFormat):
                formats[f"{layer.name}.{name}"] = channel_format(parameter_of(layer, name), fmt, output_axis(spec))
    return plan.with_formats(formats)


class ChannelFormats:
    """A source of formats in which weights in fixed point have an exponent per output channel, as fits give them.

    Args:
        model: whose weights they are for, batch norm folded (see :func:`caplet.quant.reconstruct.equalization.folded`).
        weights: where the exponents of weights start from.
        others: the source for everything else.
    """

    def __init__(self, model: CapsNet, weights: FormatSource, others: FormatSource) -> None:
        self._weights, self._others = weights, others
        self._channels = {
            f"{layer.name}.{name}": (parameter_of(layer, name), output_axis(spec))
            for layer in model.layers()
            for name, spec in layer.specs.items()
            if spec.role is Role.WEIGHT
        }
        self._known: dict[tuple[str, FixedFormat], ChannelFormat] = {}

    def format(
        self, key: str, width: int, rule: FormatRule = FormatRule(), rounding: Rounding = Rounding.NEAREST
    ) -> PlanFormat:
        """The format of point ``key`` at ``width`` bits."""
        if key not in self._channels:
            return self._others.format(key, width, rule, rounding)
        fmt = self._weights.format(key, width, rule, rounding)
        if not isinstance(fmt, FixedFormat):
            return fmt
        if (key, fmt) not in self._known:
            weight, axis = self._channels[key]
            self._known[key, fmt] = channel_format(weight, fmt, axis)
        return self._known[key, fmt]


def channel_format(weight: Tensor, fmt: FixedFormat, axis: int) -> ChannelFormat:
    """The format of the same width in which every output channel has the exponent of least squared error.

    Ties go to the wider range; a channel of zeros keeps the tensor's exponent.

    Args:
        weight: float, output channels on ``axis``.
        fmt: the whole tensor's format, from whose exponent the search starts.
    """
    channels = weight.detach().movedim(axis, 0).flatten(1)
    low, high = max(fmt.frac_bits - _REACH, -MAX_FRAC_BITS), min(fmt.frac_bits + _REACH, MAX_FRAC_BITS)
    tried = range(low, high + 1)
    formats = [FixedFormat(fmt.bits, frac, fmt.signed) for frac in tried]
    errors = torch.stack([(each.quantize(channels) - channels).square().sum(1) for each in formats])
    best = torch.tensor(list(tried))[errors.argmin(0).cpu()]
    best[~channels.any(1).cpu()] = fmt.frac_bits
    return from_exponents(best, fmt.bits, fmt.signed, axis)


def from_exponents(exponents: Tensor, bits: int, signed: bool, axis: int) -> ChannelFormat:
    """The format of these exponents, int64 (channels,), as far as shifts reach."""
    base = int(exponents.min())
    shifts = (exponents - base).clamp_max((1 << SHIFT_BITS) - 1)
    return ChannelFormat(bits, base, signed, tuple(shifts.tolist()), axis)
