"""Steps of the host runtime on another processor: written to a file, run there by a program (``foreign_steps.c``).

Addresses are of this process; the file says which of them point to what, and the program puts its own in their place.
"""

import bisect
import ctypes
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet import processes
from caplet.program.c.structure import runtime_files
from caplet.program.program import Program
from caplet.runtime.compiler import Compiler
from caplet.runtime.steps import STRUCTURES, Steps, make_steps, size_checks
from single_op import SingleOp

_FIRST_KERNEL = 1 << 46
"""Made-up addresses of kernels start here."""


@dataclass
class Foreign:
    """A library's stand-in, for :class:`caplet.runtime.steps.StepBuilder`, and the program that runs its steps.

    command: of the program, perhaps by an emulator. kernels: names that descriptors asked for.
    """

    command: Sequence[str]
    folder: Path
    traits: tuple[int, ...] = ()
    kernels: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.traits = tuple(map(int, self.run("traits").split()))

    def run(self, *arguments: str) -> str:
        done = processes.run([*self.command, *arguments], self.folder, seconds=600)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def caplet_host_traits(self, traits: Any) -> None:
        traits[:] = self.traits

    def caplet_host_kernel(self, name: bytes) -> int:
        if name not in self.kernels:
            self.kernels.append(name)
        return _FIRST_KERNEL + self.kernels.index(name)

    def outputs(self, cases: Sequence["Case"]) -> list[NDArray[np.uint8]]:
        """What the steps write for each case, uint8 (images, bytes)."""
        (self.folder / "cases.bin").write_bytes(b"".join(self._record(case) for case in cases))
        self.run("cases.bin", "results.bin")
        data, results = (self.folder / "results.bin").read_bytes(), []
        for case in cases:
            size = len(case.images) * case.bytes
            results.append(np.frombuffer(data[:size], np.uint8).reshape(len(case.images), case.bytes))
            data = data[size:]
        assert not data
        return results

    def _record(self, case: "Case") -> bytes:
        steps = case.steps
        blocks = sorted((_extent(one) for one in (steps.table, *steps.alive)), key=lambda block: block[0])
        starts = [start for start, _ in blocks]
        moves, names = [], []
        for one in (steps.table, *steps.alive):
            for place in _pointers(one):
                (value,) = (ctypes.c_uint64.from_address(place),)
                target = value.value
                if target == 0:
                    continue
                into = bisect.bisect_right(starts, place) - 1
                if target >= _FIRST_KERNEL and target - _FIRST_KERNEL < len(self.kernels):
                    names.append((into, place - starts[into], self.kernels[target - _FIRST_KERNEL]))
                else:
                    block = bisect.bisect_right(starts, target) - 1
                    assert target < sum(blocks[block]), "a pointer to what is not kept"
                    moves.append((into, place - starts[into], block, target - starts[block]))
        table = starts.index(ctypes.addressof(steps.table))
        numbers: tuple[int, ...] = (
            len(blocks),
            len(moves),
            len(names),
            table,
            len(steps.table),
            steps.arena_bytes,
            steps.scratch_bytes,
        )
        numbers += (steps.together, len(case.images), case.images.shape[1], case.input, case.output, case.bytes)
        parts = [struct.pack(f"<{len(numbers)}Q", *numbers)]
        parts += [struct.pack("<Q", size) + ctypes.string_at(start, size) for start, size in blocks]
        parts += [struct.pack("<4Q", *move) for move in moves]
        parts += [struct.pack("<2Q32s", into, at, name) for into, at, name in names]
        return b"".join([*parts, np.ascontiguousarray(case.images).tobytes()])


@dataclass(frozen=True)
class Case:
    """Steps and their images, uint8 (N, bytes), to be put at ``input``; ``bytes`` from ``output`` on are the result."""

    steps: Steps
    images: NDArray[np.uint8]
    input: int
    output: int
    bytes: int


def of_op(single: SingleOp, foreign: Foreign, inputs: dict[str, NDArray[np.int32]]) -> Case:
    """A single op, as :meth:`single_op.SingleOp.run` has it run."""
    (start, _), (first, last) = single.extent(single.op.inputs), single.extent(single.outputs)
    steps, _, _ = single.describe(foreign)  # type: ignore[arg-type]
    return Case(steps, single.pack(inputs, single.op.inputs), start, first, last - first)


def of_program(program: Program, foreign: Foreign, images: NDArray[np.uint8]) -> Case:
    """A Program on images (N, C, H, W); the result is its class capsules."""
    steps = make_steps(program, foreign)  # type: ignore[arg-type]
    pixels = images.transpose(0, 2, 3, 1).reshape(len(images), -1)
    spec = program.tensors[program.output]
    return Case(steps, pixels, steps.input, steps.places[program.output], spec.bytes)


def build(compiler: Compiler, flags: Sequence[str], folder: Path) -> Path:
    """The program, for the processor that ``flags`` name."""
    folder.mkdir()
    files = runtime_files(host=True)
    includes = "".join(f'#include "{name}"\n' for name in files if name.endswith(".c"))
    main = (Path(__file__).parent / "foreign_steps.c").read_text()
    for name, text in {**files, "main.c": includes + size_checks() + main}.items():
        (folder / name).write_text(text)
    compiler.build([*flags, "-O3", "-std=gnu99", "-I.", "main.c", "-o", "steps"], "steps", folder)
    return folder / "steps"


def emulated_arm(dot: bool, folder: Path) -> Foreign:
    """Arm's 64 bits in an emulator, compiled by zig in ``folder``. dot: with the dot product of bytes."""
    zig = Compiler((sys.executable, "-m", "ziglang", "cc"), "zig")
    flags = ["-target", "aarch64-linux-musl", "-fno-sanitize=all", "-mcpu=generic"]  # one C library for both
    flags += ["-Xclang", "-target-feature", "-Xclang", "+dotprod"] * dot
    return Foreign(("qemu-aarch64", "-cpu", "max", str(build(zig, flags, folder / "build"))), folder)


def differing(foreign: Foreign, ops: Sequence[tuple[SingleOp, dict[str, NDArray[np.int32]]]]) -> list[str]:
    """An op, for each case of it that differs from the interpreter's codes."""
    found = []
    results = foreign.outputs([of_op(single, foreign, inputs) for single, inputs in ops])
    for (single, inputs), result in zip(ops, results, strict=True):
        (first, _), block = single.extent(single.outputs), result.copy()
        unequal = np.zeros(len(block), bool)
        for name, codes in single.interpret(inputs).items():
            unequal |= (single.view(block, first, name) != codes).reshape(len(block), -1).any(axis=1)
        found += [str(single.op)] * int(unequal.sum())
    return found


def _extent(thing: Any) -> tuple[int, int]:
    """First address, and bytes."""
    if isinstance(thing, np.ndarray):
        return thing.ctypes.data, max(1, thing.nbytes)
    return ctypes.addressof(thing), ctypes.sizeof(thing)


def _pointers(thing: Any) -> Iterator[int]:
    """Addresses of the pointers in a structure, or in an array of them."""
    if isinstance(thing, ctypes.Array):
        for one in thing:
            yield from _pointers(one)
    elif isinstance(thing, ctypes.Structure):
        for name, kind, *_ in thing._fields_:
            if kind is ctypes.c_void_p:
                yield ctypes.addressof(thing) + getattr(type(thing), name).offset
            elif kind in STRUCTURES.values():
                yield from _pointers(getattr(thing, name))
