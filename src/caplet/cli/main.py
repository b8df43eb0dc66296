"""The entry point: sub-commands, and how errors become one line and an exit code."""

import ctypes
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from caplet.cli import (
    bench,
    compress,
    evaluate,
    export,
    finetune,
    inspect,
    prune,
    quantize,
    report,
    sensitivity,
    sweep,
    trace,
    train,
)
from caplet.cli.options import help_of, one_line_paragraphs
from caplet.cli.output import fail
from caplet.errors import CapletError, ConfigError, suggest
from caplet.version import __version__
from caplet.workers.group import join, started_together

HELP = """Prune, quantize and ship capsule networks: the integers you see here are the integers on the device.

Start with [bold]caplet demo[/bold] (needs no data), then [bold]caplet train --help[/bold] and
[bold]caplet quantize --help[/bold].

Exit codes: 0 done; 2 wrong usage; 3 a model, dataset, setting, file or board cannot be used; 5 the target was not met
(the best result is still written); 6 two engines differ; 7 a tool such as a compiler is missing; 130 interrupted (the
same command with --resume goes on).
"""

READERS = ("diff", "doctor", "init", "models", "report")
"""Commands that read and write files, and compute no network."""
TOGETHER = ("train", "finetune", "prune", "prune-backbone", "compress")
"""Commands in which processes that torchrun started share training and scoring."""
INTERRUPTED = "interrupted; a command that has --resume goes on with it where it stopped"


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


_CHOICE = re.compile(r"'(.*)' is not one of ('.*')")


class _Commands(TyperGroup):
    """The sub-commands; a wrong choice is one line, and Ctrl-C says how to go on, which typer would not."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(fail(INTERRUPTED, 130))
        except typer.BadParameter as error:
            if error.param is None or (found := _CHOICE.search(error.message)) is None:
                raise
            known = re.findall("'([^']*)'", found[2])
            text = f"{error.param.opts[0]} {found[1]!r}: the choice is {', '.join(known)}{suggest(found[1], known)}"
            sys.exit(fail(text, 2))
        except EOFError as error:  # which typer takes for Ctrl-D, and says "Aborted"
            raise CapletError(f"a file ended too early: {error}") from error


app = typer.Typer(
    name="caplet",
    cls=_Commands,
    help=one_line_paragraphs(HELP),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        print(f"caplet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the sub-command."""
    if context.invoked_subcommand not in READERS:
        keep_freed_memory()
    if started_together():
        if (name := context.invoked_subcommand) not in TOGETHER:
            raise ConfigError(f"torchrun is for {', '.join(TOGETHER)}; start {name} by itself (docs/workers.md)")
        join()


COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "The main job": {
        "compress": compress.command,
        "demo": compress.demo,
        "init": compress.init,
        "sweep": sweep.command,
    },
    "Building blocks": {
        "train": train.command,
        "prune": prune.command,
        "prune-backbone": prune.backbone,
        "quantize": quantize.command,
        "finetune": finetune.command,
        "export": export.command,
    },
    "Look inside": {
        "check": inspect.check,
        "inspect": inspect.command,
        "models": inspect.models,
        "sensitivity": sensitivity.command,
        "trace": trace.command,
        "diff": report.diff,
        "report": report.command,
        "doctor": report.doctor,
    },
    "Measure": {"eval": evaluate.command, "verify": evaluate.verify},
}
"""The commands by the heading under which ``caplet --help`` shows them."""

for panel, commands in COMMANDS.items():
    for name, function in commands.items():
        app.command(name, help=help_of(function), rich_help_panel=panel)(function)
app.add_typer(bench.app, name="bench", rich_help_panel="Measure")


def main() -> None:
    """Run the command line; user errors become one line on stderr and an exit code, never a traceback."""
    warnings.simplefilter("ignore")  # libraries' words to programmers; what a user must know is said elsewhere
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files that are no text
    try:
        try:
            app(prog_name="caplet")
        finally:
            sys.stdout.flush()
    except CapletError as error:
        sys.exit(fail(str(error), error.exit_code))
    except KeyboardInterrupt:
        sys.exit(fail(INTERRUPTED, 130))
    except MemoryError as error:
        sys.exit(fail(f"too little memory: {error}; use fewer or smaller images, or a smaller network", 3))
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  what could not be printed is not tried again at the end
        sys.exit(fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 3))
