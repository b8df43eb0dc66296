"""A model fitted to a plan block by block, each on what the quantized blocks before it give."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from caplet.errors import ConfigError, PlanError
from caplet.fixed import ChannelFormat, FixedFormat, LogFormat, PlanFormat, Rounding
from caplet.models.base import CapsNet, State
from caplet.nn.layer import Layer
from caplet.nn.points import Role, Storage
from caplet.quant.choices import Part
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.formats import Histogram, best_fixed_format
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.reconstruct.adaptive_rounding import fit, weight_grid
from caplet.quant.reconstruct.blocks import BlockStore, Chain, FittedBlock, identity
from caplet.quant.reconstruct.end_to_end import fit_end_to_end
from caplet.quant.reconstruct.equalization import equalized, folded
from caplet.quant.reconstruct.linear_maps import make_view, parameter_of
from caplet.quant.reconstruct.scale_search import ScaleSearch, from_exponents, with_channel_formats
from caplet.quant.reconstruct.settings import ReconstructSettings
from caplet.quant.simulate.fake_quant import FakeQuant

_END_TO_END = str(Part.END_TO_END)
"""Name under which the result of moving all blocks together is kept and reported."""
_EXPONENTS = "exponents"
"""Name under which a block keeps the exponents per output channel of its weight."""

BlockProgress = Callable[[str, int, int], None]
"""Called with (layer, blocks done, blocks in all) after every block, then with ("end-to-end", steps done, in all)."""


@dataclass(frozen=True)
class BlockReport:
    """What reconstruction did to one block.

    Attributes:
        layer: its name; ``end-to-end`` for all blocks moved together.
        before, after: mean squared error of the block's sums (before squash or ReLU) on the calibration images, with
            weights rounded to nearest and with the result; for ``end-to-end``, of the class capsules' lengths.
        changed: fraction of weights whose code is not the nearest one; for ``end-to-end``, not the one from before it.
        seconds: it took.
    """

    layer: str
    before: float
    after: float
    changed: float
    seconds: float


@dataclass(frozen=True)
class Reconstruction:
    """A reconstructed model.

    Attributes:
        model: a copy whose weights and biases lie on the plan's grid: nearest rounding leaves them as they are, so
            fake-quant, lowering and C take exactly the codes that were chosen.
        plan: the plan given, with other exponents where asked for, and for biases that moved out of their range.
        blocks: what happened, in order.
    """

    model: CapsNet
    plan: QuantPlan
    blocks: tuple[BlockReport, ...]


def reconstruct(
    model: CapsNet,
    plan: QuantPlan,
    images: Tensor,
    settings: ReconstructSettings | None = None,
    *,
    folder: str | Path | None = None,
    progress: BlockProgress | None = None,
) -> Reconstruction:
    """Fit a model's weights and biases to a plan on calibration images, without labels.

    For several plans of one model, :class:`Reconstructor` fits the blocks in which they agree only once.

    Args:
        model: float; left as it is.
        images: uint8 (N, C, H, W); the first ``settings.images`` are used.
        folder: keeps the result of every block; a second call with equal arguments goes on from there.
        progress: see :data:`BlockProgress`.

    Raises:
        PlanError: the plan does not fit the model, rounds otherwise than to nearest, or has powers-of-two weights.
        ModelError: a layer type that cannot be reconstructed; images of another size.
        ConfigError: no images. ArtefactError: a block's file cannot be written or is damaged.
    """
    return Reconstructor(model, images, settings, folder=folder, progress=progress).fit(plan)


class Reconstructor:
    """Fits one model to plans; see :func:`reconstruct` for the arguments and what is raised."""

    def __init__(
        self,
        model: CapsNet,
        images: Tensor,
        settings: ReconstructSettings | None = None,
        *,
        folder: str | Path | None = None,
        progress: BlockProgress | None = None,
    ) -> None:
        settings = settings or ReconstructSettings()
        if len(images) == 0:
            raise ConfigError("reconstruction needs at least one image, got none")
        model.check_images(images)
        self.settings, self.progress = settings, progress
        self.model, self.images = folded(model), images[: settings.images]
        self._fresh: dict[str, Callable[[int], PlanFormat]] = {}  # by key: the format of least squared error at a width
        if Part.EQUALIZATION in settings.parts:
            self.model, keys = equalized(self.model, self.images[: settings.tuning_images])
            calibration = calibrate(self.model, self.images[: settings.tuning_images])
            self._fresh = {key: partial(calibration.format, key) for key in keys}
        self.tuned: dict[QuantPlan, QuantPlan] = {}  # first exponents by the formats that they were tuned from
        self.wanted: list[Tensor] | None = None  # what the float model gives on the tuning images
        self.exact: list[list[State]] = []  # inputs of the float model's first stages
        self.store = BlockStore(folder, identity(model, self.images, settings))

    def fit(self, plan: QuantPlan) -> Reconstruction:
        """The model fitted to ``plan``."""
        check_plan(self.model, plan)
        return _Run(self, plan.with_formats({key: at(plan.points[key].bits) for key, at in self._fresh.items()})).run()


def check_plan(model: CapsNet, plan: QuantPlan) -> None:
    """Raise :class:`PlanError` unless the plan fits the model and is one that reconstruction works for."""
    plan.check(model)
    if plan.rounding.alone is not Rounding.NEAREST:
        raise PlanError(
            f"reconstruction: the plan rounds by {plan.rounding}; the chosen weights would be rounded again: use a plan"
            " that rounds to nearest"
        )
    for key, fmt in plan.points.items():
        if isinstance(fmt, LogFormat):
            raise PlanError(f"reconstruction: point {key}: format {fmt}; only fixed-point weights can be reconstructed")


class _Run:
    """One reconstruction in progress."""

    def __init__(self, owner: Reconstructor, plan: QuantPlan) -> None:
        model, images, self.settings, self.progress = owner.model, owner.images, owner.settings, owner.progress
        self.source, self.store, self.owner = model, owner.store, owner
        self._images, self._tuning_images = images, images[: self.settings.tuning_images]
        self.model = copy.deepcopy(model)
        self.exact = Chain(model, images, known=owner.exact)
        self.handler = FakeQuant(plan, model.points())
        self.quantized = Chain(self.model, images, self.handler)
        self.reports: list[BlockReport] = []

    def run(self) -> Reconstruction:
        """All blocks in order."""
        if Part.SCALES in self.settings.parts:
            self._tune_first()
        if Part.PER_CHANNEL in self.settings.parts:
            self.handler.plan = with_channel_formats(self.source, self.handler.plan)
        total = sum("weight" in layer.specs for layer in self.model.layers())
        stages = self.model.stages()
        for index, stage in enumerate(stages):
            for layer, exact in zip(stage.layers, self.exact.stage.layers, strict=True):
                if "weight" in layer.specs:
                    self._block(layer, exact)
                    if self.progress is not None:
                        self.progress(layer.name, len(self.reports), total)
            if index + 1 < len(stages):
                self.exact.advance()
                self.quantized.advance()
        self._put_on_grid()
        if Part.SCALES in self.settings.parts:
            computed = [key for key, spec in self.source.points().items() if spec.storage is Storage.RAM]
            self._tune(ScaleSearch(self.model, self.source, self._tuning_images, wanted=self.owner.wanted), computed)
        if Part.END_TO_END in self.settings.parts:
            self._move_together()
        return Reconstruction(self.model, self.handler.plan, tuple(self.reports))

    def _tune_first(self) -> None:
        """Tune exponents before any weight is chosen: of the weights too, unless their codes are about to be fitted."""
        owner = self.owner
        fitted = Part.ROUNDING in self.settings.parts
        keys = [
            key
            for key, spec in self.source.points().items()
            if spec.storage is Storage.RAM or (spec.role is Role.WEIGHT and not fitted)
        ]
        base = self.handler.plan.restricted(keys)
        if base not in owner.tuned:
            wanted = owner.wanted
            search = ScaleSearch(self.source, self.source, self._tuning_images, constants=not fitted, wanted=wanted)
            self._tune(search, keys)
            owner.tuned[base], owner.wanted = self.handler.plan.restricted(keys), search.wanted
        self.handler.plan = self.handler.plan.with_formats(owner.tuned[base].points)

    def _tune(self, search: ScaleSearch, keys: Sequence[str]) -> None:
        self.handler.plan, _, _ = search.search(self.handler.plan, keys, self.settings.tuning_sweeps)

    def _block(self, layer: Layer, exact: Layer) -> None:
        upto = self.handler.plan.restricted(self._keys_upto(layer))
        tensors = self._once(layer.name, upto, partial(self._fit, layer, exact))
        exponents, key = tensors.pop(_EXPONENTS, None), f"{layer.name}.weight"
        if exponents is not None:  # those that the block was fitted for
            fmt = self.handler.plan.points[key]
            assert isinstance(fmt, ChannelFormat)
            moved = from_exponents(exponents, fmt.bits, fmt.signed, fmt.axis)
            self.handler.plan = self.handler.plan.with_formats({key: moved})
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameter_of(layer, name).copy_(tensor)
        for name in set(tensors) - {"weight"}:
            self._widen(f"{layer.name}.{name}", tensors[name])

    def _move_together(self) -> None:
        """The last part: all blocks' constants by gradient."""
        plan = self.handler.plan
        report = None if self.progress is None else partial(self.progress, _END_TO_END)
        fit = partial(fit_end_to_end, self.model, self.source, plan, self._images, self.settings, report)
        tensors = self._once(_END_TO_END, plan, fit)
        with torch.no_grad():
            for layer in self.model.layers():
                for name in layer.specs:
                    if (key := f"{layer.name}.{name}") in tensors:
                        parameter_of(layer, name).copy_(tensors[key])

    def _once(self, name: str, plan: QuantPlan, fit: Callable[[], FittedBlock]) -> dict[str, Tensor]:
        """New parameters by name as ``fit`` or the store gives them; what became better is reported."""
        block = self.store.load(name, plan)
        if block is None:
            began = time.perf_counter()
            block = fit()
            block.facts["seconds"] = round(time.perf_counter() - began, 3)
            self.store.save(name, plan, block)
        self.reports.append(BlockReport(name, **block.facts))
        return dict(block.tensors)

    def _keys_upto(self, last: Layer) -> set[str]:
        """What a fit of ``last`` depends on: the points of all layers before it, and its own constants."""
        before = takewhile(lambda layer: layer is not last, self.model.layers())
        keys = {key for layer in before for key in layer.points()}
        return keys | {key for key, spec in last.points().items() if spec.storage is Storage.FLASH}

    def _fit(self, layer: Layer, exact: Layer) -> FittedBlock:
        """The block's new parameters by name, and what became better."""
        settings, parts = self.settings, self.settings.parts
        linear, bias_name = make_view(exact, self.quantized.input_of(layer), self.exact.input_of(exact), settings)
        weight = parameter_of(exact, "weight").detach()
        fmt = self.handler.plan.points[f"{layer.name}.weight"]
        correct_bias = Part.BIAS in parts and bias_name is not None
        moves = settings.moves(fmt)
        found = fit(
            linear,
            weight,
            weight_grid(fmt, len(linear.scale), weight.device),
            sweeps=settings.sweeps if Part.ROUNDING in parts else 0,
            shrink=settings.shrink,
            correct_bias=correct_bias,
            moves=moves,
        )
        tensors = {"weight": found.weight}
        if isinstance(fmt, ChannelFormat) and len(moves) > 1:
            exponents = torch.tensor([fmt.frac_bits + shift for shift in fmt.shifts]) + found.moves.flatten().cpu()
            tensors[_EXPONENTS] = exponents
            fmt = from_exponents(exponents, fmt.bits, fmt.signed, fmt.axis)
        nearest = fmt.quantize(weight)
        if correct_bias and bias_name is not None:
            bias = parameter_of(exact, bias_name).detach()
            tensors[bias_name] = bias + found.shift.view(bias.shape)
        changed = float((nearest != found.weight).float().mean())
        return FittedBlock(tensors, {"before": found.before, "after": found.after, "changed": changed})

    def _widen(self, key: str, value: Tensor) -> None:
        """Move the exponent of a bias that its correction took out of its format's range."""
        plan = self.handler.plan
        fmt = plan.points[key]
        assert isinstance(fmt, FixedFormat)
        if fmt.min_value <= float(value.min()) and float(value.max()) <= fmt.max_value:
            return
        histogram = Histogram()
        histogram.add(value)
        best = best_fixed_format(histogram, fmt.bits, fmt.signed, plan.rounding.alone)
        self.handler.plan = plan.with_formats({key: replace(fmt, frac_bits=best.frac_bits)})

    def _put_on_grid(self) -> None:
        """Round the biases too, so that all parameters of the copy are values that their points can hold."""
        plan = self.handler.plan
        with torch.no_grad():
            for layer in self.model.layers():
                for name, spec in layer.specs.items():
                    if spec.role in (Role.WEIGHT, Role.BIAS):
                        parameter = parameter_of(layer, name)
                        parameter.copy_(plan.points[f"{layer.name}.{name}"].quantize(parameter.detach()))
