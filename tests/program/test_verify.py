import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from caplet.errors import PlanError
from caplet.fixed import FixedFormat, LogFormat, Rounding
from caplet.program import Constant, Program, TensorSpec, run, trace, verify
from caplet.program.interpreter import _Machine
from caplet.program.op import OPS, Op
from caplet.program.ops import Add, Conv2d, DenseVotes, InputQuantize, Lengths, MaxPool2d, Routing, Squash
from caplet.program.tensor import WideFormat
from sample_programs import SampleSettings, sample_backbone, sample_deep, sample_shallow

S8 = FixedFormat(8, 4, True)


def _ops(program: Program, change: Callable[[Op], Op | None]) -> Program:
    return replace(program, ops=tuple(new for op in program.ops if (new := change(op)) is not None))


def _change(kind: type[Op], **fields: Any) -> Callable[[Program], Program]:
    """Change fields of every op of one kind."""
    return lambda program: _ops(program, lambda op: replace(op, **fields) if isinstance(op, kind) else op)  # type: ignore[type-var]


def _named(name: str, **fields: Any) -> Callable[[Program], Program]:
    """Change fields of the op of one name."""
    return lambda program: _ops(program, lambda op: replace(op, **fields) if op.name == name else op)  # type: ignore[type-var]


def _tensor(name: str, **fields: Any) -> Callable[[Program], Program]:
    return lambda program: replace(program, tensors={**program.tensors, name: replace(program.tensors[name], **fields)})


def _constant(shape: tuple[int, ...], fmt: FixedFormat = S8, key: str = "c") -> Constant:
    return Constant(key, np.zeros(shape, dtype=np.int32), fmt)


BROKEN: list[tuple[Callable[[Program], Program], str]] = [
    (lambda p: replace(p, name="no name"), "letters, digits"),
    (lambda p: replace(p, seed=-1), "seed -1"),
    (lambda p: replace(p, ops=()), "0 ops"),
    (lambda p: replace(p, output="nowhere"), "not declared"),
    (lambda p: replace(p, output="primary.activation"), "Lengths op"),
    (lambda p: replace(p, labels=("one",)), "1 for 5 classes"),
    (lambda p: replace(p, tensors={**p.tensors, "x": p.tensors["digit.votes"]}), "its own key"),
    (lambda p: replace(p, tensors={**p.tensors, "x": TensorSpec("x", (1,), S8)}), "every declared tensor"),
    (lambda p: _ops(p, lambda op: None if isinstance(op, Squash) else op), "reads 'primary.activation'"),
    (lambda p: replace(p, ops=(*p.ops, p.ops[1])), "name of another op"),
    (
        lambda p: replace(p, ops=(*p.ops, replace(p.ops[2], name="z", weight=_constant((16, 3, 3, 8)), bias=None))),
        "again",
    ),  # type: ignore[type-var]
    (lambda p: replace(p, ops=p.ops[:-1]), "every declared tensor is written"),
    (_tensor("input.pixels", format=S8), "raw pixels"),
    (_tensor("conv1.activation", shape=(10, 10, 7)), "shape"),
    (_tensor("conv1.activation", shape=(0, 10, 8)), "at least 1"),
    (_tensor("conv1.activation", shape=(1 << 13, 1 << 13, 8)), "elements"),
    (_tensor("conv1.activation", format=WideFormat(32, 0)), "FixedFormat"),
    (_tensor("conv1.activation", format=LogFormat(4, 0)), "powers of two"),
    (_tensor("digit.coupling", format=S8), "unsigned"),
    (_tensor("digit.logits", shape=(4, 5)), "shape"),
    (_tensor("digit.activation", format=FixedFormat(8, 30, True)), "0 to 24"),
    (_tensor("primary.preactivation", format=FixedFormat(8, -25, True)), "sum of squares"),
    (_tensor("sample_shallow.lengths", format=WideFormat(64, 14)), "WideFormat"),
    (_tensor("input.image", rounding=Rounding.STOCHASTIC), "rounds stochastically"),
    (_tensor("input.image", format=FixedFormat(7, 7, False)), "the output's"),
    (_change(InputQuantize, table=_constant((2, 256))), r"shape \(1, 256\)"),
    (_change(Conv2d, stride=0), "stride 1..64"),
    (_change(Conv2d, padding=3), "padding less than the kernel"),
    (_change(Conv2d, stride=3), "shape"),
    (_change(Conv2d, bias=_constant((3,))), "shape"),
    (_change(Conv2d, weight=_constant((8, 3))), "four axes"),
    (_change(Conv2d, channel_shifts=np.zeros(3, dtype=np.int32)), "exponents"),
    (_change(Squash, dim=5), "whole number"),
    (_change(Squash, dim=0), "whole number"),
    (_change(DenseVotes, dim=7), "whole output capsules"),
    (_change(DenseVotes, sources=()), "at least one"),
    (_change(DenseVotes, sources=("primary.activation", "primary.activation")), "each once"),
    (_change(DenseVotes, sources=("conv1.activation",)), "input capsules"),
    (_change(DenseVotes, selected=(0, 1)), "rising"),
    (_change(DenseVotes, selected=(1, 0, *range(2, 98))), "rising"),
    (_change(Routing, iterations=1), "logits exactly"),
    (_change(Routing, logits=None), "logits exactly|every declared tensor"),
    (_change(Routing, types=3), "a divisor of 5"),
    (_change(Routing, bias=_constant((2, 2))), "shape"),
    (_change(Routing, votes="primary.activation"), "a divisor of 4"),
    (_change(Lengths, input="digit.votes"), "D <= 64|votes are read"),
]


