"""The entry point: sub-commands, and how errors become one line and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from caplet.cli import (
    bench,
    check,
    compress,
    demo,
    diff,
    doctor,
    evaluate,
    export,
    finetune,
    init,
    inspect,
    models,
    prune,
    prune_backbone,
    quantize,
    report,
    sensitivity,
    trace,
    train,
    verify,
)
from caplet.cli.memory import keep_freed_memory
from caplet.cli.output import fail
from caplet.errors import CapletError
from caplet.version import __version__

HELP = """Prune, quantize and ship capsule networks: the integers you see here are the integers on the device.

Start with [bold]caplet demo[/bold] (needs no data), then [bold]caplet train --help[/bold] and
[bold]caplet quantize --help[/bold].

Exit codes: 0 done; 2 wrong usage; 3 a model, dataset, setting or file cannot be used; 5 the target was not met (the
best result is still written); 6 two engines differ; 7 a tool such as a compiler is missing; 130 interrupted (the same
command with --resume goes on).
"""

READERS = ("diff", "doctor", "init", "models", "report")
"""Commands that read and write files, and compute no network."""
INTERRUPTED = "interrupted; a command that has --resume goes on with it where it stopped"


class _Commands(TyperGroup):
    """The sub-commands; says how to go on after Ctrl-C, which typer would leave without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(fail(INTERRUPTED, 130))


app = typer.Typer(
    name="caplet",
    cls=_Commands,
    help=HELP,
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


app.command("demo")(demo.command)
app.command("compress")(compress.command)
app.command("init")(init.command)
app.command("train")(train.command)
app.command("eval")(evaluate.command)
app.command("prune")(prune.command)
app.command("check")(check.command)
app.command("prune-backbone")(prune_backbone.command)
app.command("quantize")(quantize.command)
app.command("sensitivity")(sensitivity.command)
app.command("finetune")(finetune.command)
app.command("export")(export.command)
app.command("verify")(verify.command)
app.command("trace")(trace.command)
app.command("diff")(diff.command)
app.command("report")(report.command)
app.add_typer(bench.app, name="bench")
app.command("inspect")(inspect.command)
app.command("models")(models.command)
app.command("doctor")(doctor.command)


def main() -> None:
    """Run the command line; user errors become one line on stderr and an exit code, never a traceback."""
    try:
        app(prog_name="caplet")
    except CapletError as error:
        sys.exit(fail(str(error), error.exit_code))
    except KeyboardInterrupt:
        sys.exit(fail(INTERRUPTED, 130))
    except OSError as error:
        sys.exit(fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 3))
