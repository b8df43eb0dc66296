"""What a plan takes on the device, by lowering it: RAM, accumulators, shifts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from caplet.errors import ConfigError
from caplet.fixed import FixedFormat
from caplet.lower import lower
from caplet.models.base import CapsNet
from caplet.program import Program
from caplet.program.arena import plan_memory
from caplet.program.op import Shift
from caplet.program.ops import Add, ChannelAffine, Convolution, DenseVotes, MaxPool2d, Routing
from caplet.program.verify import verify
from caplet.quant.plan.formats import bits_of
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import Footprint
from caplet.quant.search.request import Request


def footprint(model: CapsNet, plan: QuantPlan) -> Footprint:
    """The footprint of ``model`` under ``plan``; the RAM is the arena's, with all votes stored.

    Raises:
        PlanError: the plan is not one for this model, or has no integer form.
    """
    return program_footprint(lower(model, plan))


def check_ram(model: CapsNet, request: Request) -> None:
    """Raise ConfigError where the RAM budget is below the arena of the narrowest widths everywhere."""
    if request.ram_bytes is None:
        return
    bits = {key: bits_of(spec, 1, request.rule) for key, spec in model.points().items()}
    narrow = {key: FixedFormat(bits[key], bits[key] - 1, spec.signed) for key, spec in model.points().items()}
    least = footprint(model, QuantPlan(narrow)).ram_bytes
    if request.ram_bytes < least:
        raise ConfigError(
            f"the RAM budget of {request.ram_bytes:,} bytes is below the smallest possible one for this model,"
            f" {least:,} bytes (the narrowest widths everywhere, all votes stored); raise the budget"
        )


def program_footprint(program: Program) -> Footprint:
    """The footprint of a Program."""
    proof = verify(program)
    memory = plan_memory(program, proof=proof)
    widest = max((8 * bound.bytes for bound in proof.accumulators), default=32)
    return Footprint(memory.bytes, memory.peak, widest, dict(_shifts(program)))


def _shifts(program: Program) -> Iterator[tuple[str, tuple[int, int]]]:
    """(tensor written, smallest and largest right shift to it), in order of execution."""
    tensors = program.tensors
    for op in program.ops:
        if isinstance(op, Convolution | MaxPool2d | ChannelAffine | Add):
            yield op.output, _range(op.shifts(tensors).out)
        elif isinstance(op, DenseVotes):
            yield op.output, _range(*(op.shifts(tensors, source).out for source in op.sources))
        elif isinstance(op, Routing):
            yield op.preactivation, _range(op.shifts(tensors).out)
            if op.logits is not None:
                yield op.logits, _range(op.agreement_shift(tensors))


def _range(*shifts: Shift) -> tuple[int, int]:
    values = np.concatenate([np.atleast_1d(shift) for shift in shifts])
    return int(values.min()), int(values.max())
