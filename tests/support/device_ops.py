"""Single ops in the firmware of an emulated board: descriptors are compiled into it; inputs and expected codes are read
from a file, so that an op can have many."""

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
    uint32_t cases, input, input_bytes, output, output_bytes;
} test;

%s
static const test tests[] = {%s};
static uint64_t arena[%d], input[%d], expected[16];

int strcmp(const char *a, const char *b) { while (*a && *a == *b) { a++; b++; } return *a - *b; }

/* Reads each case's inputs and codes; writes the number of cases, and of those that differ. */
int main(void)
{
    const int from = semihosting_open("cases.bin", SEMIHOSTING_READ);
    const int to = semihosting_open("differing.bin", SEMIHOSTING_WRITE);
    const caplet_host_memory memory = {arena, sizeof arena, 1, 1};
    uint32_t counts[2] = {0, 0};
    uint32_t i, c, k;
    for (i = 0; i < sizeof tests / sizeof *tests; i++) {
        const test *t = &tests[i];
        for (c = 0; c < t->cases; c++) {
            const uint8_t *found = (const uint8_t *)arena + t->output;
            uint32_t unequal = 0;
            if (semihosting_read(from, input, t->input_bytes) != t->input_bytes) {
                return 1;
            }
            memset(arena, 0xA5, sizeof arena); /* what was in scratch must not matter */
            caplet_host_run(t->step, 1, &memory, (const uint8_t *)input, 1, t->input_bytes, t->input, 0, 0, arena, 0, 0,
                            arena);
            for (k = 0; k < t->output_bytes; k++) {
                const uint32_t at = k %% sizeof expected, left = t->output_bytes - k;
                const uint32_t some = left < sizeof expected ? left : sizeof expected;
                if (at == 0 && semihosting_read(from, expected, some) != some) {
                    return 1;
                }
                unequal |= found[k] ^ ((const uint8_t *)expected)[at];
            }
            counts[0]++;
            counts[1] += unequal != 0;
        }
    }
    semihosting_write(to, counts, sizeof counts);
    semihosting_close(to);
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
    (folder / "cases.bin").write_bytes(prepare(export, ops))
    compiler, known = board.find_compiler()
    firmware = build_firmware(board, export, (compiler, (*known, "-Icaplet", *flags)))
    command = [board.require_emulator(), *board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(firmware)]
    done = processes.run(command, folder, seconds=600)
    assert done.returncode == 0, done.stderr + done.stdout
    cases, differing = np.fromfile(folder / "differing.bin", dtype="<u4").tolist()
    return cases, differing


def prepare(export: Export, ops: Sequence[tuple[SingleOp, Inputs]]) -> bytes:
    """Put the ops in place of an export's own test harness; their inputs and the interpreter's codes."""
    for name in HOST_ONLY:
        (export.folder / "caplet" / name).write_text(runtime_files(host=True)[name])
    (export.folder / "caplet" / "string.h").write_text(_STRING_H)
    library = load_library(build_library())
    parts, tests, cases, size, widest = [], [], [], 0, 0
    for number, (single, inputs) in enumerate(ops):
        data = single.pack(inputs, single.op.inputs)
        result = single.pack(single.interpret(inputs), single.outputs, 0xA5)
        text, arena = _one(f"t{number}", single, library)
        first, last = single.place(single.op.inputs[0]), single.place(single.outputs[0])
        parts.append(text)
        tests.append(f"{{&t{number}_step, {len(data)}, {first}, {data.shape[1]}, {last}, {result.shape[1]}}}")
        cases.append(np.concatenate([data, result], axis=1).tobytes())
        size, widest = max(size, arena), max(widest, data.shape[1])
    main = _MAIN % ("\n".join(parts), ",\n    ".join(tests), size // 8 + 8, widest // 8 + 1)
    (export.folder / "device" / "main_device.c").write_text(main)
    return b"".join(cases)


def _one(name: str, single: SingleOp, library: ctypes.CDLL) -> tuple[str, int]:
    steps, descriptions, struct = single.describe(library)
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
