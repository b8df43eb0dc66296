"""Exported models: what is written, that it compiles cleanly everywhere, and that its codes are the interpreter's."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from caplet.errors import ArtefactError, PlanError
from caplet.fixed.format import FixedFormat
from caplet.fixed.rounding import Rounding
from caplet.program import interpreter
from caplet.program.c.emit import RUNTIME_FOLDER, EmitSettings, Export, emit
from caplet.program.c.structure import runtime_files
from caplet.program.program import Program
from caplet.program.tensor import TensorSpec
from caplet.runtime.compiler import Compiler, compilers
from caplet.runtime.traces import first_difference, read_traces
from sample_programs import (
    SampleSettings,
    plan_in_bands,
    sample_backbone,
    sample_chain,
    sample_deep,
    sample_shallow,
    sample_trunk,
)

COMPILERS = {compiler.command[-1] if len(compiler.command) == 1 else "zig": compiler for compiler in compilers()}
pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler: neither cc, gcc, clang nor ziglang is installed")

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CASES = {
    "shallow-8-8": (sample_shallow, SampleSettings(), "fast"),
    "shallow-recomputed-votes": (sample_shallow, SampleSettings(weight_bits=5), "small"),
    "shallow-powers-stochastic": (
        sample_shallow,
        SampleSettings(weight_bits=4, log_weights=True, rounding=Rounding.STOCHASTIC),
        1500,
    ),
    "shallow-16-16": (sample_shallow, SampleSettings(16, 16, channel_shifts=True), "fast"),
    "deep-7-12": (sample_deep, SampleSettings(7, 12), "fast"),
    "deep-recomputed-votes": (
        sample_deep,
        SampleSettings(3, 5, Rounding.STOCHASTIC, channel_shifts=True),
        "small",
    ),
    "backbone-6-8": (sample_backbone, SampleSettings(6, 8, channel_shifts=True), "fast"),
    "backbone-stochastic": (sample_backbone, SampleSettings(4, 9, Rounding.STOCHASTIC, log_weights=True), "small"),
    "shallow-carried": (sample_shallow, SampleSettings(5, 5, Rounding.CARRY, channel_shifts=True), "small"),
    "shallow-carried-stored": (sample_shallow, SampleSettings(8, 6, Rounding.CARRY), "fast"),
    "deep-carried": (sample_deep, SampleSettings(3, 10, Rounding.CARRY, selected=True), "small"),
    "deep-selected-capsules": (sample_deep, SampleSettings(6, 8, selected=True), "small"),
    "deep-one-iteration": (sample_deep, SampleSettings(9, 8, Rounding.TRUNCATE, iterations=1, bias=False), "fast"),
}


def images_for(program: Program, count: int = 4) -> np.ndarray:
    images = np.random.default_rng(7).integers(0, 256, size=(count, *program.image_shape), dtype=np.uint8)
    images[0] = 0
    images[1] = 255
    return images


def unity(export: Export) -> list[str]:
    """One file that includes the runtime, so that a test starts the compiler once; names may not clash, then."""
    sources = sorted((export.folder / RUNTIME_FOLDER).glob("*.c"))
    names = [f"{RUNTIME_FOLDER}/{path.name}" for path in sources] + [
        f"{export.prefix}.c",
        f"{export.prefix}_selftest.c",
    ]
    (export.folder / "all.c").write_text("".join(f'#include "{name}"\n' for name in [*names, "main_host.c"]))
    return ["all.c"]


def build(export: Export, compiler: Compiler, flags: list[str], runtime: Path | None = None) -> Path:
    """runtime: an object file of the runtime, compiled here with the model where there is none."""
    sources = unity(export)
    if runtime is not None:
        sources = [f"{export.prefix}.c", f"{export.prefix}_selftest.c", "main_host.c", str(runtime)]
    compiler.build([*STRICT, *flags, *sources, "-o", "program"], "test", export.folder)
    return export.folder / "program"


@pytest.fixture(scope="module")
def runtime_object(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Compiler, list[str]], Path]:
    """The runtime as an object file, compiled once for each compiler and its flags."""
    made: dict[tuple[str, ...], Path] = {}

    def compiled(compiler: Compiler, flags: list[str]) -> Path:
        key = (*compiler.command, *flags)
        if key not in made:
            folder = tmp_path_factory.mktemp("runtime")
            for name, source in runtime_files().items():
                (folder / name).write_text(source)
            names = [name for name in runtime_files() if name.endswith(".c")]
            (folder / "all.c").write_text("".join(f'#include "{name}"\n' for name in names))
            compiler.build([*STRICT, *flags, "-c", "all.c", "-o", "runtime.o"], "runtime", folder)
            made[key] = folder / "runtime.o"
        return made[key]

    return compiled


def run_files(export: Export, images: np.ndarray) -> np.ndarray:
    (export.folder / "images.bin").write_bytes(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
    subprocess.run(["./program", "images.bin", "capsules.bin"], cwd=export.folder, check=True)
    return np.fromfile(export.folder / "capsules.bin", dtype=np.int16)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("flags", [["-O0", *SANITIZE], ["-O3"]], ids=["O0-sanitized", "O3"])
def test_exported_codes_are_the_interpreters(
    name: str, flags: list[str], tmp_path: Path, runtime_object: Callable[[Compiler, list[str]], Path]
) -> None:
    make, sample, ram = CASES[name]
    program = make(3, sample)
    export = emit(program, tmp_path, EmitSettings(ram=ram), images_for(program))
    compiler = COMPILERS.get("cc") or next(iter(COMPILERS.values()))
    if "zig" in COMPILERS and compiler is COMPILERS["zig"] and "-O0" in flags:
        flags = ["-O0", "-fsanitize=undefined", "-fno-sanitize-recover=all"]  # zig ships no address sanitizer
    build(export, compiler, flags, runtime_object(compiler, flags))
    images = images_for(program, 6)
    expected = interpreter.run(program, images).capsules
    assert np.array_equal(run_files(export, images), expected.reshape(-1))
    assert subprocess.run(["./program"], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6, 7, 8, 10, 11])
def test_outputs_over_inputs_that_have_been_read(
    seed: int, tmp_path: Path, runtime_object: Callable[[Compiler, list[str]], Path]
) -> None:
    settings = SampleSettings(*((8, 8), (5, 8), (8, 12), (4, 6))[seed % 4], channel_shifts=seed % 3 == 0)
    program = sample_chain(seed, settings)
    with patch("caplet.program.arena.segments", lambda *_: ()):
        export = emit(program, tmp_path, EmitSettings(ram=("small", "fast")[seed % 2]), images_for(program))
    assert export.plan.behind, "another seed, please"
    require_equal_codes(export, program, runtime_object)


@pytest.mark.parametrize("seed", range(12))
def test_maps_in_bands(seed: int, tmp_path: Path, runtime_object: Callable[[Compiler, list[str]], Path]) -> None:
    settings = SampleSettings(*((8, 8), (5, 8), (8, 12), (4, 6))[seed % 4], channel_shifts=seed % 5 == 0)
    program = (sample_trunk, sample_chain, sample_deep)[seed % 3](seed, settings)
    with patch("caplet.program.c.emit.plan_memory", lambda *_, **__: plan_in_bands(program, seed)):
        export = emit(program, tmp_path, images=images_for(program))
    assert (
        f"caplet_run_bands(stages_{export.plan.bands[0].ops[0].replace('.', '_')},"
        in (tmp_path / f"{export.prefix}.c").read_text()
    )
    require_equal_codes(export, program, runtime_object)


def require_equal_codes(
    export: Export, program: Program, runtime_object: Callable[[Compiler, list[str]], Path]
) -> None:
    compiler = COMPILERS.get("cc") or next(iter(COMPILERS.values()))
    flags = ["-O0", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    build(export, compiler, flags, runtime_object(compiler, flags))
    images = images_for(program, 6)
    assert np.array_equal(run_files(export, images), interpreter.run(program, images).capsules.reshape(-1))


BARE = """
#include "sample_deep.h"
#include "sample_deep_selftest.h"
static uint64_t arena[SAMPLE_DEEP_ARENA_BYTES / 8 + 1];
static int16_t caps[SAMPLE_DEEP_CLASSES * SAMPLE_DEEP_DIM];
void *memcpy(void *to, const void *from, size_t size)
{
    for (volatile size_t i = 0; i < size; i++) ((char *)to)[i] = ((const char *)from)[i];
    return to;
}
void *memset(void *to, int value, size_t size)
{
    for (volatile size_t i = 0; i < size; i++) ((char *)to)[i] = (char)value;
    return to;
}
__attribute__((force_align_arg_pointer)) void _start(void)
{
    int failed = sample_deep_selftest(arena, caps);
    __asm__ volatile("int $0x80" : : "a"(1), "b"(failed)); /* exit */
}
"""
"""The self-test on Linux with 32-bit x86, without a C library: zig would first compile one, for a minute."""


def variants() -> list[object]:
    """Every compiler, and 32 bits with gcc and zig."""
    cases = [
        pytest.param(name, ["-O2", "-funsigned-char"], id=f"{name}-unsigned-char") for name in COMPILERS if name != "cc"
    ]
    if "gcc" in COMPILERS:
        cases.append(pytest.param("gcc", ["-O1", "-fsigned-char", "-m32"], id="gcc-32-bit"))
    if "zig" in COMPILERS:
        flags = ["-O2", "-target", "x86-linux-none", "-nostdlib", "-fno-stack-protector"]
        cases.append(pytest.param("zig", flags, id="zig-32-bit"))
    return list(cases)


@pytest.mark.parametrize(("name", "flags"), variants())
def test_compilers_and_word_sizes_agree(name: str, flags: list[str], tmp_path: Path) -> None:
    program = sample_deep(5, SampleSettings(6, 8, channel_shifts=True))
    export = emit(program, tmp_path, EmitSettings(ram="small"), images_for(program))
    if "-m32" in flags:
        probe = tmp_path / "probe.c"
        probe.write_text("#include <stdio.h>\nint main(void) { return 0; }\n")
        if COMPILERS[name].run(["-m32", "probe.c", "-o", "probe"], tmp_path).returncode:
            pytest.skip("gcc cannot build 32-bit programs here: gcc-multilib is not installed")
    if "-nostdlib" in flags:
        (tmp_path / "main_host.c").write_text(BARE)
    build(export, COMPILERS[name], flags)
    try:
        done = subprocess.run(["./program"], cwd=tmp_path, check=False)
    except OSError as error:
        pytest.skip(f"this machine does not run what was built: {error}")
    assert done.returncode == 0


def test_two_models_in_one_firmware_and_error_codes(tmp_path: Path) -> None:
    first = emit(sample_shallow(1), tmp_path / "a", EmitSettings(prefix="digits"))
    second = emit(sample_shallow(2, image=(2, 11, 10)), tmp_path / "b", EmitSettings(prefix="signs"))
    main = tmp_path / "main.c"
    main.write_text(
        """
