"""The hardware a plan is for: containers, shifts and accumulators, and what fits them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt

from caplet.errors import ConfigError, PlanError, suggest
from caplet.files import read_json
from caplet.fixed import FixedFormat
from caplet.fixed.format import MAX_BITS
from caplet.nn.points import PointSpec, Storage
from caplet.quant.plan.plan import QuantPlan
from caplet.settings import Settings

_LONGEST_SHIFT = 62
_Width = Annotated[StrictInt, Field(ge=1, le=MAX_BITS)]
_Shift = Annotated[StrictInt, Field(ge=-_LONGEST_SHIFT, le=_LONGEST_SHIFT)]


class Hardware(Settings):
    """What a device can hold and compute.

    Attributes:
        name: for messages.
        weight_containers: widths (bits) in which constants can be stored, ascending; a constant takes the smallest
            that holds it. Flash that is bit-packed has every width.
        activation_containers: the same for computed tensors.
        only_containers: whether widths between two containers are left out. They save no byte of memory there, but
            they count in the papers' memory count, and a narrower tensor packs smaller in a file.
        shift: smallest and largest right shift from an accumulator to its output; a negative one is a left shift.
        accumulator_bits: width of the widest accumulator: 16, 32 or 64.

    Raises:
        ConfigError: containers that are not ascending widths from 1 to 16 (an activation container of at least 2),
            shifts outside -62..62 or in the wrong order, another accumulator width.
    """

    where = "hardware"

    name: str
    weight_containers: tuple[_Width, ...] = Field(default=tuple(range(1, MAX_BITS + 1)), min_length=1)
    activation_containers: tuple[_Width, ...] = Field(default=(8, 16), min_length=1)
    only_containers: StrictBool = False
    shift: tuple[_Shift, _Shift] = (-_LONGEST_SHIFT, _LONGEST_SHIFT)
    accumulator_bits: Literal[16, 32, 64] = 64

    def check(self) -> None:
        for name in ("weight_containers", "activation_containers"):
            widths = getattr(self, name)
            if list(widths) != sorted(set(widths)):
                raise ValueError(f"{name} is {[*widths]}; the rule is ascending widths")
        if self.activation_containers[-1] < 2:
            raise ValueError("activation_containers is [1]; the rule is that the last is at least 2")
        if not self.shift[0] <= 0 <= self.shift[1]:
            raise ValueError(f"shift is {[*self.shift]}; the rule is low <= 0 <= high")

    @property
    def is_free(self) -> bool:
        """Whether shifts and accumulators restrict nothing."""
        return self.shift == (-_LONGEST_SHIFT, _LONGEST_SHIFT) and self.accumulator_bits == 64

    def containers(self, spec: PointSpec) -> tuple[int, ...]:
        """The containers for a point, ascending, bits."""
        return self.weight_containers if spec.storage is Storage.FLASH else self.activation_containers

    def container(self, spec: PointSpec, bits: int) -> int:
        """The smallest container that holds ``bits`` bits of a point.

        >>> from caplet.nn.points import ram, Role
        >>> HARDWARE["portable"].container(ram("votes", Role.VOTES, ("in",), (3,), signed=True), 5)
        8

        Raises:
            PlanError: no container is as wide.
        """
        for width in self.containers(spec):
            if bits <= width:
                return width
        raise PlanError(f"hardware {self.name}: no container of {bits} bits for a {spec.role} ({spec.storage})")


HARDWARE: Mapping[str, Hardware] = {
    hardware.name: hardware
    for hardware in (
        Hardware(name="portable"),
        Hardware(name="mcu32", shift=(-31, 31), accumulator_bits=32),
        Hardware(name="bytes", only_containers=True),
        Hardware(name="byte", activation_containers=(8,), only_containers=True),
        Hardware(name="int8", weight_containers=(8,), activation_containers=(8,), shift=(0, 31), accumulator_bits=32),
    )
}
"""Ready-made descriptions. ``portable``: all that caplet's C runtime can do. ``mcu32``: 32-bit accumulators only, such
as a Cortex-M runs without long multiplications. ``bytes``: computed tensors in whole bytes, as RAM has them; ``byte``:
in one each, for which kernels are fastest. ``int8``: nothing wider than a byte and right shifts only, as integer
inference libraries have them."""


def find_hardware(name: str) -> Hardware:
    """A ready-made description by name, or one from a JSON file.

    Raises:
        ConfigError: neither a name nor a file, or the file is not a description. ArtefactError: it cannot be read.
    """
    if name in HARDWARE:
        return HARDWARE[name]
    path = Path(name)
    if path.suffix != ".json":
        hint = suggest(name, HARDWARE)
        raise ConfigError(f"unknown hardware {name!r}{hint} (known: {', '.join(HARDWARE)}, or a .json file)")
    return Hardware.model_validate(read_json(path, "the hardware description"), context={"where": str(path)})


@dataclass(frozen=True)
class Footprint:
    """What a plan takes on a device, from its integer Program.

    Attributes:
        ram_bytes: size of the arena, all votes stored.
        peak: buffers in use when most bytes are: (name, bytes); a tensor's name is its point's key.
        accumulator_bits: of the widest accumulator that the overflow proof asks for.
        shifts: by the key of the tensor written, the smallest and largest right shift that leads to it.
    """

    ram_bytes: int
    peak: tuple[tuple[str, int], ...]
    accumulator_bits: int
    shifts: Mapping[str, tuple[int, int]]

    def problem(self, hardware: Hardware) -> str | None:
        """Why the plan does not run on ``hardware``, or None where it does."""
        if self.accumulator_bits > hardware.accumulator_bits:
            return f"an accumulator needs {self.accumulator_bits} bits, {hardware.name} has {hardware.accumulator_bits}"
        low, high = hardware.shift
        for key, (smallest, largest) in self.shifts.items():
            if smallest < low or largest > high:
                wrong = smallest if smallest < low else largest
                return f"{key} needs a shift by {wrong} bits, {hardware.name} has {low}..{high}"
        return None


FootprintOf = Callable[[QuantPlan], Footprint]
"""Lowers a plan and looks; raises PlanError where the plan has no integer form."""


def fit_shifts(plan: QuantPlan, hardware: Hardware, footprint_of: FootprintOf) -> QuantPlan:
    """``plan`` with exponents moved until every shift is in the hardware's range.

    A tensor whose right shift is too small gets fewer fraction bits, one whose shift is too large more, by the least
    that helps. That changes the shifts of the tensors computed from it, so tensors are mended in order of execution;
    what cannot be mended (an exponent that another rule fixes) stays, and :meth:`Footprint.problem` names it.

    Raises:
        PlanError: the plan has no integer form.
    """
    if hardware.is_free:
        return plan
    low, high = hardware.shift
    for _ in range(len(plan.points)):
        for key, (smallest, largest) in footprint_of(plan).shifts.items():
            move = min(smallest - low, 0) + max(largest - high, 0)
            fmt = plan.points[key]
            if move and isinstance(fmt, FixedFormat):
                plan = plan.with_formats({key: FixedFormat(fmt.bits, fmt.frac_bits + move, fmt.signed)})
                break
        else:
            return plan
    return plan
