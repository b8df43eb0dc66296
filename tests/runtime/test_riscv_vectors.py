"""Kernels for RISC-V's vectors of several lengths, in an emulator."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from caplet.program.op import OPS
from caplet.runtime.emulator import RISCV32, Board, run_on_device
from device_ops import differing_on_device
from random_ops import RandomOps
from sample_programs import SampleSettings, sample_deep, sample_shallow
from vector_boards import vector_board

pytestmark = [
    pytest.mark.slow(1),
    pytest.mark.skipif(shutil.which(RISCV32.emulator) is None, reason=f"{RISCV32.emulator} is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed"),
]


@pytest.fixture(params=[128, 256])
def board(request: pytest.FixtureRequest) -> Board:
    return vector_board(request.param)


def test_random_ops_have_the_interpreters_codes(board: Board, tmp_path: Path) -> None:
    draw, ops = RandomOps(11), []
    while len(ops) < 8 * len(OPS):
        single = draw.draw(list(OPS)[len(ops) % len(OPS)], portable=True)
        ops.append((single, draw.inputs(single, 2)))
    assert differing_on_device(board, ops, tmp_path) == (2 * len(ops), 0)


def test_every_code_equals_the_interpreters(board: Board) -> None:
    for program, most in ((sample_shallow(0, SampleSettings(5, 8)), 300_000), (sample_deep(1), None)):
        images = np.random.default_rng(5).integers(0, 256, size=(2, *program.image_shape), dtype=np.uint8)
        run = run_on_device(board, program, images)
        assert run.differing == 0
        assert most is None or (run.instructions < most).all()  # 415,000 without vectors
