"""Running Programs natively: on this machine's processors, and on an emulated microcontroller. No torch."""

from caplet.runtime.compiler import build_library, compilers, find_compiler
from caplet.runtime.native import NativeModel

__all__ = ["NativeModel", "build_library", "compilers", "find_compiler"]
