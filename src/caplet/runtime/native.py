"""Programs at full speed on this machine: the C runtime, compiled, on all cores."""

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.program.interpreter import RunResult
from caplet.program.program import Program
from caplet.runtime.compiler import build_library, load_library
from caplet.runtime.steps import make_steps

_CHUNK = 60
Codes = NDArray[Any]


class NativeModel:
    """A Program, ready to run on batches of images.

    threads: at most this many at once; all processors if None.
    Raises PlanError when the Program does not verify, ToolMissing when a C compiler is needed and absent.
    """

    def __init__(self, program: Program, threads: int | None = None) -> None:
        self.program = program
        self._threads = threads or processors()
        self._library = load_library(build_library())
        self._steps = make_steps(program, self._library)

    def run(self, images: NDArray[np.uint8]) -> RunResult:
        """As :func:`caplet.program.interpreter.run`, the same integers. Raises DataError for images that do not fit."""
        self.program.check_images(images)
        program = self.program
        out, squared = program.tensors[program.output], program.tensors[program.lengths]
        capsules = np.empty((len(images), *out.shape), dtype=out.c_type.removesuffix("_t"))
        lengths = np.empty((len(images), *squared.shape), dtype=squared.c_type.removesuffix("_t"))
        size = min(_CHUNK, -(-len(images) // self._threads))  # small batches keep every thread busy too
        starts = range(0, len(images), size)
        workers = min(self._threads, len(starts))
        free = [self._steps.memory() for _ in range(workers)]

        def chunk(start: int) -> None:
            memory = free.pop()
            part = slice(start, start + size)
            self._run(memory[0], images[part], capsules[part], lengths[part])
            free.append(memory)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(chunk, starts))
        return RunResult(capsules.astype(np.int32), lengths.astype(np.int64))

    def trace(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Every tensor but coupling, which is never stored: name -> codes (N, *shape), int64. Memory grows with N."""
        self.program.check_images(images)
        (memory, arenas), tensors = self._steps.memory(traced=True), self.program.tensors
        ends = (np.empty((1, tensors[name].bytes), np.uint8) for name in (self.program.output, self.program.lengths))
        capsules, lengths = ends
        parts: dict[str, list[NDArray[Any]]] = {}
        for image in images:
            for index, op in enumerate(self.program.ops):
                self._run(memory, image[None], capsules, lengths, index, 1)
                for name in op.outputs:
                    if name in self._steps.places:
                        parts.setdefault(name, []).append(self._tensor(arenas, name))
        return {name: np.stack(codes) for name, codes in parts.items()}

    def _tensor(self, arena: NDArray[np.uint8], name: str) -> NDArray[Any]:
        spec, start = self.program.tensors[name], self._steps.places[name]
        codes = arena[start : start + spec.bytes].view(spec.c_type.removesuffix("_t"))
        return codes.reshape(spec.shape).astype(np.int64)

    def _run(self, memory: Any, images: Codes, capsules: Codes, lengths: Codes, first: int = 0, count: int = 0) -> None:
        """Steps ``first`` to ``first + count - 1`` on each image; to the last one where ``count`` is 0."""
        steps, places, program = self._steps, self._steps.places, self.program
        pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self._library.caplet_host_run(
            ctypes.addressof(steps.table[first]),
            count or len(steps.table),
            ctypes.addressof(memory),
            pixels.ctypes.data,
            len(pixels),
            pixels[0].nbytes,
            steps.input,
            places[program.output],
            capsules[0].nbytes,
            capsules.ctypes.data,
            places[program.lengths],
            lengths[0].nbytes,
            lengths.ctypes.data,
        )


def processors() -> int:
    """Processors that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