@pytest.mark.parametrize(("breaking", "message"), BROKEN)
def test_a_broken_program_is_refused(breaking: Callable[[Program], Program], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        verify(breaking(sample_shallow()))


BROKEN_TRUNK: list[tuple[Callable[[Program], Program], str]] = [
    (_named("block2.depthwise", groups=5), "5 groups .*; the rule: .* depth of 1 times their number .* input's 6"),
    (_named("block2.depthwise", groups=0), "0 groups"),
    (_named("block1.conv1", groups=2), "depth of 6 times their number"),
    (_named("block2.depthwise", high=256), "high 256; the rule: 0 .. "),
    (_named("block2.depthwise", high=-1), "high -1"),
    (_named("block2.depthwise", stride=0), "stride 1..64"),
    (_named("block2.depthwise", bias=_constant((3,))), "shape"),
    (_named("block2.depthwise", channel_shifts=np.zeros(3, dtype=np.int32)), "exponents"),
    (_named("block2.depthwise", weight=_constant((12, 3))), "four axes"),
    (_change(MaxPool2d, kernel=0), "kernel 0; the rule: at least 1"),
    (_change(MaxPool2d, padding=3), "padding less than the kernel"),
    (_change(MaxPool2d, kernel=40, padding=0), "the kernel fits"),
    (_change(MaxPool2d, stride=1), "shape"),
]


@pytest.mark.parametrize(("breaking", "message"), BROKEN_TRUNK)
def test_a_broken_trunk_is_refused(breaking: Callable[[Program], Program], message: str) -> None:
    verify(sample_backbone())
    with pytest.raises(PlanError, match=message):
        verify(breaking(sample_backbone()))


def test_constant_keys_are_unique() -> None:
    program = sample_deep()
    conv = next(op for op in program.ops if isinstance(op, Conv2d))
    weight = Constant("block1.l1.weight", conv.weight.codes, conv.weight.format)
    with pytest.raises(PlanError, match="constant keys are unique"):
        verify(_ops(program, lambda op: replace(conv, weight=weight) if op is conv else op))


def test_votes_have_one_reader() -> None:
    program = sample_shallow()
    routing = next(op for op in program.ops if isinstance(op, Routing))
    votes = program.votes_op(routing)
    tensors = {**program.tensors, "more": replace(program.tensors[votes.output], name="more")}
    more = Add("extra", votes.output, votes.output, "more")
    with pytest.raises(PlanError, match="votes are read by a routing"):
        verify(replace(program, tensors=tensors, ops=(*program.ops, more)))


def _single_conv(bits: int, weight: int, count: int, **fields: Any) -> Program:
    """A sample whose stem has ``count`` equal weights per output channel."""
    kernel = int(count**0.5)
    program = sample_shallow(stem=(4, kernel), image=(1, 40, 40), settings=SampleSettings(activation_bits=bits))
    conv = next(op for op in program.ops if isinstance(op, Conv2d))
    codes = np.full(conv.weight.shape, weight)
    constant = Constant("conv1.weight", codes, FixedFormat(16, 8, True))
    return _ops(program, lambda op: replace(conv, weight=constant, bias=None, **fields) if op is conv else op)


def test_accumulator_bound_is_reached_by_the_worst_image() -> None:
    program = _single_conv(8, 100, 81)
    conv = next(op for op in program.ops if isinstance(op, Conv2d))
    bound = verify(program).find("conv1", "acc")
    machine = _Machine(program, verify(program), True)
    white = np.full((1, *program.tensors["input.image"].shape), 255)
    acc = machine.convolve(conv, white)
    assert int(acc.max()) == bound.products == 81 * 100 * 255
    shift = conv.shifts(program.tensors).out
    assert isinstance(shift, int)
    rounding = 1 << (shift - 1) if shift > 0 else 0
    assert (bound.low, bound.c_type) == (0, "int32_t")
    assert bound.high == (81 * 100 * 255 + rounding if shift >= 0 else 81 * 100 * 255 << -shift)


def test_int64_exactly_where_int32_can_overflow() -> None:
    assert verify(_single_conv(8, 32767, 81)).find("conv1", "acc").c_type == "int32_t"
    wide = verify(_single_conv(8, 32767, 900)).find("conv1", "acc")
    assert wide.c_type == "int64_t"
    assert wide.high > 2**31


@pytest.mark.parametrize("seed", range(6))
def test_every_accumulator_stays_within_its_proof(seed: int) -> None:
    """Sums of products of random and extreme images, against the proven bounds."""
    for program in (sample_shallow(seed), sample_deep(seed)):
        proof = verify(program)
        machine = _Machine(program, proof, True)
        rng = np.random.default_rng(seed)
        images = rng.choice(np.array([0, 255], dtype=np.uint8), size=(4, *program.image_shape))
        tensors = trace(program, images)
        for op in program.ops:
            if isinstance(op, Conv2d):
                acc = machine.convolve(op, tensors[op.input])
                assert np.abs(acc).max() <= proof.find(op.name, "acc").products
            elif isinstance(op, Routing):
                votes = tensors[op.votes].astype(np.int64)
                acc = np.abs((tensors[op.coupling][..., None] * votes).sum(axis=1))
                assert acc.max() <= proof.find(op.name, "acc").products


def test_shifts_out_of_range_and_hopeless_accumulators_are_refused() -> None:
    far = _tensor("conv1.activation", format=FixedFormat(8, -60, True))
    with pytest.raises(PlanError, match="at most 62"):
        verify(far(sample_shallow()))
    near = _tensor("conv1.activation", format=FixedFormat(8, 64, True))
    with pytest.raises(PlanError, match="beyond 64 bits"):
        verify(near(sample_shallow()))
    exponents = np.full(8, 32, dtype=np.int32)
    stem = next(op for op in sample_shallow().ops if isinstance(op, Conv2d))
    wide = _ops(sample_shallow(), lambda op: replace(stem, channel_shifts=exponents) if op.name == "conv1" else op)
    assert verify(wide).find("conv1", "acc").c_type == "int64_t"
    images = np.zeros((1, 1, 12, 12), dtype=np.uint8)
    assert run(wide, images).capsules.shape == (1, 5, 6)


def test_the_proof_is_json() -> None:
    proof = verify(sample_deep())
    data = json.loads(json.dumps(proof.to_json()))
    assert {"op", "what", "low", "high", "products", "c_type"} == set(data[0])
    assert len(data) == len(proof.accumulators)


def test_samples_have_every_op() -> None:
    kinds = {op.kind for program in (sample_shallow(), sample_deep(), sample_backbone()) for op in program.ops}
    assert kinds == set(OPS)
