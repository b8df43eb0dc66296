"""Lowering: the Program computes what fake-quant computes, tensor by tensor; what cannot be lowered is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import ModelError, PlanError
from caplet.fixed import ChannelFormat, FixedFormat, LogFormat, Rounding
from caplet.lower import lower
from caplet.lower.handlers import HANDLERS
from caplet.models.registry import build
from caplet.nn.conv import OIHW, ConvReLU
from caplet.nn.points import Handler, PointSpec, Storage
from caplet.program import Program, dumps, loads, run, trace, verify
from caplet.quant.measure.evaluator import predict
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.simulate.fake_quant import FakeQuant, fake_quantized
from tiny_networks import INTEGER, mixed_plan, tiny

Codes = NDArray[Any]
EXACT = 1 << 24
"""Integers up to here are exact in float32, and so are their sums."""
names = pytest.mark.parametrize("name", INTEGER)


def to_device(spec: PointSpec, codes: Codes) -> Codes:
    """A point's codes (B, *spec.shape) in the order in which the device stores them: (B, elements)."""
    axes = (0, *(1 + axis for axis in spec.device_axes))
    return codes.transpose(axes).reshape(len(codes), -1)


def from_device(spec: PointSpec, codes: Codes) -> Codes:
    """Undo :func:`to_device`, from any shape."""
    axes = (0, *(1 + axis for axis in spec.device_axes))
    shape = [spec.shape[axis] for axis in spec.device_axes]
    return codes.reshape(len(codes), *shape).transpose(np.argsort(axes))


def to_codes(fmt: FixedFormat, value: Tensor) -> Codes:
    codes = value.double().numpy() * 2.0**fmt.frac_bits
    assert np.array_equal(codes, np.rint(codes)), f"values between the codes of {fmt}"
    return codes.astype(np.int64)


@dataclass
class Follow(Handler):
    """Fake-quant that is compared with a Program's trace at every point, and goes on with the Program's codes.

    So every tensor is computed from the same inputs on both sides. ``off`` gets, for every RAM point and iteration,
    the largest difference in codes; ``share`` the share of codes that are not zero.
    """

    fake: FakeQuant
    traced: dict[str, Codes]
    program: Program
    off: dict[tuple[str, int], int] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        fmt = self.fake.plan.points[key]
        value = self.fake.tap(key, spec, value, iteration)
        if spec.storage is Storage.FLASH:
            self.constant(key, spec, value)
            return value
        assert isinstance(fmt, FixedFormat)
        codes = to_codes(fmt, value)
        each = f"{key}[{iteration}]"
        mine = from_device(spec, self.traced[each if each in self.traced else key])
        self.off[key, iteration] = int(np.abs(mine - codes).max())
        self.share[key] = float((mine != 0).mean())
        return torch.from_numpy(mine * 2.0**-fmt.frac_bits).float().to(memory_format=torch.contiguous_format)

    def constant(self, key: str, spec: PointSpec, value: Tensor) -> None:
        """Weights are not computed: they are equal, to the last code."""
        op, constant = next((op, c) for op in self.program.ops for c in op.constants if c.key == key)
        fmt, planned = constant.format, self.fake.plan.points[key]
        values = np.asarray(constant.integers * 2.0**-fmt.frac_bits)
        if isinstance(planned, ChannelFormat):
            shifts = getattr(op, "channel_shifts", None)
            assert fmt == planned.base
            assert shifts is not None
            assert tuple(shifts) == planned.shifts
            values = values * 2.0 ** -(shifts if planned.axis else shifts.reshape(-1, 1, 1, 1))
        else:
            assert fmt == planned
        theirs = value.detach().double().numpy()
        if spec.dims == OIHW:
            theirs = theirs.transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(values, theirs, err_msg=key)
        self.off[key, 0] = 0
        self.share[key] = float((values != 0).mean())

    def softmax(self, key: str, logits: Tensor, dim: int, iteration: int) -> Tensor:
        return self.fake.softmax(key, logits, dim, iteration)

    def squash(self, key: str, capsules: Tensor, dim: int, iteration: int) -> Tensor:
        return self.fake.squash(key, capsules, dim, iteration)


def follow(name: str, plan: QuantPlan) -> tuple[Follow, Program]:
    """Both sides of a plan on the tiny model's images, compared point by point."""
    made = tiny(name)
    program = lower(made.model, plan)
    watch = Follow(FakeQuant(plan, made.model.points()), trace(program, made.images.numpy()), program)
    with torch.no_grad(), made.model.handle(watch):
        made.model(to_float(made.images))
    return watch, program


