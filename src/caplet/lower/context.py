"""What the handlers of layers share: the plan, the Program under construction, and constants from parameters."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from caplet.fixed import ChannelFormat, FixedFormat, Rounding, stochastic_noise
from caplet.nn.points import PointSpec
from caplet.program import Constant, TensorSpec
from caplet.program.op import Op
from caplet.quant.plan.plan import QuantPlan


@dataclass
class Lowering:
    """A Program under construction.

    Attributes:
        plan: formats by point key.
        specs: the model's declared points.
        tensors, ops: the Program's, so far.
    """

    plan: QuantPlan
    specs: dict[str, PointSpec]
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)

    def format(self, key: str) -> FixedFormat:
        """The fixed-point format of a computed tensor."""
        fmt = self.plan.points[key]
        assert isinstance(fmt, FixedFormat), f"{key}: {fmt}"  # QuantPlan.check allows powers of two for weights only
        return fmt

    def tensor(self, key: str, shape: tuple[int, ...]) -> str:
        """Declare the tensor of point ``key`` with the device's ``shape``; returns the key."""
        self.tensors[key] = TensorSpec(key, shape, self.format(key), self.plan.rounding_of(key))
        return key

    def constant(self, key: str, value: Tensor, axes: tuple[int, ...] | None = None) -> Constant:
        """The codes of a parameter, rounded in the parameter's own order, then transposed to the device's ``axes``."""
        fmt, rounding = self.plan.points[key], self.plan.rounding_of(key)
        array = value.detach().cpu().numpy().astype(np.float32)
        noise = None
        if rounding is Rounding.STOCHASTIC:  # element e of the noise belongs to element e of the parameter
            noise = np.asarray(stochastic_noise(self.plan.seed, key, array.size)).reshape(array.shape)
        codes = np.asarray(fmt.encode(array, rounding, noise), dtype=np.int32)
        base = fmt.base if isinstance(fmt, ChannelFormat) else fmt
        return Constant(key, codes if axes is None else np.transpose(codes, axes), base)

    def channel_shifts(self, key: str) -> NDArray[np.int32] | None:
        """The shifts per output channel of the weight ``key``, or None where one exponent holds for all."""
        fmt = self.plan.points[key]
        return np.array(fmt.shifts, dtype=np.int32) if isinstance(fmt, ChannelFormat) else None
