"""What this machine has of what caplet uses, and how to get the rest. Works without torch."""

import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from caplet import processes
from caplet.errors import CapletError, ToolMissing
from caplet.runtime.compiler import Compiler, build_library, cache_folder, compilers, load_library
from caplet.runtime.emulator import CORTEX_M4, RISCV32, Board
from caplet.runtime.native import processors

OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        name: what.
        found: whether it is there and usable.
        required: whether caplet's main jobs need it.
        about: the version, or why it cannot be used.
        purpose: what it is for.
        install: how to get it, empty where there is nothing to do.
    """

    name: str
    found: bool
    required: bool
    about: str
    purpose: str
    install: str = ""


def examine() -> list[Finding]:
    """Look for everything that caplet can use, the required things first."""
    full = "`eval`, `quantize` and `verify` of integers at full speed"
    without = "a C compiler; without one the integers run in the interpreter, tens of times slower"
    zig = "a C compiler from pip, for this machine, Cortex-M and RISC-V"
    return [
        _python(),
        *(_package(*row) for row in _PACKAGES),
        _threads(),
        _cache(),
        _compiler(),
        _tool("compiled runtime", _library, full, without),
        _package("ziglang", zig, False, "pip install 'caplet[compiler]'"),
        *_board(CORTEX_M4),
        *_board(RISCV32),
    ]


def _board(board: Board) -> tuple[Finding, Finding]:
    emulator, compiler = board.packages
    verify = f"`caplet verify --on {board.name}`"
    build = f"apt install {compiler}, or pip install 'caplet[compiler]'"
    run = f"apt install {emulator} (Debian), brew install qemu (macOS)"
    return (
        _tool(f"{board.name} compiler", lambda: _named(board.find_compiler()[0]), f"firmware for {verify}", build),
        _tool(f"{board.name} emulator", lambda: _emulator(board), f"the emulated board of {verify}", run),
    )


_PACKAGES = (
    ("torch", "training, search, float models", True, "pip install torch"),
    ("numpy", "integers, the interpreter", True, "pip install numpy"),
    ("h5py", "Q7-CapsNets files (.h5)", True, "pip install h5py"),
    ("safetensors", "model files", True, "pip install safetensors"),
    ("tensorboard", "`caplet train --tensorboard`", False, "pip install 'caplet[tensorboard]'"),
    ("serial", "`caplet verify --on serial:PORT`", False, "pip install 'caplet[serial]'"),
    ("onnx", "`caplet export --to onnx`", False, "pip install 'caplet[onnx]'"),
    ("onnxruntime", "checking what `caplet export --to onnx` writes", False, "pip install 'caplet[onnx]'"),
)


def _python() -> Finding:
    enough = sys.version_info >= OLDEST_PYTHON
    oldest = ".".join(map(str, OLDEST_PYTHON))
    about, purpose = platform.python_version(), f"everything; at least {oldest}"
    return Finding("Python", enough, True, about, purpose, f"Python {oldest}")


def _package(name: str, purpose: str, required: bool, install: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, False, required, "not installed", purpose, install)
    try:
        about = version({"serial": "pyserial"}.get(name, name))
    except PackageNotFoundError:
        about = "installed, version unknown"
    return Finding(name, True, required, about, purpose)


def _threads() -> Finding:
    about = f"{processors()} of {os.cpu_count()} processors usable"
    chosen = os.environ.get("OMP_NUM_THREADS")
    if chosen is not None:
        about += f"; OMP_NUM_THREADS={chosen} sets the threads of torch and numpy"
    return Finding("processors", True, True, about, "threads of training, search and the compiled runtime")


def _cache() -> Finding:
    folder = cache_folder()
    purpose = "compiled runtimes, downloaded datasets"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        hint = "set CAPLET_CACHE to a folder that can be written"
        return Finding("cache folder", False, True, f"{folder}: {error.strerror}", purpose, hint)
    return Finding("cache folder", True, True, str(folder), purpose)


def _compiler() -> Finding:
    found = [_named(compiler) for compiler in compilers()]
    about = "; ".join(found) or "none: looked for $CC, cc, gcc, clang and the Python package ziglang"
    install = "apt install gcc, or pip install 'caplet[compiler]'"
    return Finding("C compiler", bool(found), False, about, "running the integers at full speed", install)


def _library() -> str:
    """The host runtime, built now where it is not in the cache."""
    library = build_library()
    load_library(library)
    return str(library)


def _named(compiler: Compiler) -> str:
    return f"{' '.join(compiler.command)} ({compiler.version.splitlines()[0]})"


def _emulator(board: Board) -> str:
    path = board.require_emulator()
    done = processes.run([path, "--version"], seconds=processes.LOOK)
    if done.returncode:
        raise ToolMissing(f"{path} cannot be run: {done.stderr.strip()[:200]}")
    return done.stdout.splitlines()[0]


def _tool(name: str, look: Callable[[], str], purpose: str, install: str) -> Finding:
    try:
        return Finding(name, True, False, look(), purpose)
    except CapletError as error:
        return Finding(name, False, False, str(error), purpose, install)