def inexact_ops(program: Program) -> set[str]:
    """Layers with a sum of products that float32 may not hold exactly."""
    bounds = verify(program).accumulators
    wide = [b for b in bounds if b.what != "sum_of_squares" and max(-b.low, b.high, b.products) > EXACT]
    return {bound.op.removesuffix(".affine").rpartition(".")[0] or bound.op for bound in wide}


def check_alive(watch: Follow) -> None:
    """The comparison means something: no computed tensor is all zero."""
    dead = [key for key, share in watch.share.items() if share == 0.0 and not key.endswith("bias")]
    assert not dead, f"all codes are zero at {dead}"


def check_visited(watch: Follow, name: str) -> None:
    model = tiny(name).model
    assert {key for key, _ in watch.off} == set(model.points())
    iterations = {key: 1 + max(i for k, i in watch.off if k == key) for key, _ in watch.off}
    assert iterations["digit.activation"] == model.config.iterations


@names
@pytest.mark.parametrize("rounding", list(Rounding))
def test_every_point_is_equal_where_float_sums_are_exact(name: str, rounding: Rounding) -> None:
    plan = mixed_plan(name, 3, 6, rounding, seed=2)
    watch, program = follow(name, plan)
    assert not inexact_ops(program)
    check_visited(watch, name)
    check_alive(watch)
    assert {key: off for key, off in watch.off.items() if off} == {}
    assert program.tensors["input.image"].rounding is Rounding.NEAREST


@names
def test_every_point_is_equal_with_weights_in_powers_of_two(name: str) -> None:
    plan = mixed_plan(name, 4, 7, log2_weights=True, seed=2)
    assert any(isinstance(fmt, LogFormat) for fmt in plan.points.values())
    watch, _ = follow(name, plan)
    check_visited(watch, name)
    check_alive(watch)
    assert max(watch.off.values()) <= 1


@names
@pytest.mark.parametrize("rounding", list(Rounding))
def test_every_point_is_equal_with_an_exponent_per_output_channel(name: str, rounding: Rounding) -> None:
    plan = mixed_plan(name, 4, 6, rounding, channels=True, seed=2)
    watch, program = follow(name, plan)
    check_visited(watch, name)
    check_alive(watch)
    assert {key: off for key, off in watch.off.items() if off} == {}
    made = tiny(name)
    shifted = {key: fmt for key, fmt in plan.points.items() if isinstance(fmt, ChannelFormat)}
    channels = sum(len(fmt.shifts) for fmt in shifted.values())
    plain = plan.with_formats({key: fmt.base for key, fmt in shifted.items()})
    weights, plain_weights = (count_memory(made.model, p).total.weight_bits for p in (plan, plain))
    assert weights - plain_weights == 4 * channels
    assert program.flash_bytes - lower(made.model, plain).flash_bytes == channels
    assert dumps(loads(dumps(program))) == dumps(program)
    read = QuantPlan.from_json(plan.to_json())
    assert (read, read.digest()) == (plan, plan.digest())
    assert dumps(lower(made.model, read)) == dumps(program)


@names
@pytest.mark.parametrize("rounding", list(Rounding))
def test_every_point_is_within_one_code_at_wide_formats(name: str, rounding: Rounding) -> None:
    plan = mixed_plan(name, 12, 16, rounding, seed=7)
    watch, program = follow(name, plan)
    assert inexact_ops(program), "these widths were to need more than float32 holds"
    check_visited(watch, name)
    assert max(watch.off.values()) <= 1


@names
@pytest.mark.parametrize(("low", "high"), [(3, 6), (6, 9), (12, 16)])
@pytest.mark.parametrize("rounding", list(Rounding))
def test_predictions_agree(name: str, low: int, high: int, rounding: Rounding) -> None:
    made = tiny(name)
    plan = mixed_plan(name, low, high, rounding, seed=11)
    with torch.no_grad(), fake_quantized(made.model, plan):
        capsules = made.model(to_float(made.images))
    outcome = run(lower(made.model, plan), made.images.numpy())
    fmt = plan.points["digit.activation"]
    assert isinstance(fmt, FixedFormat)
    if low < 12:
        np.testing.assert_array_equal(to_codes(fmt, capsules), outcome.capsules)
    np.testing.assert_array_equal(predict(capsules).numpy(), outcome.predictions)


@names
def test_a_program_names_every_point_and_keeps_the_plans_formats(name: str) -> None:
    made = tiny(name)
    plan = mixed_plan(name, 3, 9)
    program = lower(made.model, plan, name="tiny", labels=tuple("abcde"[: made.model.config.classes]), meta={"a": "b"})
    assert (program.name, program.meta) == ("tiny", {"a": "b"})
    assert program.image_shape == made.model.config.image
    formats = {c.key: c.format for c in program.constants() if c.key != "input.table"}
    formats |= {key: spec.format for key, spec in program.tensors.items() if key in plan.points}
    assert formats == dict(plan.points)
    for key, spec in made.model.points().items():
        if spec.storage is Storage.RAM:
            assert program.tensors[key].elements == spec.elements


