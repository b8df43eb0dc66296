"""The host runtime: the integers of the interpreter, on every Program, compiler flag and number of threads."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caplet.errors import ArtefactError, DataError, ToolMissing
from caplet.fixed.format import FixedFormat
from caplet.fixed.rounding import Rounding
from caplet.program import interpreter
from caplet.program.c.describe import Descriptions
from caplet.program.c.structure import Ref
from caplet.program.op import OPS
from caplet.program.program import Program
from caplet.program.verify import lengths_format, verify
from caplet.runtime import NativeModel, build_library, compiler, compilers
from caplet.runtime.compiler import load_library
from caplet.runtime.steps import _chains
from caplet.runtime.traces import first_difference
from random_ops import RandomOps
from sample_programs import SampleSettings, sample_backbone, sample_deep, sample_shallow

needs_compiler = pytest.mark.skipif(
    not compilers(), reason="no C compiler: neither cc, gcc, clang nor ziglang is installed"
)


def images_for(program: Program, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(count, *program.image_shape), dtype=np.uint8)


EMULATED_DOT = ("-O1", "-DCAPLET_EMULATE_DOT", "-Wno-psabi")
EMULATED_DSP = ("-O1", "-DCAPLET_EMULATE_DSP", f"-I{Path(__file__).parents[1] / 'support'}")
EMULATED_HELIUM = (*EMULATED_DSP, "-DCAPLET_EMULATE_HELIUM")


@needs_compiler
@pytest.mark.parametrize(
    "flags",
    [(), ("-O0",), EMULATED_DSP, EMULATED_HELIUM, EMULATED_DOT],
    ids=["O3", "O0", "dsp", "helium", "dot"],
)
@pytest.mark.parametrize("kind", list(OPS))
def test_random_ops_equal_the_interpreter(kind: str, flags: tuple[str, ...]) -> None:
    library = load_library(build_library(flags=flags))
    draw = RandomOps(11)
    for _ in range(25):
        single = draw.draw(kind)
        inputs = draw.inputs(single, 8)
        found = single.run(library, inputs)
        for name, expected in single.interpret(inputs).items():
            assert np.array_equal(found[name], expected), (single.op, name)


@pytest.mark.parametrize("most", [255, 63, 1])
def test_chains_of_bytes_keep_the_weights_and_their_sums_within_16_bits(most: int) -> None:
    rng = np.random.default_rng(most)
    weights = np.clip(rng.normal(0, 40, (21, 15, 4)).round(), -128, 127).astype(np.int8)
    weights[5] = -128
    weights[:, 7] = 127
    chains = _chains(weights, most, 16)
    parts = chains["word"].copy().view(np.int8).reshape(*chains.shape, 4).astype(np.int64)
    whole = np.zeros(weights.shape, dtype=np.int64)
    np.add.at(whole, (np.arange(21)[:, None], chains["at"]), parts)
    assert np.array_equal(whole, weights)
    sums = most * parts.reshape(21, -1, 2, 2, 2)
    assert np.clip(sums, 0, None).sum(axis=(2, 4)).max() <= 32767
    assert np.clip(sums, None, 0).sum(axis=(2, 4)).min() >= -32768
    assert all((chains["at"][panel] == chains["at"][panel.start]).all() for panel in (slice(0, 16), slice(16, 21)))


@needs_compiler
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1000),
    make=st.sampled_from([sample_shallow, sample_deep, sample_backbone]),
    weight_bits=st.integers(1, 16),
    activation_bits=st.integers(2, 16),
    rounding=st.sampled_from(Rounding),
    shifts=st.booleans(),
    iterations=st.integers(1, 4),
    bias=st.booleans(),
    selected=st.booleans(),
)
def test_random_programs_equal_the_interpreter(
    seed: int,
    make: Callable[..., Program],
    weight_bits: int,
    activation_bits: int,
    rounding: Rounding,
    shifts: bool,
    iterations: int,
    bias: bool,
    selected: bool,
) -> None:
    sample = SampleSettings(weight_bits, activation_bits, rounding, False, shifts, iterations, bias, selected)
    program = make(seed, sample)
    images = images_for(program, 3, seed)
    expected, found = interpreter.run(program, images), NativeModel(program).run(images)
    assert np.array_equal(found.capsules, expected.capsules)
    assert np.array_equal(found.lengths, expected.lengths)
    assert np.array_equal(found.predictions, expected.predictions)


@needs_compiler
@pytest.mark.parametrize("make", [sample_shallow, sample_deep, sample_backbone])
def test_trace_equals_the_interpreters(make: object) -> None:
    program = make(8, SampleSettings(6, 8))  # type: ignore[operator]
    images = images_for(program, 2)
    found = NativeModel(program).trace(images)
    stored = {name for name in program.tensors if not name.endswith(".coupling")} - {program.input}
    assert set(found) == stored
    assert first_difference(program, interpreter.trace(program, images), found) is None


@needs_compiler
def test_results_do_not_depend_on_threads_or_batches() -> None:
    program = sample_shallow(3, SampleSettings(rounding=Rounding.STOCHASTIC))
    images = images_for(program, 200)
    whole = NativeModel(program, threads=1).run(images)
    threaded = NativeModel(program, threads=4).run(images)
    single = NativeModel(program).run(images[77:78])
    assert np.array_equal(whole.capsules, threaded.capsules)
    assert np.array_equal(whole.capsules[77:78], single.capsules)
    assert whole.capsules.dtype == np.int32
    assert whole.lengths.dtype == whole.predictions.dtype == np.int64


@needs_compiler
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 1, 12, 11), dtype=np.uint8),
        np.zeros((1, 1, 12, 12), dtype=np.float32),
        np.zeros((12, 12), dtype=np.uint8),
        np.zeros((0, 1, 12, 12), dtype=np.uint8),
    ],
    ids=["shape", "dtype", "axes", "none"],
)
def test_other_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"uint8 of shape \(images, 1, 12, 12\), at least one"):
        NativeModel(sample_shallow()).run(images)


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiler, "compilers", list)
    with pytest.raises(ToolMissing, match=r"apt install gcc.*pip install ziglang") as caught:
        build_library(folder=tmp_path)
    assert caught.value.exit_code == 7


@needs_compiler
def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ArtefactError, match="set CAPLET_CACHE"):
        build_library(folder=blocker / "cache")


@needs_compiler
def test_the_library_is_built_once(tmp_path: Path) -> None:
    first = build_library(folder=tmp_path, flags=("-O0",))
    stamp = first.stat().st_mtime_ns
    assert build_library(folder=tmp_path, flags=("-O0",)) == first
    assert first.stat().st_mtime_ns == stamp
    assert build_library(folder=tmp_path, flags=("-O0", "-DOTHER")) != first
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def _build(folder: str) -> str:
    return str(build_library(folder=Path(folder), flags=("-O0",)))


@needs_compiler
def test_processes_that_build_at_once_share_one_library(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.map(_build, [str(tmp_path)] * 2)
    assert len(set(paths)) == 1
    assert os.listdir(tmp_path) == [Path(paths[0]).name]


@needs_compiler
def test_a_damaged_library_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "host-damaged.so"
    path.write_bytes(b"not a library")
    with pytest.raises(ArtefactError, match="delete the file"):
        load_library(path)


@needs_compiler
@pytest.mark.parametrize("dim", [4, 8, 5])
def test_what_fitted_plans_have_takes_fast_kernels(dim: int) -> None:
    settings = SampleSettings(weight_bits=6, channel_shifts=True)
    program = sample_shallow(3, settings, primary=(4, dim, 3))
    wider = {"activation": 5, "logits": 2}  # bits more than 8 of the class capsules' small tensors
    tensors = dict(program.tensors)
    for name, more in wider.items():
        spec = tensors[f"digit.{name}"]
        assert isinstance(spec.format, FixedFormat)
        fmt = FixedFormat(spec.format.bits + more, spec.format.frac_bits + more, spec.format.signed)
        tensors[spec.name] = replace(spec, format=fmt)
        if name == "activation":
            lengths = tensors[program.lengths]
            tensors[lengths.name] = replace(lengths, format=lengths_format(fmt, spec.shape[1]))
    program = replace(program, tensors=tensors)
    descriptions = Descriptions(program, verify(program))
    fields = {op.kind: descriptions.of(op).fields for op in program.ops}
    assert fields["dense_votes"]["kernel"] == Ref(f"caplet_vote_channels{'' if dim == 5 else f'_{dim}'}")
    assert fields["routing"]["update"] == Ref("caplet_update_mixed")
    images = images_for(program, 9)
    assert first_difference(program, interpreter.trace(program, images), NativeModel(program).trace(images)) is None
