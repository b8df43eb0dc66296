"""The host runtime on another processor: Arm's 64 bits, with and without its dot product, in an emulator."""

import importlib.util
import shutil

import numpy as np
import pytest

from caplet.program import interpreter
from caplet.program.op import OPS
from foreign_steps import Foreign, differing, emulated_arm, of_program
from random_ops import RandomOps
from sample_programs import SampleSettings, sample_deep, sample_shallow

pytestmark = [
    pytest.mark.slow(1),
    pytest.mark.skipif(
        shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 (Debian: qemu-user) is not installed"
    ),
    pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dotprod"])
def arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    found = emulated_arm(request.param, tmp_path_factory.mktemp("aarch64"))
    assert found.traits == (4, 16, 2 * request.param)  # 32-bit lanes; lanes of a panel; which bytes it multiplies
    return found


def test_random_ops_have_the_interpreters_codes(arm: Foreign) -> None:
    draw, drawn = RandomOps(11), []
    while len(drawn) < 4 * len(OPS):
        single = draw.draw(list(OPS)[len(drawn) % len(OPS)])
        drawn.append((single, draw.inputs(single, 3)))
    assert differing(arm, drawn) == []


@pytest.mark.parametrize("deep", [False, True])
def test_every_code_of_whole_images_equals_the_interpreters(arm: Foreign, deep: bool) -> None:
    program = sample_deep(1) if deep else sample_shallow(0, SampleSettings(5, 8))
    images = np.random.default_rng(5).integers(0, 256, size=(9, *program.image_shape), dtype=np.uint8)
    (found,) = arm.outputs([of_program(program, arm, images)])
    expected = interpreter.run(program, images).capsules
    codes = found.copy().view(program.tensors[program.output].c_type.removesuffix("_t")).reshape(expected.shape)
    np.testing.assert_array_equal(codes, expected)
