"""A Program as the steps of the host runtime: descriptors in memory (ctypes), and the offsets of every buffer."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.program.arena import MemoryMap, plan_memory
from caplet.program.c.describe import Descriptions
from caplet.program.c.structure import KERNEL, Ref, Struct, Value, constants, structures
from caplet.program.op import Op
from caplet.program.ops import Conv2d, Convolution, ConvVotes, DenseVotes, Routing
from caplet.program.program import Program
from caplet.program.verify import verify

CACHE_LINE = 64
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_TYPES: dict[str, Any] = {"*": ctypes.c_void_p, **{f"{name}_t": getattr(ctypes, f"c_{name}") for name in _INTEGERS}}
STRUCTURES: dict[str, type[ctypes.Structure]] = {}
"""The structures of ``caplet.h`` and ``host.h`` by their names in C."""
for _name, _fields in structures().items():
    _members = [(field, _TYPES[kind] * count if count else _TYPES[kind]) for field, kind, count in _fields]
    _TYPES[_name] = STRUCTURES[_name] = type(_name, (ctypes.Structure,), {"_fields_": _members})


def size_checks() -> str:
    """C that does not compile where a compiler gives a structure another size than ctypes."""
    lines = (
        f"typedef char {name}_has_another_size[sizeof({name}) == {ctypes.sizeof(structure)} ? 1 : -1];\n"
        for name, structure in STRUCTURES.items()
    )
    return "".join(lines)


def aligned(size: int) -> NDArray[np.uint8]:
    """``size`` zero bytes that start at a cache line."""
    raw = np.zeros(size + CACHE_LINE, dtype=np.uint8)
    first = -raw.ctypes.data % CACHE_LINE
    return raw[first : first + size]


_NOWHERE = (1 << 64) - 1
_METHODS = ("AS_DEVICE", "BYTES", "FLIPPED", "WORDS")
_AS_DEVICE, _BYTES, _FLIPPED, _WORDS = (constants()[f"CAPLET_{name}"] for name in _METHODS)
_INT8, _UINT8, _INT16, _UINT16 = (constants()[f"CAPLET_{sign}INT{bits}"] for bits in (8, 16) for sign in ("", "U"))
_PATCH_BYTES = 1 << 20
"""Gathered patches may take this much: about a processor's second-level cache."""


@dataclass(frozen=True)
class Steps:
    """What ``caplet_host_run`` needs. ``alive`` holds what ``table`` points to.

    arena_bytes: of one thread's arena. input: offset of the image. places: offsets of all tensors.
    """

    table: Any
    arena_bytes: int
    input: int
    places: dict[str, int]
    alive: list[Any]


def make_steps(program: Program, library: ctypes.CDLL) -> Steps:
    """Describe a Program to the host runtime ``library``. Raises PlanError when it does not verify.

    Nothing is computed in place, so every tensor can be looked at after the step that writes it.
    """
    proof = verify(program)
    plan = plan_memory(program, proof=proof, in_place=False)
    descriptions = Descriptions(program, proof, unpacked=True, host=True, rooms=plan.rooms)
    return StepBuilder(program, descriptions, plan, library).steps()


