"""Packages for places where firmware is made, built for this machine: what the tool chains there would declare."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from caplet.program.c.emit import EmitSettings, Export, emit
from caplet.program.program import Program
from sample_programs import SampleSettings, sample_shallow

PASSED = "self-test: every code as expected"
WARN = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
C99 = ["-std=c99", *WARN]
ARDUINO = """
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstdint>
struct {
    int read() { int byte = std::getchar(); if (byte == EOF) { std::exit(0); } return byte; }
    std::size_t write(const std::uint8_t *bytes, std::size_t) { std::putchar(*bytes); return 1; }
    void begin(long) {}
    explicit operator bool() const { return true; }
    void print(const char *text) { std::printf("%s", text); }
    void print(unsigned long number) { std::printf("%lu", number); }
    void println(const char *text) { std::printf("%s\\n", text); }
} Serial;
inline unsigned long micros() { return 0; }
inline unsigned long millis() { return 0; }
inline void delay(unsigned long) { std::exit(0); }
void setup();
void loop();
"""
RUN_SKETCH = "int main() { setup(); for (;;) { loop(); } }\n"
ZEPHYR = """cmake_minimum_required(VERSION 3.14)
project(stub C)
macro(zephyr_library_named name)
  set(library ${name})
  add_library(${name} STATIC)
endmacro()
macro(zephyr_library_sources)
  foreach(source ${ARGN})
    target_sources(${library} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/${source})
  endforeach()
endmacro()
macro(zephyr_library_compile_options)
  target_compile_options(${library} PRIVATE ${ARGN})
endmacro()
macro(zephyr_include_directories folder)
  target_include_directories(${library} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/${folder})
