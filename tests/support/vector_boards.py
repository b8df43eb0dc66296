"""Emulated RISC-V processors with the vector extension: vectors of several lengths, compiled by zig."""

from dataclasses import replace

from caplet.runtime.emulator import RISCV32, Board

_FLAGS = ("-target", "riscv32-freestanding-none", "-mcpu=generic_rv32+m+c+zve32x+zvl128b", "-mcmodel=medany")


def vector_board(bits: int) -> Board:
    """The board ``riscv32`` with vectors of so many bits. Debian's compiler has no intrinsics for them."""
    machine = (*RISCV32.machine, "-cpu", f"rv32,v=true,vlen={bits},vext_spec=v1.0")
    return replace(RISCV32, name=f"riscv32-v{bits}", machine=machine, gcc="none", zig_flags=_FLAGS)
