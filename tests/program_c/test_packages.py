"""Exports for the places where firmware is made: each is built as far as this machine can, and run.

CMake is real. The tool chains of Arduino, Zephyr, ESP-IDF, PlatformIO and MicroPython are not here: their packages are
compiled against the few declarations that they use, with the compilers of the host and of Cortex-M.
"""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caplet.errors import ArtefactError, ConfigError
from caplet.program import interpreter
from caplet.program.c.emit import PLACES, EmitSettings, Export, emit
from package_builds import (
    ARDUINO,
    C99,
    IDF,
    IDF_TIMER,
    KERNEL,
    MICROPYTHON,
    PASSED,
    RUN_MODULE,
    RUN_SKETCH,
    WARN,
    ZEPHYR,
    need,
    objects,
    package,
    sample,
    sh,
)
from sample_programs import SampleSettings, sample_backbone

pytestmark = pytest.mark.slow(1.5)

PACKAGES = [place for place in PLACES if place != "c"]


def test_cmake_installs_and_is_found(tmp_path: Path) -> None:
    need("cmake", "cc")
    export = package("cmake", tmp_path / "package")
    configure = ["cmake", "-S", export.folder, "-B", tmp_path / "build", f"-DCMAKE_C_FLAGS={' '.join(WARN)}"]
    sh(*configure)
    sh("cmake", "--build", tmp_path / "build")
    sh("cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "prefix")
    shutil.copytree(export.folder / "examples" / "classify", tmp_path / "example")
    shutil.rmtree(export.folder)  # the example uses what was installed, and nothing else
    consumer = tmp_path / "example"
    sh("cmake", "-S", consumer, "-B", tmp_path / "made", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")
    sh("cmake", "--build", tmp_path / "made")
    assert PASSED in sh(tmp_path / "made" / "classify")


@pytest.mark.parametrize(
    ("place", "project", "stub", "header", "main"),
    [
        ("zephyr", ZEPHYR, "zephyr/kernel.h", KERNEL, ""),
        ("esp-idf", IDF, "esp_timer.h", IDF_TIMER, "void app_main(void);\nint main(void) { app_main(); return 0; }\n"),
    ],
)
def test_zephyr_and_esp_idf_by_stubs(
    place: str, project: str, stub: str, header: str, main: str, tmp_path: Path
) -> None:
    need("cmake", "cc")
    package(place, tmp_path / place)
    (tmp_path / "CMakeLists.txt").write_text(project.replace("PACKAGE", place))
    (tmp_path / "stubs" / stub).parent.mkdir(parents=True)
    (tmp_path / "stubs" / stub).write_text(header)
    (tmp_path / "app.c").write_text(main)
    sh("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_C_FLAGS=-O2 {' '.join(WARN)}")
    sh("cmake", "--build", tmp_path / "build")
    assert PASSED in sh(tmp_path / "build" / "app")


@pytest.mark.parametrize("flags", [["-O2"], ["-O3"]], ids=" ".join)
def test_arduino_by_stubs_and_without_a_word_on_aliasing(flags: list[str], tmp_path: Path) -> None:
    need("gcc", "g++")
    export = package("arduino", tmp_path / "library")
    made = objects(export, tmp_path / "objects", "gcc", *flags, "-DARDUINO=1")
    (tmp_path / "Arduino.h").write_text(ARDUINO)
    sketch = (export.folder / "examples" / "Classify" / "Classify.ino").read_text()
    (tmp_path / "sketch.cpp").write_text('#include "Arduino.h"\n' + sketch + RUN_SKETCH)
    includes = ["-I", export.folder / "src", "-I", tmp_path]
    sh("g++", "-std=c++11", *WARN, *includes, tmp_path / "sketch.cpp", *made, "-o", tmp_path / "sketch")
    assert PASSED in sh(tmp_path / "sketch")
    properties = dict(line.split("=", 1) for line in (export.folder / "library.properties").read_text().splitlines())
    assert {"name", "version", "author", "maintainer", "sentence", "paragraph", "url"} <= set(properties)


def test_platformio_by_stubs(tmp_path: Path) -> None:
    need("gcc", "g++")
    export = package("platformio", tmp_path / "library")
    made = objects(export, tmp_path / "objects", "gcc", "-O2", "-fno-strict-aliasing")
    main = export.folder / "examples" / "classify" / "src" / "main.cpp"
    (tmp_path / "Arduino.h").write_text(ARDUINO + RUN_SKETCH)
    flags = ["-std=c++11", *WARN, "-I", export.folder / "src", "-I", tmp_path]
    for name, define in (("pc", "-DPC"), ("board", "-DARDUINO=1")):
        sh("g++", *flags, define, main, *made, "-o", tmp_path / name)
        assert PASSED in sh(tmp_path / name)


def test_micropython_by_stubs(tmp_path: Path) -> None:
    need("gcc", "make")
    export = package("micropython", tmp_path / "module")
    (tmp_path / "py").mkdir()
    (tmp_path / "py" / "dynruntime.h").write_text(MICROPYTHON)
    (tmp_path / "main.c").write_text(RUN_MODULE)
    flags = [*C99, "-O2", "-fno-strict-aliasing", "-I", tmp_path, "-I", export.folder, "-I", export.folder / "src"]
    sh("gcc", *flags, tmp_path / "main.c", "-o", tmp_path / "module-here")
    assert PASSED in sh(tmp_path / "module-here")
    (tmp_path / "py" / "dynruntime.mk").write_text("all:\n\t@echo $(MOD) $(SRC) $(ARCH)\n")
    assert sh("make", f"MPY_DIR={tmp_path}", cwd=export.folder).split() == ["digits", "micropython.c", "armv7emsp"]
    done = subprocess.run(["make"], cwd=export.folder, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "set MPY_DIR to MicroPython's source" in done.stderr


@pytest.mark.parametrize("place", PACKAGES)
def test_sources_compile_for_cortex_m(place: str, tmp_path: Path) -> None:
    need("arm-none-eabi-gcc")
    export = package(place, tmp_path / "package", sample_backbone(2, SampleSettings(6, 8, channel_shifts=True)))
    flags = [
        "-mcpu=cortex-m4",
        "-mthumb",
        "-Os",
        *(["-DARDUINO=1"] if place == "arduino" else ["-fno-strict-aliasing"]),
    ]
    assert objects(export, tmp_path / "objects", "arm-none-eabi-gcc", *flags, "-ffreestanding")


USE = """
#include "digits_classify.h"
#include "digits_selftest.h"
DIGITS_ARENA(arena);
int main()
{
    int16_t caps[DIGITS_CLASSES * DIGITS_DIM];
    static const uint8_t pixels[DIGITS_IMAGE_BYTES] = {0};
    digits_result result = {-1, 0, 0};
    if (digits_selftest(arena, caps) != 0 || digits_version() != DIGITS_VERSION) {
        return 1;
    }
    return digits_classify(arena, sizeof arena, pixels, sizeof pixels, &result) != DIGITS_OK || result.index < 0;
}
"""


@pytest.mark.parametrize("standard", ["c++98", "c++11", "c++20"])
def test_headers_are_usable_from_cpp(standard: str, tmp_path: Path) -> None:
    need("gcc", "g++")
    export = package("cmake", tmp_path / "package")
    made = objects(export, tmp_path / "objects", "gcc", "-O1", "-fno-strict-aliasing")
    (tmp_path / "use.cpp").write_text(USE)
    loose = ["-Wno-long-long"] if standard == "c++98" else []
    flags = [f"-std={standard}", *WARN, *loose, "-I", export.folder / "src"]
    sh("g++", *flags, tmp_path / "use.cpp", *made, "-o", tmp_path / "use")
    sh(tmp_path / "use")


class Result(ctypes.Structure):
    _fields_ = (("index", ctypes.c_int16), ("confidence", ctypes.c_uint16), ("next", ctypes.c_uint16))


def load(export: Export, folder: Path) -> ctypes.CDLL:
    sources = sorted((export.folder / "src").rglob("*.c"))
    sh("gcc", *C99, "-O1", "-fno-strict-aliasing", "-fPIC", "-shared", *sources, "-o", folder / "library.so")
    library = ctypes.CDLL(str(folder / "library.so"))
    library.digits_label.restype = library.digits_status_text.restype = ctypes.c_char_p
    return library


def test_one_call_gives_class_and_confidence(tmp_path: Path) -> None:
    need("gcc")
    program = sample()
    export = package("cmake", tmp_path / "package", program)
    library = load(export, tmp_path)
    images = np.random.default_rng(5).integers(0, 256, (20, *program.image_shape), dtype=np.uint8)
    expected = interpreter.run(program, images)
    arena = (ctypes.c_uint64 * (export.plan.bytes // 8 + 1))()
    size = ctypes.c_size_t(export.plan.bytes)
    frac = program.tensors[program.lengths].format.frac_bits
    for image, lengths, index in zip(images, expected.lengths, expected.predictions, strict=True):
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes()
        result = Result()
        status = library.digits_classify(arena, size, pixels, ctypes.c_size_t(len(pixels)), ctypes.byref(result))
        assert status == 0
        assert result.index == index
        thousandths = np.minimum(np.floor(1000 * np.sqrt(lengths * 2.0**-frac)), 1000)
        assert result.confidence == thousandths[index]
        assert result.next == np.delete(thousandths, index).max()
    pixels = bytes(images[0].size)
    errors = {
        1: (arena, size, None, len(pixels)),
        2: (ctypes.byref(arena, 4), size, pixels, len(pixels)),
        3: (arena, ctypes.c_size_t(export.plan.bytes - 1), pixels, len(pixels)),
        4: (arena, size, pixels, len(pixels) - 1),
    }
    for status, (place, room, given, count) in errors.items():
        result = Result(-5, 7, 9)
        found = library.digits_classify(place, room, given, ctypes.c_size_t(count), ctypes.byref(result))
        assert found == status
        assert (result.index, result.confidence, result.next) == (-5, 7, 9), "on an error nothing is written"
        assert len(library.digits_status_text(status)) > 10
    assert library.digits_classify(arena, size, pixels, ctypes.c_size_t(len(pixels)), None) == 1


def test_labels_with_any_sign_and_none_at_all(tmp_path: Path) -> None:
    need("gcc")
    for name, program in (("named", sample()), ("bare", replace(sample(), labels=()))):
        (tmp_path / name).mkdir()
        library = load(package("arduino", tmp_path / name / "package", program), tmp_path / name)
        labels = program.labels or tuple(map(str, range(program.classes)))
        found = tuple(library.digits_label(index).decode() for index in range(program.classes))
        assert found == labels
        assert library.digits_label(-1) == library.digits_label(program.classes) == b""


def test_an_int_of_16_bits_is_refused(tmp_path: Path) -> None:
    need("gcc")
    export = package("arduino", tmp_path)
    for source in (export.folder / "src").rglob("*.c"):
        if source.name in ("digits_selftest.c", "digits_classify.c", "digits_serve.c"):
            continue  # they only call the others
        command = ["gcc", "-E", "-U__INT_MAX__", "-D__INT_MAX__=32767", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "int has 16 bits here" in done.stderr, source


@pytest.mark.parametrize("place", PACKAGES)
def test_packages_have_no_file_of_another_place(place: str, tmp_path: Path) -> None:
    export = package(place, tmp_path)
    plain = set(emit(sample(), tmp_path / ".c", EmitSettings(prefix="digits")).files)
    mine = set(export.files)
    assert {"README.md", "proof.json", "src/digits.c", "src/digits_classify.h", "src/caplet/caplet.h"} <= mine
    assert not any("{{" in (export.folder / name).read_text() for name in mine)
    assert not any(name.startswith(("device/", "riscv32/", "cortex_m/")) or "/_" in name for name in mine)
    assert not any("classify" in name or name.startswith("src/") for name in plain)


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'arduino'"):
        package("arduno", tmp_path / "new")
    (tmp_path / "file").write_text("here")
    with pytest.raises(ArtefactError, match="not an empty folder"):
        package("zephyr", tmp_path)
