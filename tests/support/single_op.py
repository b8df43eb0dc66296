"""Single ops, natively and in the interpreter: what the cross-checks of the C code compare."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.program import interpreter
from caplet.program.arena import MemoryMap
from caplet.program.bands import ALIGNMENT
from caplet.program.bounds import BOUNDS, code_range
from caplet.program.c.describe import Descriptions
from caplet.program.c.structure import Struct
from caplet.program.lifetimes import Buffer
from caplet.program.op import Op
from caplet.program.ops import InputQuantize, Routing
from caplet.program.program import Program
from caplet.program.scratch import workspace
from caplet.program.tensor import TensorSpec
from caplet.program.verify import CHECKS, Proof
from caplet.runtime.steps import StepBuilder, Steps


class SingleOp:
    """One op with its tensors, outside any Program.

    portable: as on a device: bit-packed constants, and convolutions one window at a time; else as the host does.
    seed: of stochastic rounding. room: bytes of scratch in which a convolution is divided. Raises PlanError when the op
    does not verify.
    """

    def __init__(
        self, op: Op, tensors: dict[str, TensorSpec], seed: int = 0, portable: bool = False, room: int = 0
    ) -> None:
        CHECKS[type(op)](op, tensors)
        ranges = {name: (0, 255) if isinstance(op, InputQuantize) else _codes(tensors[name]) for name in op.inputs}
        ranges |= {name: code_range(op, tensors[name]) for name in op.outputs}
        proof = Proof(tuple(BOUNDS[type(op)](op, tensors, ranges)))
        self.op = op
        self.outputs = tuple(name for name in op.outputs if not (isinstance(op, Routing) and name == op.coupling))
        program = Program("single", tensors, (op,), "", "", "", seed)
        self._tensors = tensors
        self._machine = interpreter._Machine(program, proof, exact_floats=True)
        self._plan = _sequential(op, tensors, proof, self.outputs, room)
        self._descriptions = Descriptions(program, proof, unpacked=not portable, rooms={op.name: room})
        self._program, self._portable = program, portable

    def interpret(self, inputs: dict[str, NDArray[np.int32]]) -> dict[str, NDArray[np.int64]]:
        """The outputs by the interpreter: name -> int64 (B, *shape). inputs: name -> codes (B, *shape)."""
        result = interpreter.INTERPRET[type(self.op)](
            self.op, self._machine, *(inputs[name] for name in self.op.inputs)
        )
        return {name: np.asarray(result[name], dtype=np.int64) for name in self.outputs}

    def run(self, library: ctypes.CDLL, inputs: dict[str, NDArray[np.int32]]) -> dict[str, NDArray[np.int64]]:
        """The outputs by the C code in ``library``, as :meth:`interpret` gives them."""
        steps = self._builder(library).steps()
        batch = len(inputs[self.op.inputs[0]])
        start, _ = self.extent(self.op.inputs)
        images = self.pack(inputs, self.op.inputs)
        first, last = self.extent(self.outputs)
        results = np.empty((batch, last - first), dtype=np.uint8)
        memory, _arenas = steps.memory(traced=True)
        library.caplet_host_run(
            *(ctypes.addressof(steps.table), 1, ctypes.addressof(memory)),
            *(images.ctypes.data, batch, images.shape[1], start),
            *(first, results.shape[1], results.ctypes.data),
            *(first, 0, results.ctypes.data),
        )
        return {name: self.view(results, first, name).astype(np.int64) for name in self.outputs}

    def describe(self, library: ctypes.CDLL) -> tuple[Steps, Descriptions, Struct]:
        """What the host runtime gets, and the descriptor as a value."""
        builder = self._builder(library)
        steps = builder.steps()
        return steps, self._descriptions, builder.struct(self.op)

    def pack(self, codes: dict[str, NDArray[Any]], names: tuple[str, ...], gap: int = 0) -> NDArray[np.uint8]:
        """Tensors as they lie in the arena, from the first one's place on: uint8 (B, bytes). gap: what lies between."""
        start, end = self.extent(names)
        block = np.full((len(codes[names[0]]), end - start), gap, dtype=np.uint8)
        for name in names:
            self.view(block, start, name)[...] = codes[name]
        return block

    def place(self, name: str) -> int:
        """Where a tensor lies in the arena."""
        return self._plan.offset(name)

    def _builder(self, library: ctypes.CDLL) -> StepBuilder:
        return StepBuilder(self._program, self._descriptions, self._plan, library, self._portable)

    def extent(self, names: tuple[str, ...]) -> tuple[int, int]:
        """The bytes of the arena, from the first tensor's start to the last one's end."""
        return self._plan.offset(names[0]), self._plan.offset(names[-1]) + self._tensors[names[-1]].bytes

    def view(self, block: NDArray[np.uint8], start: int, name: str) -> NDArray[Any]:
        spec = self._tensors[name]
        at = self._plan.offset(name) - start
        codes = np.ndarray(
            (len(block), spec.elements),
            dtype=spec.c_type.removesuffix("_t"),
            buffer=block,
            offset=at,
            strides=(block.strides[0], spec.element_bytes),
        )
        return codes.reshape(len(block), *spec.shape)


def _codes(spec: TensorSpec) -> tuple[int, int]:
    return spec.format.min_code, spec.format.max_code  # type: ignore[union-attr]


def _sequential(op: Op, tensors: dict[str, TensorSpec], proof: Proof, outputs: tuple[str, ...], room: int) -> MemoryMap:
    """Inputs, outputs and scratch one after the other."""
    sizes = {name: tensors[name].bytes for name in (*op.inputs, *outputs)}
    sizes |= {f"{op.name}/{what}": size for what, size in workspace(op, tensors, proof, room).items()}
    buffers = []
    offset = 0
    for name, size in sizes.items():
        buffers.append(Buffer(name, size, 0, 0, offset))
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return MemoryMap(tuple(buffers), {}, offset, op.name, (), {})
