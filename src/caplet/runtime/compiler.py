"""Finding a C compiler, and the shared library of the host runtime, built once per machine and source."""

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from subprocess import CompletedProcess

import platformdirs

from caplet import processes
from caplet.errors import ArtefactError, ToolMissing
from caplet.program.c.structure import runtime_files
from caplet.runtime.steps import size_checks

_LIBRARY = ("-fPIC", "-shared", "-fno-semantic-interposition")
_FLAGS = ("-std=c99", "-O3", "-funroll-loops", "-fno-strict-aliasing", "-fwrapv", *_LIBRARY)
_NATIVE = ("-march=native",)
_SUFFIX = ".dll" if sys.platform == "win32" else ".dylib" if sys.platform == "darwin" else ".so"


@dataclass(frozen=True)
class Compiler:
    """A C compiler: the words of its command line, and what it says its version is."""

    command: tuple[str, ...]
    version: str

    def run(self, arguments: list[str], cwd: Path | None = None) -> CompletedProcess[str]:
        return processes.run([*self.command, *arguments], cwd, environment=_environment())

    def build(self, arguments: list[str], what: str, cwd: Path | None = None) -> None:
        """Run the compiler. Raises ArtefactError with its first messages when it fails."""
        done = self.run(arguments, cwd)
        if done.returncode:
            said = f"exit code {done.returncode}: {done.stderr.strip()[:2000]}"
            raise ArtefactError(f"{what}: {' '.join(self.command)} failed with {said}")


def compilers() -> list[Compiler]:
    """Every usable C compiler for this machine: ``$CC``, cc, gcc, clang, then the one in the ziglang package."""
    candidates = [tuple(os.environ["CC"].split())] if os.environ.get("CC") else []
    candidates += [(name,) for name in ("cc", "gcc", "clang")]
    if importlib.util.find_spec("ziglang") is not None:
        candidates.append((sys.executable, "-m", "ziglang", "cc"))
    return [compiler for command in dict.fromkeys(candidates) if (compiler := _examine(command)) is not None]


def find_compiler() -> Compiler:
    """The first usable C compiler. Raises ToolMissing when there is none."""
    found = compilers()
    if not found:
        raise ToolMissing(
            "no C compiler: looked for $CC, cc, gcc, clang and the Python package ziglang; install one ('apt install "
            "gcc', 'pip install ziglang'), or use the interpreter engine"
        )
    return found[0]


@cache
def _examine(command: tuple[str, ...]) -> Compiler | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = processes.run([*command, "--version"], seconds=processes.LOOK, environment=_environment())
    except ToolMissing:
        return None
    return Compiler(command, done.stdout.strip()) if done.returncode == 0 else None


def _environment() -> dict[str, str]:
    """For compilers: zig spins for ever where it finds no folder to write its cache to, so it is given one."""
    own = {} if _writable(platformdirs.user_cache_path()) else {"ZIG_GLOBAL_CACHE_DIR": str(cache_folder() / "zig")}
    return {**own, **os.environ}


def _writable(folder: Path) -> bool:
    """Whether a folder is writable, or can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@cache
def _private() -> "tempfile.TemporaryDirectory[str]":
    """A folder of this process alone; it is removed at the end."""
    return tempfile.TemporaryDirectory(prefix="caplet-")


def cache_folder() -> Path:
    """Where compiled libraries are kept: ``$CAPLET_CACHE``, else the user's cache folder; a private one for this
    process where that cannot be written."""
    chosen = os.environ.get("CAPLET_CACHE")
    folder = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("caplet"))
    return folder if chosen or _writable(folder) else Path(_private().name)


def build_library(compiler: Compiler | None = None, folder: Path | None = None, flags: tuple[str, ...] = ()) -> Path:
    """The path of the host runtime's shared library, compiled first where it is not in the cache.

    compiler: the first one found if None. folder: of the cache. flags: added to the compiler's.
    Safe for processes that build at once: each writes a file of its own and renames it into place. Raises ToolMissing
    without a compiler, ArtefactError when the compilation fails or the cache cannot be written.
    """
    compiler = compiler or find_compiler()
    folder = folder or cache_folder()
    files = runtime_files(host=True)
    # One translation unit lets the compiler inline across files.
    includes = "".join(f'#include "{name}"\n' for name in files if name.endswith(".c"))
    files["all.c"] = includes + size_checks()
    parts = (*compiler.command, compiler.version, *_FLAGS, *flags, _machine(), *chain(*files.items()))
    library = folder / f"host-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}{_SUFFIX}"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as build:
            for name, source in files.items():
                (Path(build) / name).write_text(source)
            arguments = [*_FLAGS, *flags, "all.c", "-o", f"host{_SUFFIX}"]
            if compiler.run([*_NATIVE, *arguments], Path(build)).returncode:
                compiler.build(arguments, "compiled runtime", Path(build))
            os.replace(Path(build) / f"host{_SUFFIX}", library)
    except OSError as error:
        todo = "set CAPLET_CACHE to a folder that can be written"
        raise ArtefactError(f"compiled runtime: cannot write {folder}: {error}; {todo}") from error
    return library


def _machine() -> str:
    """What -march=native depends on: the processor's features, where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    keep = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(keep)}))


@cache
def load_library(path: Path) -> ctypes.CDLL:
    """The shared library at ``path``, its function declared. Raises ArtefactError when it cannot be loaded."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ArtefactError(f"compiled runtime {path}: cannot be loaded: {error}; delete the file and retry") from error
    u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    library.caplet_host_run.argtypes = [pointer, u32, pointer, pointer, *[u64] * 5, pointer, u64, u64, pointer]
    library.caplet_host_run.restype = None
    library.caplet_host_traits.argtypes, library.caplet_host_traits.restype = [pointer], None
    library.caplet_host_kernel.argtypes, library.caplet_host_kernel.restype = [ctypes.c_char_p], pointer
    return library
