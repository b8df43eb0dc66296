"""Emulated microcontrollers: every code, sizes from the ELF file, and what is said when tools are missing."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caplet.errors import ArtefactError, ToolMissing
from caplet.program import interpreter
from caplet.program.arena import plan_memory
from caplet.program.c.emit import EmitSettings
from caplet.program.op import OPS
from caplet.runtime import emulator
from caplet.runtime.emulator import BOARDS, CORTEX_M4, Board, elf_flash_bytes, run_on_device
from caplet.runtime.traces import read_traces
from device_ops import differing_on_device
from random_ops import RandomOps
from sample_programs import SampleSettings, sample_chain, sample_deep, sample_shallow

pytestmark = pytest.mark.slow(1)

ZIG = importlib.util.find_spec("ziglang")


def tools_of(board: Board) -> bool:
    return shutil.which(board.emulator) is not None and (shutil.which(board.gcc) is not None or ZIG is not None)


def device(board: Board) -> Any:
    """A parameter for a board, skipped where its tools are missing."""
    missing = pytest.mark.skipif(
        not tools_of(board), reason=f"{board.emulator} or a compiler for {board.name} is not installed"
    )
    return pytest.param(board, id=board.name, marks=missing)


needs_device = pytest.mark.skipif(
    not tools_of(CORTEX_M4), reason="qemu-system-arm or a compiler for Cortex-M is not installed"
)
every_board = pytest.mark.parametrize("board", [device(board) for board in BOARDS.values()])


def images_for(shape: tuple[int, ...], count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, size=(count, *shape), dtype=np.uint8)


@every_board
def test_every_code_equals_the_interpreters(board: Board) -> None:
    program = sample_shallow(0, SampleSettings(5, 8))
    images = images_for(program.image_shape, 3)
    run = run_on_device(board, program, images)
    assert np.array_equal(run.capsules, interpreter.run(program, images).capsules)
    assert (run.differing, run.first) == (0, None)
    assert run.arena_bytes == plan_memory(program).bytes
    assert program.flash_bytes < run.flash_bytes
    assert abs(run.flash_bytes - program.firmware_bytes) <= 0.05 * program.firmware_bytes + 8 * 1024
    assert 100 < run.stack_bytes < 2048
    assert run.ram_bytes == run.arena_bytes + run.stack_bytes
    # More than one instruction, and fewer than a hundred, per multiplication (about 60,000 in this Program).
    assert (run.instructions > 60_000).all()
    assert (run.instructions < 6_000_000).all()


@every_board
@pytest.mark.parametrize("portable", [False, True], ids=["", "portable"])
def test_random_ops_have_the_interpreters_codes(board: Board, portable: bool, tmp_path: Path) -> None:
    draw, ops = RandomOps(11), []
    while len(ops) < 2 * len(OPS):
        single = draw.draw(list(OPS)[len(ops) % len(OPS)], portable=True)
        ops.append((single, draw.inputs(single, 2)))
    cases, differing = differing_on_device(board, ops, tmp_path, ("-DCAPLET_PORTABLE",) if portable else ())
    assert (cases, differing) == (2 * len(ops), 0)


@every_board
def test_recomputed_votes_of_a_deep_program(board: Board) -> None:
    program = sample_deep(1, SampleSettings(7, 12))
    run = run_on_device(board, program, images_for(program.image_shape, 2), EmitSettings(ram="small"))
    assert run.differing == 0
    assert run.arena_bytes == plan_memory(program, "small").bytes


@every_board
def test_maps_in_bands(board: Board) -> None:
    program = sample_chain(1)
    assert plan_memory(program, 1200).bands
    run = run_on_device(board, program, images_for(program.image_shape, 2), EmitSettings(ram=1200))
    assert run.differing == 0
    assert run.arena_bytes <= 1200 < plan_memory(program, "small").bytes


@pytest.mark.slow
@pytest.mark.skipif(ZIG is None, reason="ziglang is not installed")
@every_board
def test_zig_builds_firmware_too(board: Board) -> None:
    program = sample_shallow(2)
    run = run_on_device(board, program, images_for(program.image_shape, 2), compiler=board.zig())
    assert run.differing == 0
    assert run.toolchain.startswith("zig ")


@pytest.mark.skipif(shutil.which(CORTEX_M4.gcc) is None, reason="arm-none-eabi-gcc is not installed")
@pytest.mark.parametrize(("bits", "most"), [(8, 11_700), (5, 12_288)])
def test_a_firmware_holds_little_code_but_that_of_its_ops(bits: int, most: int, tmp_path: Path) -> None:
    """The public Q7-CapsNets network for MNIST, of random weights; tables, descriptors, and what the emulator needs."""
    settings = SampleSettings(bits, 8, bias=False)
    program = sample_shallow(0, settings, (1, 28, 28), stem=(16, 7), primary=(16, 4, 7), classes=(10, 6))
    export = emulator.emit(program, tmp_path / "export", EmitSettings(ram="small"))
    firmware = emulator.build_firmware(CORTEX_M4, export, CORTEX_M4.find_compiler(), ("CAPLET_NO_SELFTEST",))
    code = elf_flash_bytes(firmware) - program.flash_bytes
    assert code <= most
    assert abs(program.code_bytes - code) <= code / 10


@needs_device
@pytest.mark.slow
def test_the_first_difference_is_located(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firmware with another bias than the interpreter's: the tensor that the bias enters is named."""
    program = sample_shallow(0)
    conv = next(op for op in program.ops if op.name == "conv1")
    codes = conv.bias.codes.copy()  # type: ignore[attr-defined]
    codes[3] = -codes[3] + 40 - 80 * (codes[3] < -40)
    bias = replace(conv.bias, codes=codes)  # type: ignore[attr-defined]
    changed = tuple(replace(op, bias=bias) if op is conv else op for op in program.ops)  # type: ignore[call-arg]
    real = emulator.emit
    monkeypatch.setattr(emulator, "emit", lambda _, *rest: real(replace(program, ops=changed), *rest))
    run = run_on_device(CORTEX_M4, program, images_for(program.image_shape, 1), EmitSettings(in_place=False))
    assert run.differing > 0
    assert run.first is not None
    assert run.first.tensor == "conv1.activation"
    assert run.first.index[3] == 3
    assert "tensor conv1.activation[" in str(run.first)


def test_no_emulator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    program = sample_shallow(0)
    with pytest.raises(ToolMissing, match="apt install qemu-system-arm gcc-arm-none-eabi") as caught:
        run_on_device(CORTEX_M4, program, images_for(program.image_shape, 1))
    assert caught.value.exit_code == 7


def test_no_cross_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolMissing, match="pip install ziglang"):
        CORTEX_M4.find_compiler()


def test_a_file_that_is_no_elf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "firmware.elf"
    path.write_bytes(b"\x7fELF\x02\x01" + bytes(100))
    with pytest.raises(ArtefactError, match="not a 32-bit"):
        elf_flash_bytes(path)
    path.write_bytes(b"\x7fELF\x01\x01" + bytes(26) + b"\xff\xff\xff\x7f" + bytes(10) + b"\x28\x00\x09\x00\x00\x00")
    with pytest.raises(ArtefactError, match="outside the file"):
        elf_flash_bytes(path)


def test_a_cut_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.bin"
    path.write_bytes(b"\x04\x00\x00\x00abc")
    with pytest.raises(ArtefactError, match="cut short"):
        read_traces(sample_shallow(0), path)
    path.write_bytes(b"\x03\x00\x00\x00abc\x00\x00\x00\x00")
    with pytest.raises(ArtefactError, match="'abc'"):
        read_traces(sample_shallow(0), path)