endmacro()
set(CONFIG_DIGITS y)
add_subdirectory(PACKAGE/zephyr zephyr)
add_executable(app PACKAGE/samples/classify/src/main.c)
target_include_directories(app PRIVATE stubs)
target_link_libraries(app digits)
"""
KERNEL = """
#include <stdint.h>
static inline uint32_t k_cycle_get_32(void) { return 0; }
static inline uint32_t k_cyc_to_us_floor32(uint32_t cycles) { return cycles; }
"""
IDF = """cmake_minimum_required(VERSION 3.14)
project(stub C)
function(idf_component_register)
  cmake_parse_arguments(GIVEN "" "" "SRCS;INCLUDE_DIRS" ${ARGN})
  list(TRANSFORM GIVEN_SRCS PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  get_filename_component(name ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  set(COMPONENT_LIB ${name} PARENT_SCOPE)
  add_library(${name} STATIC ${GIVEN_SRCS})
  if(GIVEN_INCLUDE_DIRS)
    target_include_directories(${name} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/${GIVEN_INCLUDE_DIRS})
  endif()
endfunction()
add_subdirectory(PACKAGE package)
add_subdirectory(PACKAGE/examples/classify/main main)
target_include_directories(main PRIVATE stubs)
target_link_libraries(main esp-idf)
add_executable(app app.c)
target_link_libraries(app main)
"""
IDF_TIMER = "#include <stdint.h>\nstatic inline int64_t esp_timer_get_time(void) { return 0; }\n"
MICROPYTHON = """
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef const void *mp_obj_t;
typedef const char *mp_rom_error_text_t;
typedef unsigned char byte;
typedef struct { int unused; } mp_obj_fun_bc_t;
typedef struct { const void *buf; size_t len; int typecode; } mp_buffer_info_t;
typedef struct { union { mp_obj_t (*none)(void); mp_obj_t (*one)(mp_obj_t); } call; } function;
static const struct { void *(*memmove_)(void *, const void *, size_t); void *(*memset_)(void *, int, size_t); }
    mp_fun_table = {memmove, memset};
static const int mp_type_ValueError = 0;
static struct { const char *name; mp_obj_t value; } names[16];
static int count;
static mp_buffer_info_t given;
static const char *raised;
static size_t number_of(mp_obj_t x) { return (size_t)x; }
static void store(const char *name, mp_obj_t value) { names[count].name = name, names[count++].value = value; }
static mp_obj_t found(const char *name)
{
    int i;
    for (i = 0; strcmp(names[i].name, name) != 0; i++) { assert(i < count); }
    return names[i].value;
}
#define MP_OBJ_NEW_SMALL_INT(x) ((mp_obj_t)(size_t)(x))
#define MP_OBJ_FROM_PTR(x) (x)
#define MP_BUFFER_READ 1
#define MP_DEFINE_CONST_FUN_OBJ_0(NAME, CALL) const function NAME = {{.none = CALL}}
#define MP_DEFINE_CONST_FUN_OBJ_1(NAME, CALL) const function NAME = {{.one = CALL}}
#define MP_DYNRUNTIME_INIT_ENTRY (void)self, (void)n_args, (void)n_kw, (void)args;
#define MP_DYNRUNTIME_INIT_EXIT return NULL;
#define mp_store_global(NAME, VALUE) store(&#NAME[8], VALUE)
#define mp_get_buffer_raise(FROM, TO, HOW) (*(TO) = *(const mp_buffer_info_t *)(FROM))
#define mp_obj_get_int(x) ((int)number_of(x))
#define mp_obj_new_bool(x) MP_OBJ_NEW_SMALL_INT(x)
#define mp_raise_msg(KIND, TEXT) ((void)(KIND), raised = (TEXT))
static mp_obj_t kept(const void *from, size_t bytes)
{
    char *to = calloc(bytes + 1, 1);
    return memcpy(to, from, bytes);
}
#define mp_obj_new_str(TEXT, BYTES) kept(TEXT, BYTES)
#define mp_obj_new_bytes(FROM, BYTES) kept(FROM, BYTES)
#define mp_obj_new_tuple(COUNT, ITEMS) kept(ITEMS, (COUNT) * sizeof *(ITEMS))
"""
"""What a native module uses of MicroPython: numbers and pointers are objects; an error is kept, and not raised."""
RUN_MODULE = """
#define memcpy own_memcpy
#define memset own_memset
#include "micropython.c"
static mp_obj_t call(const char *name, const void *pixels, size_t bytes)
{
    given.buf = pixels, given.len = bytes, raised = NULL;
    return ((const function *)found(name))->call.one(&given);
}
int main(void)
{
    static uint8_t pixels[DIGITS_IMAGE_BYTES];
    const mp_obj_t *answer;
    mpy_init(NULL, 0, 0, NULL);
    assert(((const function *)found("selftest"))->call.none());
    answer = call("classify", pixels, sizeof pixels);
    assert(number_of(answer[0]) < DIGITS_CLASSES && number_of(answer[1]) >= number_of(answer[2]) && raised == NULL);
    assert(call("capsules", pixels, sizeof pixels) != NULL && raised == NULL);
    (void)call("capsules", pixels, sizeof pixels - 1);
    assert(raised != NULL && strstr(raised, "another size") != NULL);
    assert(strcmp(((const function *)found("label"))->call.one(MP_OBJ_NEW_SMALL_INT(0)), digits_label(0)) == 0);
    assert(strcmp(found("DIGEST"), digits_digest()) == 0 && number_of(found("CLASSES")) == DIGITS_CLASSES);
    return puts("self-test: every code as expected") < 0;
}
"""


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def sh(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}"
    return done.stdout


def sample() -> Program:
    return replace(sample_shallow(3, SampleSettings(weight_bits=5)), labels=('a "b" ??/', "c\\", "é", "d %s", "e*/"))


def package(place: str, folder: Path, program: Program | None = None) -> Export:
    return emit(program or sample(), folder, EmitSettings(prefix="digits", to=place))


def objects(export: Export, into: Path, compiler: str = "gcc", *flags: str) -> list[Path]:
    into.mkdir(exist_ok=True)
    sources = sorted((export.folder / "src").rglob("*.c"))
    sh(compiler, *C99, *flags, "-c", *sources, cwd=into)
    return sorted(into.glob("*.o"))


PORTS = {
    "zephyr/device.h": """
struct device { int here; };
#define DEVICE_DT_GET(x) x
#define DT_CHOSEN(x) &(const struct device){1}
""",
    "zephyr/drivers/uart.h": """
#include <stdio.h>
#include <stdlib.h>
static inline int uart_poll_in(const struct device *uart, unsigned char *byte)
{
    const int found = getchar();
    if (found == EOF) { exit(!uart->here); }
    *byte = (unsigned char)found;
    return 0;
}
static inline void uart_poll_out(const struct device *uart, unsigned char byte) { (void)uart; putchar(byte); }
""",
    "zephyr/kernel.h": """
#include <stdint.h>
static inline int64_t k_uptime_ticks(void) { return 7; }
static inline uint64_t k_ticks_to_us_floor64(uint64_t ticks) { return ticks; }
""",
    "driver/uart.h": """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
enum { UART_NUM_0 = 0 };
#define ESP_ERROR_CHECK(x) do { if ((x) != 0) { abort(); } } while (0)
static inline int uart_driver_install(int n, int in, int out, int q, void *queue, int f)
{
    return n + out + q + f + (queue != NULL) + (in == 0);
}
static inline int uart_read_bytes(int n, void *to, uint32_t count, int ticks)
{
    if (fread(to, 1, count, stdin) != count) { exit(n + ticks - 20); }
    return 1;
}
static inline int uart_write_bytes(int n, const void *from, size_t count)
{
    return n + (int)fwrite(from, 1, count, stdout);
}
""",
    "freertos/FreeRTOS.h": "#define pdMS_TO_TICKS(x) (x)\n",
    "esp_log.h": """
#define ESP_LOG_NONE 0
static inline void esp_log_level_set(const char *tag, int level) { (void)tag; (void)level; }
""",
    "esp_timer.h": IDF_TIMER,
}
"""Stubs of headers for serial ports: input and output of the program."""
