"""Parts of kernels that random ops meet too seldom at their extremes."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from caplet.fixed.packing import pack_bits
from caplet.program.c.structure import constants, runtime_files
from caplet.runtime.compiler import build_library, compilers, find_compiler, load_library

_SOURCE = """#include "softmax.c"
#include "fixed.c"

/* How many reciprocals of sums differ from the quotient by a division of 64 bits: one by one, and four at a time. */
uint32_t differing(const uint32_t *sums, uint32_t count, uint32_t scale_bits)
{
    uint32_t found = 0;
    uint32_t i;
    for (i = 0; i < count; i++) {
        const uint32_t exact = (uint32_t)(((uint64_t)1 << (scale_bits + 31)) / sums[i]);
        uint32x4_t four = vdupq_n_u32(sums[i]);
        four = reciprocals_of(four, scale_bits);
        found += reciprocal_of(sums[i], scale_bits) != exact || four.v[0] != exact || four.v[3] != exact;
    }
    return found;
}
"""


@pytest.mark.skipif(not compilers(), reason="no C compiler")
def test_reciprocals_are_quotients(tmp_path: Path) -> None:
    for name, text in runtime_files().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "differing.c").write_text(_SOURCE)
    support = Path(__file__).parents[1] / "support"
    flags = ["-O2", "-shared", "-fPIC", "-DCAPLET_EMULATE_DSP", "-DCAPLET_EMULATE_HELIUM", f"-I{support}"]
    find_compiler().build([*flags, "differing.c", "-o", "differing.so"], "differing.so", tmp_path)
    library = ctypes.CDLL(str(tmp_path / "differing.so"))
    draw = np.random.default_rng(0)
    for scale_bits in range(19, 25):
        low, high = 1 << scale_bits, 1 << 31
        powers = 1 << np.arange(scale_bits, 32)
        edges = np.concatenate([powers + shift for shift in range(-3, 4)])
        logarithmic = np.exp2(draw.uniform(scale_bits, 31, size=200_000)).astype(np.int64)
        sums = np.concatenate([edges, np.arange(low, low + 20_000), np.arange(high - 20_000, high + 1), logarithmic])
        sums = sums[(sums >= low) & (sums <= high)].astype(np.uint32)
        assert library.differing(sums.ctypes.data_as(ctypes.c_void_p), len(sums), scale_bits) == 0, scale_bits


class _Constant(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("bits", ctypes.c_uint8), ("kind", ctypes.c_uint8))


@pytest.mark.skipif(not compilers(), reason="no C compiler")
@pytest.mark.parametrize("bits", range(2, 8))
def test_codes_are_unpacked_from_anywhere(bits: int) -> None:
    """Of signed codes, those from any one on, as many as there are: nothing else is written."""
    half = 1 << bits - 1
    codes = np.random.default_rng(bits).integers(-half, half, size=80)
    packed = np.ascontiguousarray(pack_bits(codes, bits, True))
    constant = _Constant(packed.ctypes.data, bits, constants()["CAPLET_SIGNED"])
    support = Path(__file__).parents[1] / "support"
    libraries = [load_library(build_library(flags=flags)) for flags in ((), ("-DCAPLET_EMULATE_DSP", f"-I{support}"))]
    kernels = [getattr(library, f"caplet_unpack_{bits}") for library in libraries]
    for kernel in (*kernels, libraries[0].caplet_unpack):
        for first in range(20):
            for count in (*range(1, 20), 40):
                found = np.full(count + 1, 99, np.int8)
                kernel(ctypes.byref(constant), first, count, found.ctypes.data_as(ctypes.c_void_p))
                assert found.tolist() == [*codes[first : first + count], 99], (first, count)
