"""A Program as the steps of the host runtime: descriptors in memory (ctypes), and the offsets of every buffer."""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.fixed.format import FixedFormat
from caplet.fixed.rounding import Rounding
from caplet.fixed.softmax import negative_exponential, sum_bits
from caplet.fixed.squash import squash_factor
from caplet.program.arena import MemoryMap, plan_memory
from caplet.program.c.describe import Descriptions
from caplet.program.c.structure import KERNEL, Ref, Struct, Value, constants, structures
from caplet.program.op import Op
from caplet.program.ops import Conv2d, Convolution, ConvVotes, DenseVotes, Routing, Squash
from caplet.program.program import Program
from caplet.program.tensor import IntArray
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
_BYTES, _PAIRS = constants()["CAPLET_BYTES"], constants()["CAPLET_PAIRS"]
_NO_BYTES, _SIGNED, _CHAINED = (constants()[f"CAPLET_{name}_BYTES"] for name in ("NO", "SIGNED", "CHAINED"))
_INT8, _UINT8, _INT16, _UINT16 = (constants()[f"CAPLET_{sign}INT{bits}"] for bits in (8, 16) for sign in ("", "U"))
_TOGETHER, _ARENAS = 6, 1 << 25
"""Images that take each step together, as the rows of the kernels' tiles, and bytes that their arenas may take."""
_LOGITS = 12
"""Widest logits, bits, of which the host routing has all exponentials in a table."""


@dataclass(frozen=True)
class Steps:
    """What ``caplet_host_run`` needs. ``alive`` holds what ``table`` points to.

    arena_bytes: of one image's arena. scratch_bytes: of what ``together`` images share. input: offset of the image.
    places: offsets of all tensors.
    """

    table: Any
    arena_bytes: int
    scratch_bytes: int
    together: int
    input: int
    places: dict[str, int]
    alive: list[Any]

    def memory(self, traced: bool = False) -> tuple[Any, NDArray[np.uint8]]:
        """For one thread, a ``caplet_host_memory`` and its arenas. traced: every tensor is written to its place."""
        arenas = aligned(self.together * self.arena_bytes + self.scratch_bytes)
        fields = (arenas.ctypes.data, self.arena_bytes, self.together, int(traced))
        return STRUCTURES["caplet_host_memory"](*fields), arenas


def make_steps(program: Program, library: ctypes.CDLL) -> Steps:
    """Describe a Program to the host runtime ``library``. Raises PlanError when it does not verify.

    Nothing is computed in place, so every tensor can be looked at after the step that writes it.
    """
    proof = verify(program)
    plan = plan_memory(program, proof=proof, in_place=False)
    descriptions = Descriptions(program, proof, unpacked=True, rooms=plan.rooms)
    return StepBuilder(program, descriptions, plan, library).steps()


