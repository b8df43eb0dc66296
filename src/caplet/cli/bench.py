"""``caplet bench``: papers' tables redone, every engine's speed, two models side by side."""

from typing import Any

import typer
from typer.core import TyperGroup

from caplet.cli import bench_models, bench_papers, bench_speed

COMPARE = "models"


class _Bench(TyperGroup):
    """``caplet bench A B`` means ``caplet bench models A B``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [COMPARE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Bench, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.callback()
def group() -> None:
    """Measure: papers' tables redone, every engine's speed, two models side by side.

    [bold]caplet bench papers[/bold] --model q7-mnist=FILE --root DIR redoes tables of published work on the models and
    data at hand, as Markdown and JSON.

    [bold]caplet bench speed[/bold] MODEL measures training, search, interpreter, compiled C and PyTorch in turns.

    [bold]caplet bench[/bold] A B compares two float models, such as before and after pruning.
    """


app.command("papers")(bench_papers.command)
app.command("speed")(bench_speed.command)
app.command(COMPARE)(bench_models.command)
