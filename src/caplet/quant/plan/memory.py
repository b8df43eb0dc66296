"""The papers' memory count: weights (W) and activations (A) as sums of elements x bits, against 32-bit float."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from caplet.fixed import ChannelFormat
from caplet.models.base import CapsNet
from caplet.nn.points import Role, Storage
from caplet.quant.plan.plan import QuantPlan

FLOAT_BITS = 32


@dataclass(frozen=True)
class MemoryRow:
    """The count of one group of layers (or of the whole model).

    Attributes:
        group: a name of ``model.groups()``, ``"input"``, or ``"total"``.
        weights, activations: elements; weights are all flash points, activations all RAM points of one image.
        weight_bits, activation_bits: bits under the plan (``elements * 32`` without one).
        outputs, output_bits: of the activations, the image and the output of each group: what Q-CapsNets counts.
    """

    group: str
    weights: int
    activations: int
    weight_bits: int
    activation_bits: int
    outputs: int
    output_bits: int

    @property
    def weight_reduction(self) -> float:
        """How many times smaller than 32-bit float the weights are (1 where there are none)."""
        return FLOAT_BITS * self.weights / self.weight_bits if self.weight_bits else 1.0

    @property
    def activation_reduction(self) -> float:
        """How many times smaller than 32-bit float the activations are."""
        return FLOAT_BITS * self.activations / self.activation_bits if self.activation_bits else 1.0

    @property
    def output_reduction(self) -> float:
        """The same by the count of Q-CapsNets: no votes, logits, couplings and sums before an activation."""
        return FLOAT_BITS * self.outputs / self.output_bits if self.output_bits else 1.0

    def to_json(self) -> dict[str, Any]:
        """All fields and reductions."""
        names = ("weight_reduction", "activation_reduction", "output_reduction")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class MemoryCount:
    """Counts by group, in order of execution; ``total`` is their sum."""

    rows: tuple[MemoryRow, ...]

    @property
    def total(self) -> MemoryRow:
        """The whole model."""
        fields = ("weights", "activations", "weight_bits", "activation_bits", "outputs", "output_bits")
        return MemoryRow("total", *(sum(getattr(row, name) for row in self.rows) for name in fields))

    def to_json(self) -> list[dict[str, Any]]:
        """The rows and the total as plain data."""
        return [row.to_json() for row in (*self.rows, self.total)]


def count_memory(model: CapsNet, plan: QuantPlan | None = None) -> MemoryCount:
    """Count a model's memory under a plan, or in 32-bit float.

    Weights are weights, biases and batch-norm constants; activations are every tensor the device computes for one
    image: the input image, activations, preactivations, votes, coupling and logits. A tensor that a routing updates
    in each iteration is counted once. Shifts per output channel count with their weights.

    Differs from the paper, which leaves out biases; and this counts whole tensors, not the real peak RAM, in which
    tensors share memory. ``outputs`` are the last activation of each stage, as the code of Q-CapsNets counts them.

    Raises:
        PlanError: the plan does not fit the model.
    """
    if plan is not None:
        plan.check(model)
    if plan is None:
        return count_bits(model, dict.fromkeys(model.points(), FLOAT_BITS))
    shifts = {key: fmt.shift_bits for key, fmt in plan.points.items() if isinstance(fmt, ChannelFormat)}
    return count_bits(model, {key: fmt.bits for key, fmt in plan.points.items()}, shifts)


def count_bits(model: CapsNet, bits: Mapping[str, int], shifts: Mapping[str, int] | None = None) -> MemoryCount:
    """As :func:`count_memory`, from the bits of every point by key.

    Args:
        shifts: bits that a point's shifts per output channel take in all, by key, where it has any.
    """
    more, ones = shifts or {}, dict.fromkeys(bits, 1)
    rows = []
    for stage in model.stages():
        points = {key: spec for layer in stage.layers for key, spec in layer.points().items()}
        kinds = [[key for key, spec in points.items() if spec.storage is storage] for storage in Storage]
        weights, activations = (sum(points[key].elements for key in keys) for keys in kinds)
        taken = [sum(points[key].elements * bits[key] + more.get(key, 0) for key in keys) for keys in kinds]
        output = [key for key, spec in points.items() if spec.role in (Role.IMAGE, Role.ACTIVATION)][-1:]
        outputs, output_bits = (sum(points[key].elements * each[key] for key in output) for each in (ones, bits))
        rows.append(MemoryRow(stage.name, weights, activations, taken[0], taken[1], outputs, output_bits))
    return MemoryCount(tuple(rows))