def test_the_same_inputs_give_the_same_bytes() -> None:
    plan = mixed_plan("deep", 3, 9, Rounding.STOCHASTIC)
    assert dumps(lower(tiny("deep").model, plan)) == dumps(lower(tiny("deep").model, plan))


@contextmanager
def _without_handler(kind: type) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(HANDLERS, kind)
        yield


def test_an_unknown_layer_type_is_named() -> None:
    made = tiny("shallow")
    with _without_handler(ConvReLU), pytest.raises(ModelError, match=r"layer conv1: type ConvReLU .*DenseCaps"):
        lower(made.model, mixed_plan("shallow", 4, 8))
    assert ConvReLU in HANDLERS


def test_a_second_handler_of_a_layer_type_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="ConvReLU is registered already"):
        HANDLERS.of(ConvReLU)(HANDLERS[ConvReLU])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda points: points.pop("digit.weight"), "misses.*'digit.weight'"),
        (lambda points: points.update({"digit.wieght": FixedFormat(8, 7, True)}), "unknown.*'digit.wieght'"),
        (lambda points: points.update({"digit.votes": FixedFormat(8, 7, False)}), "digit.votes.*signed"),
        (lambda points: points.update({"digit.votes": LogFormat(4, 0)}), "digit.votes.*powers of two"),
        (lambda points: points.update({"digit.votes": ChannelFormat(4, 0, True, (1,), 0)}), "digit.votes.*for weights"),
        (lambda points: points.update({"conv1.weight": ChannelFormat(4, 0, True, (1,), 0)}), "conv1.weight.*5 on axis"),
        (lambda points: points.update({"conv1.weight": ChannelFormat(4, 0, True, (1,) * 5, 1)}), "conv1.weight.*axis"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: Any, message: str) -> None:
    plan = mixed_plan("shallow", 4, 8)
    points = dict(plan.points)
    change(points)
    with pytest.raises(PlanError, match=message):
        lower(tiny("shallow").model, QuantPlan(points))


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="does not fit model shallow"):
        lower(tiny("shallow").model, mixed_plan("deep", 4, 8))


@pytest.mark.shared
def test_q7_mnist_predicts_alike_as_fake_quant_and_as_integers(shared: Any) -> None:
    """The real model at 8 bits on 200 test images, and every point of 24 of them within one code."""
    from caplet.data import load_data
    from caplet.models.checkpoint import load_model
    from caplet.quant.plan.calibrate import calibrate
    from caplet.quant.plan.formats import FormatRule
    from caplet.quant.plan.units import uniform_plan

    model = load_model(shared / "models" / "q7_mnist.h5")
    data = load_data("mnist", shared / "data", limit=200)
    calibration = calibrate(model, data.calibration.images[:128])
    plan = uniform_plan(model, calibration, 8, FormatRule(), Rounding.NEAREST, 0)
    program = lower(model, plan)
    images = data.test.images
    assert len(images) == 200
    with torch.no_grad(), fake_quantized(model, plan):
        simulated = predict(model(to_float(images))).numpy()
    predicted = run(program, images.numpy()).predictions
    assert (simulated == predicted).mean() >= 0.999
    assert (predicted == data.test.labels.numpy()).mean() > 0.96
    watch = Follow(FakeQuant(plan, model.points()), trace(program, images[:24].numpy()), program)
    with torch.no_grad(), model.handle(watch):
        model(to_float(images[:24]))
    assert max(watch.off.values()) <= 1


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{"kind": "conv", "name": "conv", "channels": 4, "activation": "hardswish"}], r"layer a\.conv: hardswish"),
        ([{"kind": "gate", "name": "gate", "hidden": 2}], r"layer a\.gate: a squeeze-and-excite gate"),
    ],
)
def test_what_has_no_integer_form_is_refused_by_name(nodes: list[dict[str, object]], message: str) -> None:
    trunk = {"blocks": [{"name": "a", "nodes": nodes}]}
    model = build("backbone", {"image": (3, 6, 6), "trunk": trunk, "primary_types": 2, "classes": 2}).eval()
    calibration = calibrate(model, torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8))
    plan = QuantPlan({key: calibration.format(key, 8) for key in model.points()})
    with torch.no_grad(), fake_quantized(model, plan):
        assert model(torch.rand(2, 3, 6, 6)).isfinite().all()
    with pytest.raises(ModelError, match=message):
        lower(model, plan)