#include "a/digits.h"
#include "a/digits_selftest.h"
#include "b/signs.h"
#include "b/signs_selftest.h"
static uint64_t arena[(DIGITS_ARENA_BYTES + SIGNS_ARENA_BYTES) / 8 + 1];
static uint8_t image[DIGITS_IMAGE_BYTES];
static int16_t caps[DIGITS_CLASSES * DIGITS_DIM + SIGNS_CLASSES * SIGNS_DIM];
int main(void)
{
    uint8_t *bytes = (uint8_t *)arena;
    size_t i;
    if (digits_run(NULL, image, caps) != 1 || digits_run(arena, NULL, caps) != 1) return 1;
    if (digits_run(arena, image, NULL) != 1) return 1;
    if (digits_run(bytes + 4, image, caps) != 2 || digits_run(bytes + 1, image, caps) != 2) return 2;
    if (digits_run_sized(arena, DIGITS_ARENA_BYTES - 1, image, caps) != 3) return 3;
    if (digits_lengths(NULL, NULL) != 1 || digits_predict(NULL) != -1) return 4;
    for (i = 0; i < sizeof arena; i++) if (bytes[i] != 0) return 5;
    for (i = 0; i < sizeof caps / sizeof caps[0]; i++) if (caps[i] != 0) return 6;
    for (i = 0; i < sizeof arena; i++) bytes[i] = 0xA5;
    if (digits_selftest(arena, caps) != 0 || signs_selftest(arena, caps) != 0) return 7;
    for (i = DIGITS_ARENA_BYTES > SIGNS_ARENA_BYTES ? DIGITS_ARENA_BYTES : SIGNS_ARENA_BYTES; i < sizeof arena; i++) {
        if (bytes[i] != 0xA5) return 8; /* nothing is written beyond the arena */
    }
    return digits_run_sized(arena, sizeof arena, image, caps);
}
"""
    )
    compiler = next(iter(COMPILERS.values()))
    runtime = sorted(str(path) for path in (first.folder / RUNTIME_FOLDER).glob("*.c"))
    models = ["a/digits.c", "a/digits_selftest.c", "b/signs.c", "b/signs_selftest.c"]
    compiler.build(["-std=c99", "main.c", *models, *runtime, "-o", "firmware"], "test", tmp_path)
    assert subprocess.run(["./firmware"], cwd=tmp_path, check=False).returncode == 0
    assert second.plan.bytes > 0


def test_trace_hook_writes_every_stored_tensor(tmp_path: Path) -> None:
    program = sample_deep(2)
    export = emit(program, tmp_path, EmitSettings(in_place=False))
    build(export, next(iter(COMPILERS.values())), ["-O1", "-DCAPLET_TRACE_HOOK"])
    images = images_for(program, 2)
    run_files(export, images)
    found = read_traces(program, tmp_path / "trace.bin")
    couplings = {name for name in program.tensors if name.endswith(".coupling")}
    assert set(found) == set(program.tensors) - couplings - {program.input}
    assert first_difference(program, interpreter.trace(program, images), found) is None
    found["block1.sum"][1, 0, 1, 2] += 1
    difference = first_difference(program, interpreter.trace(program, images), found)
    assert difference is not None
    assert (difference.tensor, difference.index) == ("block1.sum", (1, 0, 1, 2))
    assert difference.found == difference.expected + 1


@pytest.mark.skipif(shutil.which("cppcheck") is None, reason="cppcheck is not installed")
def test_cppcheck_finds_nothing(tmp_path: Path) -> None:
    emit(sample_shallow(0), tmp_path)
    command = ["cppcheck", "--std=c99", "--enable=warning,performance,portability", "--error-exitcode=1", "--quiet"]
    command += ["-i", "device", "-i", "cortex_m", "-i", "riscv32", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("cc") is None, reason="make or cc is not installed")
def test_make_runs_the_self_test_without_warnings(tmp_path: Path) -> None:
    emit(sample_shallow(4, SampleSettings(weight_bits=3)), tmp_path)
    done = subprocess.run(
        ["make", "test", "CFLAGS=-O1 -Werror"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "every code as expected" in done.stdout


def test_proof_and_arena_are_in_the_source(tmp_path: Path) -> None:
    program = sample_shallow(0)
    export = emit(program, tmp_path)
    source = (tmp_path / "sample_shallow.c").read_text()
    for bound in export.proof.accumulators:
        assert f"{bound.what}: {bound.c_type}, products at most {bound.products}" in source
    assert f"SAMPLE_SHALLOW_ARENA_BYTES {export.plan.bytes}u" in (tmp_path / "sample_shallow.h").read_text()
    written = json.loads((tmp_path / "proof.json").read_text())
    assert written == {"accumulators": export.proof.to_json(), "memory": export.plan.to_json()}


def test_free_text_cannot_leave_its_comment(tmp_path: Path) -> None:
    text = "pixels / 255 */ int evil; /*\nsecond line"
    emit(sample_shallow(0), tmp_path, EmitSettings(preprocessing=text))
    header = (tmp_path / "sample_shallow.h").read_text()
    assert " * Preprocessing: pixels / 255 * / int evil; / * second line\n" in header


def test_the_runtime_keeps_its_promises() -> None:
    for name, source in runtime_files().items():
        text = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
        for word in ("malloc", "float", "double", "<math.h>", "<string.h>", "intrin.h"):
            assert word not in text, f"{name} uses {word}"
        assert name == "dsp.h" or "__asm" not in text, f"{name} uses __asm"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ArtefactError, match="not an empty folder"):
        emit(sample_shallow(0), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_capsules_that_int16_cannot_hold_are_refused(tmp_path: Path) -> None:
    program = sample_shallow(0, SampleSettings(8, 16))
    tensors = dict(program.tensors)
    spec = tensors[program.output]
    tensors[program.output] = TensorSpec(spec.name, spec.shape, FixedFormat(16, 15, False))
    lengths = tensors[program.lengths]
    from caplet.program.verify import lengths_format

    tensors[program.lengths] = TensorSpec(lengths.name, lengths.shape, lengths_format(FixedFormat(16, 15, False), 6))
    wide = Program("wide", tensors, program.ops, program.input, program.output, program.lengths)
    with pytest.raises(PlanError, match="fit int16"):
        emit(wide, tmp_path / "export")
    assert not (tmp_path / "export").exists()
