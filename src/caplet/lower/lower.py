"""``lower``: float model + plan -> Program."""

from __future__ import annotations

from caplet.lower.context import Lowering
from caplet.lower.handlers import PIXELS, lower_layer
from caplet.models.base import CapsNet
from caplet.program import Lengths, Program, TensorSpec
from caplet.program.verify import lengths_format, verify
from caplet.quant.plan.plan import QuantPlan


def lower(
    model: CapsNet,
    plan: QuantPlan,
    *,
    name: str = "model",
    labels: tuple[str, ...] = (),
    meta: dict[str, str] | None = None,
) -> Program:
    """The integer Program of ``model`` under ``plan``.

    Args:
        model: a float model; batch norms are lowered with their running statistics.
        plan: a format for every point of the model.
        name: the Program's name, a C identifier.
        labels: names of the classes, or empty.
        meta: free text about the origin.

    Raises:
        PlanError: the plan is not one for this model, or an accumulator could overflow 64 bits.
        ModelError: a layer has no integer form; the message names it.
    """
    plan.check(model)
    low = Lowering(plan, model.points())
    stages = model.stages()
    for stage in stages:
        for layer in stage.layers:
            lower_layer(low, layer, stage.wiring[layer.name])
    output = stages[-1].outputs[0]
    lengths = f"{output.rpartition('.')[0]}.lengths"
    classes, dim = low.tensors[output].shape
    low.tensors[lengths] = TensorSpec(lengths, (classes,), lengths_format(low.format(output), dim))
    low.ops.append(Lengths(lengths, output, lengths))
    program = Program(name, low.tensors, tuple(low.ops), PIXELS, output, lengths, plan.seed, labels, meta or {})
    verify(program)
    return program