class StepBuilder:
    """Builds the steps of a Program, or of a single op, in the buffers of a memory plan.

    portable: compute everything as a device does.
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
        traits = (ctypes.c_uint32 * 3)()
        library.caplet_host_traits(traits)
        self._lanes, self._width, self._dot = traits
        self.portable = portable or not self._lanes
        self._alive: list[Any] = []
        self._places: dict[str, int] = {}
        self.names = {buffer.name for buffer in plan.buffers} | set(plan.shared)
        pixels = self.tensors[program.input].bytes if program.input else 0
        self.input = _up(plan.bytes)
        pointers = max((len(op.inputs) for op in program.ops), default=0)
        self.pointers = _up(self.input + pixels)
        self.arena_bytes = _up(self.pointers + 8 * pointers)
        self.together = max(1, min(_TOGETHER, _ARENAS // self.arena_bytes))
        self.scratch_bytes = 0

    def steps(self) -> Steps:
        table = (STRUCTURES["caplet_host_step"] * len(self.program.ops))()
        for step, op in zip(table, self.program.ops, strict=True):
            self._step(step, op)
        places = {name: self.place(name) for name in (*self.tensors,) if name in self.names}
        sizes = (self.arena_bytes, self.scratch_bytes, self.together)
        return Steps(table, *sizes, self.input, places, self._alive)

    def place(self, name: str) -> int:
        if name == self.program.input:
            return self.input
        return self.plan.offset(name) if name in self.names else _NOWHERE

    def struct(self, op: Op) -> Struct:
        """The descriptor of ``op`` as the host runtime takes it."""
        struct = self.descriptions.of(op)
        if self.portable:
            return struct
        if isinstance(op, Convolution):
            return self._convolution(op, struct) or struct
        if isinstance(op, DenseVotes):
            return self._dense_votes(op, struct) or struct
        if isinstance(op, Squash) and struct.fields["kernel"] == Ref("caplet_squash_bytes"):
            factors = _factors(*(int(self.tensors[name].format.frac_bits) for name in (op.input, op.output)))
            fields: dict[str, Value] = {"squash": struct, "factors": self._array(factors), "lengths": len(factors)}
            return Struct("caplet_host_squash", fields)
        return struct

    def _step(self, step: Any, op: Op) -> None:
        struct = self.struct(op)
        routing = self._routing(op, struct) if isinstance(op, Routing) and not self.portable else None
        struct = routing or struct
        step.op = ctypes.addressof(self._hold(STRUCTURES[struct.type]()))
        self._fill(self._alive[-1], struct)
        inputs = [self.place(name) for name in op.inputs]
        step.inputs = self._address(np.array(inputs, dtype=np.uint64))
        step.input_count = len(inputs)
        host = struct.type.startswith("caplet_host_")
        kind = struct.type.removeprefix("caplet_").upper() if host else op.kind.upper()
        kind = "HOST_ROUTING" if routing else kind
        step.kind = constants()[f"CAPLET_STEP_{kind}"]
        step.output = self.place(op.activation if isinstance(op, Routing) else op.outputs[0])
        memory: list[int] = []
        if isinstance(op, DenseVotes):
            memory = [self.pointers, self.place(f"{op.name}/scratch")]
        elif isinstance(op, Convolution):
            memory = [self.place(f"{op.name}/scratch")]
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

    def _shares(self, size: int) -> None:
        """Scratch that images share, and every step may use."""
        self.scratch_bytes = max(self.scratch_bytes, _up(size))

    def _dense_votes(self, op: DenseVotes, votes: Struct) -> Struct | None:
        """Descriptor of ``caplet_host_dense_votes``; None where its sums of 32 bits do not do."""
        inputs, dim, outputs = op.weight.shape
        sources = self.descriptions.structs[votes.fields["sources"].name]  # type: ignore[union-attr]
        wide = any(source.fields["acc"].fields["wide"] for source in sources)  # type: ignore[union-attr]
        integers, types = op.weight.integers, {source.fields["type"] for source in sources}
        if wide or self._noisy(op.output) or integers.max() > 32767 or _UINT16 in types:
            return None
        carries = self.tensors[op.output].rounding is Rounding.CARRY
        shifts = [op.shifts(self.tensors, source) for source in op.sources]
        if carries and (any(each.acc for each in shifts) or min(np.min(each.out) for each in shifts) < 0):
            return None
        words = -(-dim // 2)
        pairs = np.pad(integers.transpose(0, 2, 1).astype(np.int16), ((0, 0), (0, 0), (0, dim % 2)))
        panels = self._panels(np.ascontiguousarray(pairs).view(np.uint32))
        scales = -(-outputs // self._width) * 3 * self._width * 4
        self._shares(scales + self.together * (inputs * words * 4 + 4 * outputs * carries))
        taps = self._array(4 * np.arange(words, dtype=np.uint32))
        fields: dict[str, Value] = {"votes": votes, "weights": self._array(panels), "taps": taps}
        return Struct("caplet_host_votes", {**fields, "words": words, "inputs": inputs})

    def _routing(self, op: Routing, struct: Struct) -> Struct | None:
        """Descriptor for ``caplet_host_route``; None where it does not do this routing."""
        names = [struct.fields[name].name for name in ("weigh", "update")]  # type: ignore[union-attr]
        if names[0] == "caplet_weigh_any" or names[1] == "caplet_update_any" or self._noisy(op.coupling):
            return None
        fields, (inputs, outputs, dim) = dict(struct.fields), self.tensors[op.votes].shape
        if op.logits is not None:
            logits = self.tensors[op.logits].format
            if not isinstance(logits, FixedFormat) or not logits.signed or logits.bits > _LOGITS:
                return None
            values = negative_exponential(np.arange(1 << logits.bits), logits.frac_bits, sum_bits(outputs))
            fields["exponentials"] = self._array(values.astype(np.uint32))
        stride = (-(-inputs // 64) | 1) * 64
        self._shares(outputs * ((dim + 4) * stride + 4 * 64) + 4 * outputs * dim + 5 * CACHE_LINE)
        return Struct(struct.type, fields)

    def _noisy(self, name: str) -> bool:
        return self.tensors[name].rounding is Rounding.STOCHASTIC

    def _panels(self, rows: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Rows (groups, N, words) as the kernels take them: panels of lanes, (words, lanes) each."""
        groups, count, words = rows.shape
        padded = np.zeros((groups, -(-count // self._lanes) * self._lanes, words), dtype=np.uint32)
        padded[:, :count] = rows
        whole = padded.shape[1] // self._width * self._width
        panels = padded[:, :whole].reshape(groups, -1, self._width, words).swapaxes(2, 3).reshape(groups, -1)
        rest = padded[:, whole:].swapaxes(1, 2).reshape(groups, -1)
        return np.concatenate([panels, rest], axis=1)

    def _convolution(self, op: Convolution, conv: Struct) -> Struct | None:
        """Descriptor of ``caplet_host_convolve``; None where its sums of 32 bits do not do, and in groups."""
        filters = op.weight.integers
        outputs, *kernel = filters.shape[:3]
        source = conv.fields["in_type"]
        wide = conv.fields["acc"].fields["wide_products"]  # type: ignore[union-attr]
        if wide or source == _UINT16 or filters.max() > 32767 or (isinstance(op, Conv2d) and op.groups > 1):
            return None
        channels = int(conv.fields["in_channels"])  # type: ignore[arg-type]
        of_bytes = self._dot != _NO_BYTES and source in (_INT8, _UINT8) and bool((np.abs(filters + 0.5) < 128).all())
        flipped = of_bytes and (source == _INT8) == (self._dot != _SIGNED)
        cells = [int(conv.fields[f"out_{axis}"]) for axis in ("rows", "columns")]  # type: ignore[arg-type]
        stride = int(conv.fields["stride"])  # type: ignore[arg-type]
        rows, columns = ((n - 1) * stride + k for n, k in zip(cells, kernel, strict=True))
        words, taps = _words(filters, columns, channels, 1 if of_bytes else 2)
        if of_bytes and self._dot == _CHAINED:
            most = int(self.tensors[op.input].format.max_code) + 128 * flipped  # type: ignore[union-attr]
            found = _chains(words.view(np.int8).reshape(*words.shape, 4), most, self._width)
            of_bytes = found.shape[1] <= _LONGEST * len(taps)
            if of_bytes:
                words, taps = found["word"], taps[found["at"][:: self._width]]
            else:
                flipped, (words, taps) = False, _words(filters, columns, channels, 2)
        start = np.zeros(-(-outputs // 64) * 64, dtype=np.int32)
        if flipped:
            start[:outputs] = (128 if self._dot == _SIGNED else -128) * filters.reshape(outputs, -1).sum(axis=1)
        map_bytes = _up(rows * columns * channels * (1 if of_bytes else 2) + 4)
        self._shares(self.together * map_bytes)
        arrays = {"weights": self._panels(words[None]), "start": start, "taps": taps.astype(np.uint32)}
        fields: dict[str, Value] = {name: self._array(values) for name, values in arrays.items()}
        fields |= {"words": words.shape[1], "rows": rows, "columns": columns, "map_bytes": map_bytes, "conv": conv}
        fields |= {"panel_taps": words.shape[1] if taps.ndim > 1 else 0, "method": _BYTES if of_bytes else _PAIRS}
        return Struct("caplet_host_conv", {**fields, "flipped": int(flipped)})

    def _array(self, values: np.ndarray) -> Ref:
        """An array that starts at a cache line."""
        block = aligned(values.nbytes).view(values.dtype)
        block[...] = values.reshape(-1)
        name = f"host/{len(self.descriptions.arrays)}"
        # Not through Descriptions.array: a copy would lose the alignment.
        self.descriptions.arrays[name] = block
        return Ref(name)


_LENGTHS = 1 << 14
_LONGEST = 1.35
"""Chains of bytes take up to this many times the words: they are that much faster than pairs of int16."""


@cache
def _factors(in_frac: int, out_frac: int) -> NDArray[Any]:
    """The factors of capsules by their squared lengths, as ``caplet_squash_factor``."""
    multiplier, shift = squash_factor(np.arange(_LENGTHS), in_frac, out_frac)
    factors = np.zeros(_LENGTHS, dtype=np.dtype(STRUCTURES["caplet_squash_factor"]))
    left = np.clip(33 - shift, 0, None)
    factors["multiplier"], factors["left"], factors["right"] = multiplier, left, shift + left - 32
    return factors


def _words(filters: IntArray, columns: int, channels: int, size: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Filters (N, rows, columns, depth) as words of elements of ``size`` bytes that are neighbours in a map, filled up
    with 0: uint32 (N, words), and the words' offsets in bytes in a map of ``columns`` columns."""
    outputs, kernel_rows, kernel_columns, depth = filters.shape
    run = kernel_columns * depth if depth == channels else depth
    runs, each = filters.reshape(outputs, -1, run), 4 // size
    padded = np.zeros((outputs, runs.shape[1], -(-run // each) * each), dtype=f"int{8 * size}")
    padded[..., :run] = runs
    starts = (np.arange(kernel_rows)[:, None] * columns + np.arange(kernel_columns)) * channels
    starts = starts[:, : 1 if depth == channels else None].reshape(-1, 1) * size
    taps = starts + 4 * np.arange(padded.shape[2] // each)
    return padded.reshape(outputs, -1).view(np.uint32), taps.reshape(-1).astype(np.uint32)


def _chains(words: NDArray[np.int8], most: int, width: int) -> NDArray[Any]:
    """Weights (N, words, 4) so that products of two neighbouring words with codes up to ``most`` sum up in 16 bits.

    What is too much for a word's weights comes once more, in a further word at the same place. Returns (N, words) of
    "word" and of "at", the number of the word that it was; "at" is the same within every panel of ``width`` rows.
    """
    panels = []
    for start in range(0, len(words), width):
        rest, numbers, parts = words[start : start + width].astype(np.int16), np.arange(words.shape[1]), []
        while len(numbers):
            odd = len(numbers) % 2
            numbers, rest = np.pad(numbers, (0, odd), "edge"), np.pad(rest, ((0, 0), (0, odd), (0, 0)))
            # Two words' first and second elements make one sum, their third and fourth ones another.
            sums = rest.reshape(len(rest), -1, 2, 2, 2).swapaxes(2, 3).reshape(len(rest), -1, 2, 4)
            kept = _at_most(sums, 32767 // most) - _at_most(-sums, 32768 // most)
            kept = kept.reshape(len(rest), -1, 2, 2, 2).swapaxes(2, 3).reshape(rest.shape)
            part = np.empty(kept.shape[:2], dtype=[("word", np.uint32), ("at", np.int64)])
            part["word"], part["at"] = kept.astype(np.int8).view(np.uint32)[..., 0], numbers
            parts.append(part)
            left = (rest != kept).any(axis=(0, 2))
            numbers, rest = numbers[left], (rest - kept)[:, left]
        panels.append(np.concatenate(parts, axis=1))
    longest = max(panel.shape[1] for panel in panels)
    return np.concatenate([np.pad(panel, ((0, 0), (0, longest - panel.shape[1]))) for panel in panels])


def _at_most(parts: NDArray[np.int16], room: int) -> NDArray[np.int16]:
    """The positive ones of (..., 4) integers, the largest made smaller so that their sum is at most ``room``."""
    parts = np.clip(parts, 0, None)
    over = parts.sum(axis=-1) > room
    rows = parts[over]
    order = rows.argsort(axis=-1)
    ascending = np.take_along_axis(rows, order, -1)
    kept = np.minimum(ascending, np.clip(room - (ascending.cumsum(axis=-1) - ascending), 0, None))
    np.put_along_axis(rows, order, kept, -1)
    parts[over] = rows
    return parts


def _up(size: int) -> int:
    return -(-size // CACHE_LINE) * CACHE_LINE