class StepBuilder:
    """Builds the steps of a Program, or of a single op, in the buffers of a memory plan.

    portable: compute convolutions as a device does.
    """

    def __init__(
        self,
        program: Program,
        descriptions: Descriptions,
        plan: MemoryMap,
        library: ctypes.CDLL,
        portable: bool = False,
    ) -> None:
        self.library = library
        self.program = program
        self.tensors = program.tensors
        self.descriptions = descriptions
        self.plan = plan
        self.portable = portable
        self._alive: list[Any] = []
        self._places: dict[str, int] = {}
        self.names = {buffer.name for buffer in plan.buffers} | set(plan.shared)
        pixels = self.tensors[program.input].bytes if program.input else 0
        self.input = _up(plan.bytes)
        self.scratch = _up(self.input + pixels)
        self.scratch_bytes = 0

    def steps(self) -> Steps:
        table = (STRUCTURES["caplet_host_step"] * len(self.program.ops))()
        for step, op in zip(table, self.program.ops, strict=True):
            self._step(step, op)
        places = {name: self.place(name) for name in (*self.tensors,) if name in self.names}
        return Steps(table, _up(self.scratch + self.scratch_bytes), self.input, places, self._alive)

    def place(self, name: str) -> int:
        if name == self.program.input:
            return self.input
        return self.plan.offset(name) if name in self.names else _NOWHERE

    def struct(self, op: Op) -> Struct:
        """The descriptor of ``op`` as the host runtime takes it."""
        struct = self.descriptions.of(op)
        return self._convolution(op, struct) if isinstance(op, Convolution) else struct

    def _step(self, step: Any, op: Op) -> None:
        struct = self.struct(op)
        step.op = ctypes.addressof(self._hold(STRUCTURES[struct.type]()))
        self._fill(self._alive[-1], struct)
        inputs = [self.place(name) for name in op.inputs]
        step.inputs = self._address(np.array(inputs, dtype=np.uint64))
        step.input_count = len(inputs)
        step.kind = constants()[f"CAPLET_STEP_{op.kind.upper()}"]
        step.output = self.place(op.activation if isinstance(op, Routing) else op.outputs[0])
        memory: list[int] = []
        if isinstance(op, DenseVotes):
            memory = self._dense_votes(op, step)
        elif isinstance(op, Convolution):
            memory = [self.place(f"{op.name}/scratch"), self.scratch]
        elif isinstance(op, Routing):
            logits = _NOWHERE if op.logits is None else self.place(op.logits)
            scratch = [self.place(f"{op.name}/{what}") for what in ("coupling", "acc", "exponentials")]
            memory = [logits, self.place(op.preactivation), *scratch]
        for index, offset in enumerate(memory):
            step.memory[index] = offset
        votes = {DenseVotes: "output", ConvVotes: "output", Routing: "votes"}.get(type(op))
        if votes is not None:
            spec = self.tensors[getattr(op, votes)]
            step.count, outputs, dim = spec.shape
            step.row_bytes = outputs * dim * spec.element_bytes

    def _hold(self, thing: Any) -> Any:
        """Keep ``thing`` alive as long as the steps."""
        self._alive.append(thing)
        return thing

    def _address(self, values: NDArray[Any]) -> int:
        """The address of an array's elements, kept alive."""
        return int(self._hold(values).ctypes.data)

    def _fill(self, target: Any, struct: Struct) -> None:
        for name, value in struct.fields.items():
            if isinstance(value, Struct):
                self._fill(getattr(target, name), value)
            else:
                setattr(target, name, self._place(value.name) if isinstance(value, Ref) else value)

    def _place(self, name: str) -> int | None:
        if not name:
            return None
        if name.startswith(KERNEL):
            return int(self.library.caplet_host_kernel(name.encode()))
        if name not in self._places:
            if name in self.descriptions.arrays:
                self._places[name] = self._address(self.descriptions.arrays[name])
            else:
                items = self.descriptions.structs[name]
                block = self._hold((STRUCTURES[items[0].type] * len(items))())
                for target, item in zip(block, items, strict=True):
                    self._fill(target, item)
                self._places[name] = ctypes.addressof(block)
        return self._places[name]

    def _shared(self, size: int) -> int:
        """Scratch that is used within one step only."""
        self.scratch_bytes = max(self.scratch_bytes, size)
        return self.scratch

    def _dense_votes(self, op: DenseVotes, step: Any) -> list[int]:
        """Memory of dense votes, by ``caplet_host_dense_votes`` where constants are as in the Program."""
        pointers, (_, in_dim, votes) = _up(8 * len(op.inputs)), op.weight.shape
        if not self.descriptions.host:
            return [self._shared(pointers), self.place(f"{op.name}/scratch")]
        step.kind = constants()["CAPLET_STEP_HOST_VOTES"]
        start = self._shared(pointers + _up(8 * votes) + 2 * min(in_dim, 4) * votes)
        return [start, start + pointers, start + pointers + _up(8 * votes)]

    def _convolution(self, op: Convolution, conv: Struct) -> Struct:
        """Descriptor of ``caplet_host_convolve``: the filters as rows of a padded matrix, where they fit its tiles."""
        filters = op.weight.integers.reshape(op.weight.shape[0], -1)
        in_groups = isinstance(op, Conv2d) and op.groups > 1
        method = _AS_DEVICE if self.portable or in_groups else _method(conv, filters)
        outputs, size = filters.shape
        patch = -(-size // 64) * 64
        matrix = np.zeros((-(-outputs // 4) * 4, patch), dtype=np.int16 if method == _WORDS else np.int8)
        start = np.zeros(-(-outputs // 16) * 16, dtype=np.int32)
        positions = 0
        if method != _AS_DEVICE:
            matrix[:outputs, :size] = filters
            if method == _FLIPPED:
                start[:outputs] = -128 * filters.sum(axis=1)
            cells = int(conv.fields["out_rows"]) * int(conv.fields["out_columns"])  # type: ignore[arg-type]
            fit = max(4, _PATCH_BYTES // (patch * matrix.itemsize) // 4 * 4)
            positions = min(-(-cells // 4) * 4, fit)
            self._shared(positions * (patch * matrix.itemsize + 16 * 4))
        fields: dict[str, Value] = {"conv": conv, "patch": patch, "positions": positions, "method": method}
        return Struct("caplet_host_conv", {**fields, "weights": self._array(matrix), "start": self._array(start)})

    def _array(self, values: np.ndarray) -> Ref:
        """An array that starts at a cache line."""
        block = aligned(values.nbytes).view(values.dtype)
        block[...] = values.reshape(-1)
        name = f"host/{len(self.descriptions.arrays)}"
        # Not through Descriptions.array: a copy would lose the alignment.
        self.descriptions.arrays[name] = block
        return Ref(name)


def _method(conv: Struct, filters: np.ndarray) -> int:
    acc = conv.fields["acc"]
    assert isinstance(acc, Struct)
    source = conv.fields["in_type"]
    weights_fit_bytes = filters.min() >= -128 and filters.max() <= 127
    if acc.fields["wide_products"] or source not in (_INT8, _UINT8, _INT16) or filters.max() > 32767:
        return _AS_DEVICE
    if source == _UINT8 and weights_fit_bytes:
        return _BYTES
    if source == _INT8 and weights_fit_bytes and 255 * int(np.abs(filters).sum(axis=1).max()) < 1 << 31:
        return _FLIPPED
    return _WORDS


def _up(size: int) -> int:
    return -(-size // CACHE_LINE) * CACHE_LINE
