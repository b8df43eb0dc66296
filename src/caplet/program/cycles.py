"""How long an image takes on a microcontroller: an estimate, from what a Program has to compute.

Each unit of work costs a core so many cycles. ``cycles.json`` has the table, fitted to emulated firmware whose
instructions were counted by class and weighted with the cycles of the core's manual, for memory without wait states
(benchmarks/device_cycles.py). Other cores take as many cycles as a similar one, times a ratio of CoreMark per MHz, by
Arm's and Espressif's figures. No chip was measured: a real one tells by `caplet verify --on serial:PORT`.
"""

import json
from dataclasses import astuple, dataclass
from importlib.resources import files

from caplet.errors import PlanError
from caplet.program.arena import MemoryMap, plan_memory
from caplet.program.ops import Conv2d, ConvVotes, DenseVotes, Routing
from caplet.program.program import Program
from caplet.program.verify import Proof, verify

TABLES = json.loads(files("caplet.program").joinpath("cycles.json").read_text())
STACK_BYTES = 2_000
"""RAM for the stack, with room to spare (0.5 KB for a small network)."""


@dataclass(frozen=True)
class Device:
    """A microcontroller, or a board with one: its core, the clock in MHz, bytes of flash and of RAM for a program."""

    name: str
    core: str
    clock: int
    flash: int
    ram: int


DEVICES = tuple(Device(*row[:3], *(1024 * size for size in row[3:])) for row in TABLES["devices"])
"""Devices that people own, with their nominal sizes, the smallest first."""


@dataclass(frozen=True)
class DeviceTime:
    """How long an image takes on a ``device``: ``milliseconds``, an estimate; None where it ``lacks`` flash or RAM."""

    device: Device
    milliseconds: float | None = None
    lacks: str = ""

    def __str__(self) -> str:
        """
        >>> [str(DeviceTime(DEVICES[0], *found)) for found in ((123.4,), (4.56,), (None, "RAM"))]
        ['120 ms', '4.6 ms', 'too little RAM']
        """
        count = self.milliseconds
        return f"too little {self.lacks}" if count is None else f"{float(f'{count:.2g}'):,.{int(count < 9.95)}f} ms"


@dataclass(frozen=True)
class Counts:
    """What an image takes, in counts.

    conv, votes: multiply-accumulates of convolutions, and of votes as often as they are made, where codes are bytes;
    wide: where they are not. routing: of weighted sums and agreements. logits: that go through a softmax. outputs:
    codes that other ops write. unpacked: weights that are neither 8 nor 16 bits wide, as often as they are read.
    """

    conv: float = 0
    votes: float = 0
    wide: float = 0
    routing: float = 0
    logits: float = 0
    outputs: float = 0
    unpacked: float = 0


def work(program: Program, plan: MemoryMap) -> Counts:
    """Of one image; votes that ``plan`` does not store are made again in each iteration of the routing."""
    counts = dict.fromkeys(Counts.__dataclass_fields__, 0.0)
    tensors, again = program.tensors, dict[str, float]()
    for op in reversed(program.ops):  # routing before its votes
        if isinstance(op, Routing):
            stored = plan.stored[op.votes] / tensors[op.votes].shape[0]
            again[op.votes] = stored + (1 - stored) * op.iterations
            counts["routing"] += (2 * op.iterations - 1) * tensors[op.votes].elements
            counts["logits"] += (op.iterations - 1) * tensors[op.coupling].elements
            counts["outputs"] += op.iterations * tensors[op.activation].elements
            continue
        times = again.get(op.outputs[0], 1.0)
        if isinstance(op, Conv2d | ConvVotes | DenseVotes):
            rows, columns = (1, 1) if isinstance(op, DenseVotes) else op.positions(tensors)
            types = op.in_types if isinstance(op, ConvVotes) else 1
            weights = times * op.weight.codes.size
            bits = max(op.weight.format.bits, *(tensors[name].format.bits for name in (*op.inputs, *op.outputs)))
            kind = "wide" if bits > 8 else "conv" if isinstance(op, Conv2d) else "votes"
            counts[kind] += rows * columns * types * weights
            counts["unpacked"] += weights * (op.weight.format.bits not in (8, 16))
        if not isinstance(op, ConvVotes | DenseVotes):
            counts["outputs"] += tensors[op.outputs[0]].elements
    return Counts(**counts)


def device_times(program: Program, proof: Proof | None = None) -> tuple[DeviceTime, ...]:
    """How long an image takes on each of :data:`DEVICES`, with as many votes stored as its RAM holds.

    proof: of ``verify(program)``, made here if None. Raises PlanError when the Program does not verify.
    """
    proof = proof or verify(program)
    return tuple(_time(program, device, proof) for device in DEVICES)


def _time(program: Program, device: Device, proof: Proof) -> DeviceTime:
    if program.firmware_bytes > device.flash:
        return DeviceTime(device, lacks="flash")
    try:
        plan = plan_memory(program, device.ram - STACK_BYTES, proof=proof)
    except PlanError:
        return DeviceTime(device, lacks="RAM")
    like, ratio = TABLES["cores"][device.core]
    if program.firmware_bytes + plan.code_bytes > device.flash:
        return DeviceTime(device, lacks="flash")
    cycles = sum(a * b for a, b in zip(TABLES["cycles"][like], astuple(work(program, plan)), strict=True))
    cycles += sum(bands.cost for bands in plan.bands)
    return DeviceTime(device, ratio * cycles / device.clock / 1000)
