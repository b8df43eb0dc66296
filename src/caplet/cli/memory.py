"""Keep freed tensor memory in the process: large activations otherwise cost a page fault per 4 KiB at every step."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse freed blocks of any size instead of returning them to the system.

    A capsule layer's votes are tens of megabytes; by default each such block is a fresh mapping whose pages are
    faulted in one by one. Changes no result, but the whole process: only a program, never a library, may call it.

    Returns:
        Whether the allocator took the settings (False where the C library is not glibc).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
