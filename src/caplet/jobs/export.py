"""Export a Program as C or for the web, a model as ONNX, and verify that every engine computes the same integers."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from caplet.data.imageset import to_float
from caplet.errors import ArtefactError, BoardError, ConfigError, ToolMissing, choose, suggest
from caplet.files import write_bytes
from caplet.jobs.trained import model_file
from caplet.models.base import CapsNet
from caplet.program import Program
from caplet.program.c.emit import WEB, EmitSettings, Export, emit
from caplet.program.file import load_program
from caplet.program.interpreter import run, trace
from caplet.program.onnx.graph import INSTALL, OPSET, require_onnx
from caplet.program.onnx.qdq import to_qdq
from caplet.program.onnx.translate import CAPSULES, IMAGES, PREDICTION, to_onnx
from caplet.progress import Note, Progress, silent
from caplet.quant.measure.evaluator import predict
from caplet.runs.records import Verified
from caplet.runtime.line import check_port, is_port
from caplet.runtime.remote import WAIT, run_on_board
from caplet.runtime.traces import first_difference

Target = Literal["interpreter", "native", "cortex-m4", "riscv32"]
TARGETS: tuple[Target, ...] = ("interpreter", "native", "cortex-m4", "riscv32")
OnnxForm = Literal["exact", "qdq"]
PREFERRED = ("model.caplet", *(f"model_{role}.caplet" for role in ("finetuned", "satisfied", "accuracy", "memory")))
"""Of a run folder: what a compression chose, then the results of the other jobs."""
_CHUNK = 16


def find_program(path: str | Path) -> Path:
    """The ``.caplet`` file that ``path`` means: itself, the best one of a run folder, or that of ``trained:NAME``.

    Raises:
        ArtefactError: a folder without any (the message lists what is looked for), or a file of another kind.
    """
    path = model_file(path)
    if not path.is_dir():
        if path.suffix != ".caplet":
            raise ArtefactError(f"{path}: not a .caplet file; `caplet quantize` makes one from a float model")
        return path
    for name in PREFERRED:
        if (path / name).exists():
            return path / name
    raise ArtefactError(f"{path}: no .caplet file in this folder (looked for {', '.join(PREFERRED)})")


def export_c(source: str | Path | Program, out: str | Path, settings: EmitSettings | None = None) -> Export:
    """Write a Program as a folder of C99 (model, runtime, self-test, build files), or for the place ``settings.to``.

    Args:
        source: a Program, a ``.caplet`` file, or a run folder.
        out: a new or empty folder.

    Raises:
        ConfigError: an unknown place.
        ToolMissing: for ``"web"``, the Python package ziglang is not installed.
        ArtefactError: the file cannot be read, or the folder is not empty or cannot be written.
        PlanError: the Program does not fit the RAM asked for.
    """
    program = source if isinstance(source, Program) else load_program(find_program(source))
    if settings is not None and settings.to == WEB:
        from caplet.runtime.web import emit_web

        return emit_web(program, Path(out), settings)
    return emit(program, Path(out), settings)


def parse_targets(text: str) -> tuple[str, ...]:
    """Engines and lines to boards from a list such as ``"interpreter,native"``, each once.

    Raises ConfigError for an unknown one, or where there is none.

    >>> parse_targets("native, serial:/dev/ttyACM0, native")
    ('native', 'serial:/dev/ttyACM0')
    """
    words = dict.fromkeys(filter(None, (word.strip() for word in text.split(","))))
    if not words:
        raise ConfigError(f"--on {text!r}: names no engine; the choice is {', '.join(TARGETS)}, {_LINES}")
    return tuple(check_port(word) if is_port(word) else _engine(word) for word in words)


_LINES = "or a board at serial:PORT or tcp:HOST:PORT"


def _engine(word: str) -> Target:
    if word in TARGETS:
        return choose(word, TARGETS, "engine")
    if word.lower().startswith(("/dev/", "com", "tty", "serial", "tcp")):
        raise ConfigError(f"--on {word}: no engine; a board is named serial:PORT or tcp:HOST:PORT, in small letters")
    raise ConfigError(f"--on: unknown engine {word!r}{suggest(word, TARGETS)} (known: {', '.join(TARGETS)}; {_LINES})")


def verify_engines(
    program: Program,
    images: NDArray[np.uint8],
    targets: tuple[str, ...] = TARGETS,
    *,
    ram: str | int = "small",
    wait: float = WAIT,
    note: Note = silent,
    progress: Progress | None = None,
    done: Callable[[Verified], None] | None = None,
) -> list[Verified]:
    """Run ``images`` on every engine and compare every code with the reference interpreter's int64 arithmetic.

    ``interpreter`` compares all tensors of its fast path (exact float64 sums) with plain int64 sums; ``native`` all
    class capsules; ``cortex-m4`` and ``riscv32`` all class capsules of firmware built for ``ram`` (see
    :func:`caplet.program.arena.plan_memory`), run by an emulator; ``serial:PORT`` and ``tcp:HOST:PORT`` what the board
    at the other end sends (:func:`caplet.runtime.remote.run_on_board`).

    Args:
        images: uint8 (N, C, H, W), N >= 1.
        wait: seconds that a board may take for one image.
        progress: called after each image of a board.
        done: called with what each engine did. One that cannot be used raises its error after the others have run.

    Raises:
        ConfigError: no image.
        ToolMissing: a compiler, an emulator or pyserial is needed and absent.
        BoardError: a board cannot be used.
    """
    if not len(images):
        raise ConfigError("verify: no image to run; ask for at least one")
    results: list[Verified] = []
    failed: list[BoardError | ToolMissing] = []
    for target in targets:
        note(f"{target}: {len(images):,} images")
        began = time.perf_counter()
        try:
            if is_port(target):
                outcome = _board(target, program, images, wait, progress, note)
            else:
                outcome = _run(target, program, images, ram)
        except (BoardError, ToolMissing) as error:
            failed.append(error)
            continue
        codes, differing, first, device = outcome
        results.append(Verified(target, len(images), codes, differing, first, time.perf_counter() - began, device))
        if done is not None:
            done(results[-1])
    if failed:
        raise type(failed[0])("; and ".join(map(str, failed))) from failed[0]
    return results


Outcome = tuple[int, int, str | None, dict[str, Any] | None]


def _run(target: str, program: Program, images: NDArray[np.uint8], ram: str | int) -> Outcome:
    if target == "interpreter":
        return _interpreter(program, images)
    return _native(program, images) if target == "native" else _device(target, program, images, ram)


def _interpreter(program: Program, images: NDArray[np.uint8]) -> Outcome:
    codes = differing = 0
    first: str | None = None
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        fast, plain = trace(program, part), trace(program, part, exact_floats=False)
        codes += sum(values.size for values in plain.values())
        differing += sum(int((fast[name] != values).sum()) for name, values in plain.items())
        if first is None and (found := first_difference(program, plain, fast)) is not None:
            first = f"of the images from {start} on: {found}"
    return codes, differing, first, None


def _native(program: Program, images: NDArray[np.uint8]) -> Outcome:
    from caplet.runtime import NativeModel

    model = NativeModel(program)
    unequal = run(program, images).capsules != model.run(images).capsules
    if not unequal.any():
        return unequal.size, 0, None, None
    image = int(unequal.any(axis=(1, 2)).argmax())
    one = images[image : image + 1]
    found = first_difference(program, trace(program, one), model.trace(one))
    return unequal.size, int(unequal.sum()), f"image {image}, run alone: {found}", None


def _device(name: str, program: Program, images: NDArray[np.uint8], ram: str | int) -> Outcome:
    from caplet.runtime.emulator import BOARDS, run_on_device

    run = run_on_device(BOARDS[name], program, images, EmitSettings(ram=ram))
    device = {
        "flash_bytes": run.flash_bytes,
        "arena_bytes": run.arena_bytes,
        "stack_bytes": run.stack_bytes,
        "ram_bytes": run.ram_bytes,
        "emulated_instructions_per_image": int(run.instructions.mean()),
        "toolchain": run.toolchain,
    }
    return run.capsules.size, run.differing, None if run.first is None else str(run.first), device


def _board(
    where: str, program: Program, images: NDArray[np.uint8], wait: float, progress: Progress | None, note: Note
) -> Outcome:
    run = run_on_board(where, program, images, wait, progress, note)
    device: dict[str, Any] = {"arena_bytes": run.arena_bytes, "traced_tensors": run.tensors}
    if run.missing:
        device["tensors_not_sent"] = ", ".join(run.missing)
    device |= {"requests_repeated": run.repeats, "images_begun_again": run.resets}
    if measured := sorted(run.microseconds[run.microseconds > 0].tolist()):
        low, middle, high = measured[0], measured[len(measured) // 2], measured[-1]
        device |= {"microseconds_min": low, "microseconds_median": middle, "microseconds_max": high}
    hint = "" if run.tensors else "; firmware built with CAPLET_TRACE_HOOK tells which tensor differs first"
    return run.codes, run.differing, None if run.first is None else f"{run.first}{hint}", device


_BATCH = 50
_FLOAT_TOLERANCE = 1e-4
"""Float sums depend on their order; beyond this two values are called different."""


@dataclass(frozen=True)
class OnnxCheck:
    """What onnxruntime computed, against caplet.

    Attributes:
        images: how many were run.
        equal_predictions: images for which both predict the same class.
        values: class-capsule values compared: codes of a Program, floats of a float model.
        differing: codes that differ; of a float model, values that differ by more than 1e-4.
        largest: the largest difference: in codes, or in the float model's units.
    """

    images: int
    equal_predictions: int
    values: int
    differing: int
    largest: float


def export_onnx(model: CapsNet | Program, out: str | Path, form: OnnxForm = "exact") -> Path:
    """Write ``model`` as an ONNX file.

    A Program becomes a graph of exact integers (see :mod:`caplet.program.onnx`), or with ``form="qdq"`` one for kernels
    of int8, whose codes may differ (:mod:`caplet.program.onnx.qdq`; :func:`check_onnx` tells how many). A float model
    is exported by torch with its routing unrolled: input ``images`` float32 (N, C, H, W) in [0, 1], output ``capsules``
    float32.

    Raises:
        ConfigError: a float model in QDQ form.
        ToolMissing: onnx, or for a float model onnxscript, is not installed.
        ArtefactError: the file cannot be written.
    """
    require_onnx()
    if isinstance(model, Program):
        data = (to_qdq if form == "qdq" else to_onnx)(model).SerializeToString()
    elif form == "qdq":
        raise ConfigError("--form qdq: the model is a float model; quantize it first, then export the .caplet file")
    else:
        data = _float_bytes(model)
    path = Path(out)
    write_bytes(path, data, todo="choose another --out")
    return path


def _float_bytes(model: CapsNet) -> bytes:
    if find_spec("onnxscript") is None:
        raise ToolMissing(
            f"the ONNX export of a float model needs the Python package onnxscript; install it with {INSTALL}"
        )
    model.eval()
    example = torch.rand(2, *model.config.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exported = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[IMAGES],
            output_names=[CAPSULES],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    assert exported is not None  # torch returns a program where it is given no file
    proto = exported.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # where in this machine's Python files torch met it
    return bytes(proto.SerializeToString())


def check_onnx(path: str | Path, model: CapsNet | Program, images: NDArray[np.uint8]) -> OnnxCheck:
    """Run ``images`` through an exported file in onnxruntime, and compare with the model it was made from.

    On x86, onnxruntime is told to add products of bytes exactly (``session.x64quantprecision``): without that,
    processors without VNNI saturate some sums of the QDQ form.

    Args:
        images: uint8 (N, C, H, W), N >= 1.

    Raises:
        ToolMissing: onnxruntime is not installed.
    """
    if find_spec("onnxruntime") is None:
        raise ToolMissing(f"checking an ONNX file needs the Python package onnxruntime; install it with {INSTALL}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    equal = values = differing = 0
    largest = 0.0
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        if isinstance(model, Program):
            found, predicted = session.run([CAPSULES, PREDICTION], {IMAGES: part})
            expected = run(model, part)
            gap = np.abs(found.astype(np.int64) - expected.capsules)
            equal += int((predicted == expected.predictions).sum())
            differing += int((gap > 0).sum())
        else:
            pixels = to_float(torch.from_numpy(part)).contiguous()
            [found] = session.run([CAPSULES], {IMAGES: pixels.numpy()})
            with torch.no_grad():
                capsules = model.eval()(pixels)
            gap = np.abs(found - capsules.numpy())
            equal += int((predict(torch.from_numpy(found)) == predict(capsules)).sum())
            differing += int((gap > _FLOAT_TOLERANCE).sum())
        values += gap.size
        largest = max(largest, float(gap.max()))
    return OnnxCheck(len(images), equal, values, differing, largest)
