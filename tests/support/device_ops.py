"""Single ops in the firmware of an emulated board: descriptors, inputs and expected codes are compiled into it."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from caplet import processes
from caplet.program.c.emit import EmitSettings, Export, emit
from caplet.program.c.structure import HOST_ONLY, Ref, Struct, rows_of_numbers, runtime_files
from caplet.runtime.compiler import build_library, load_library
from caplet.runtime.emulator import Board, build_firmware
from sample_programs import sample_shallow
from single_op import SingleOp

Inputs = dict[str, np.ndarray]

_STRING_H = """#include <stddef.h>
void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int strcmp(const char *a, const char *b);
"""
_MAIN = """#include "../caplet/host.h"
#include "../caplet/string.h"
#include "board.h"
#include "semihosting.h"

typedef struct {
    const caplet_host_step *step;
    const uint8_t *inputs;
    const uint8_t *expected;
    uint32_t cases, input, input_bytes, output, output_bytes;
} test;

%s
static const test tests[] = {%s};
static uint64_t arena[%d];

int strcmp(const char *a, const char *b) { while (*a && *a == *b) { a++; b++; } return *a - *b; }

/* Writes the number of cases, and of those that differ. */
int main(void)
{
    const int file = semihosting_open("differing.bin", SEMIHOSTING_WRITE);
    const caplet_host_memory memory = {arena, sizeof arena, 1, 1};
    uint32_t counts[2] = {0, 0};
    uint32_t i, c, k;
    for (i = 0; i < sizeof tests / sizeof *tests; i++) {
        const test *t = &tests[i];
        for (c = 0; c < t->cases; c++) {
            const uint8_t *found = (const uint8_t *)arena + t->output;
            uint32_t unequal = 0;
            memset(arena, 0xA5, sizeof arena); /* what was in scratch must not matter */
            caplet_host_run(t->step, 1, &memory, t->inputs + c * t->input_bytes, 1, t->input_bytes, t->input, 0, 0,
                            arena, 0, 0, arena);
            for (k = 0; k < t->output_bytes; k++) {
                unequal |= found[k] ^ t->expected[c * t->output_bytes + k];
            }
            counts[0]++;
            counts[1] += unequal != 0;
        }
    }
    semihosting_write(file, counts, sizeof counts);
    semihosting_close(file);
    return 0;
}
"""


def differing_on_device(
    board: Board,
    ops: Sequence[tuple[SingleOp, Inputs]],
    folder: Path,
    flags: tuple[str, ...] = (),
    add_board: Callable[[Board, Export], None] = lambda board, export: None,
) -> tuple[int, int]:
    """Run ops (``portable`` ones, as a device computes them) on a board; cases, and those that differ somewhere.

    add_board: writes the files of a board that exports do not have.
    """
    export = emit(sample_shallow(0), folder / "export", EmitSettings(prefix="model"))
    add_board(board, export)
    prepare(export, ops)
    compiler, known = board.find_compiler()
    firmware = build_firmware(board, export, (compiler, (*known, "-Icaplet", *flags)))
    command = [board.require_emulator(), *board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(firmware)]
    done = processes.run(command, folder, seconds=600)
    assert done.returncode == 0, done.stderr + done.stdout
    cases, differing = np.fromfile(folder / "differing.bin", dtype="<u4").tolist()
    return cases, differing


def prepare(export: Export, ops: Sequence[tuple[SingleOp, Inputs]]) -> None:
    """Put the ops, their inputs and the interpreter's codes in place of an export's own test harness."""
    for name in HOST_ONLY:
        (export.folder / "caplet" / name).write_text(runtime_files(host=True)[name])
    (export.folder / "caplet" / "string.h").write_text(_STRING_H)
    library = load_library(build_library())
    parts, tests, size = [], [], 0
    for number, (single, inputs) in enumerate(ops):
        text, arena = _one(f"t{number}", single, inputs, library)
        parts.append(text)
        tests.append(f"{{&t{number}_step, t{number}_in, t{number}_out, T{number}}}")
        size = max(size, arena)
    (export.folder / "device" / "main_device.c").write_text(
        _MAIN % ("\n".join(parts), ",\n    ".join(tests), size // 8 + 8)
    )


def _one(name: str, single: SingleOp, inputs: Inputs, library: ctypes.CDLL) -> tuple[str, int]:
    steps, descriptions, struct = single.describe(library)
    expected = single.interpret(inputs)
    data, result = single.pack(inputs, single.op.inputs), single.pack(expected, single.outputs, 0xA5)
    lines = [
        f"static const {values.dtype}_t {name}_{key}[] = {{{rows_of_numbers(values, '')}}};"
        for key, values in descriptions.arrays.items()
        if not key.startswith("host/")
    ]
    lines += [
        f"static const {items[0].type} {name}_{key}[] = {{{', '.join(_named(i, name).to_c() for i in items)}}};"
        for key, items in descriptions.structs.items()
    ]
    lines.append(f"static const {struct.type} {name}_op = {_named(struct, name).to_c()};")
    step = steps.table[0]
    offsets = ", ".join(f"{single.place(one)}u" for one in single.op.inputs)
    memory = ", ".join(f"{value}ull" for value in step.memory)
    lines.append(f"static const uint64_t {name}_places[] = {{{offsets}}};")
    lines.append(
        f"static const caplet_host_step {name}_step = {{&{name}_op, {name}_places, {{{memory}}}, {step.output}ull, "
        f"{step.kind}, {step.row_bytes}, {step.count}, {step.input_count}}};"
    )
    for what, block in (("in", data), ("out", result)):
        lines.append(f"static const uint8_t {name}_{what}[] = {{{rows_of_numbers(block.reshape(-1), '')}}};")
    numbers = (len(data), single.place(single.op.inputs[0]), data.shape[1], single.place(single.outputs[0]))
    lines.append(f"#define T{name[1:]} {', '.join(map(str, (*numbers, result.shape[1])))}")
    return "\n".join(lines), steps.arena_bytes


def _named(value: Struct, name: str) -> Struct:
    """Arrays with the test's name before their own; none of the host's."""

    def of(field: object) -> object:
        if isinstance(field, Struct):
            return _named(field, name)
        if isinstance(field, Ref) and field.name and not field.name.startswith("caplet_"):
            return Ref("" if field.name.startswith("host/") else f"{name}_{field.name}")
        return field

    return Struct(value.type, {key: of(field) for key, field in value.fields.items()})  # type: ignore[misc]
