"""``caplet bench``: papers' tables redone, every engine's speed, two models side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from caplet.bench.settings import BenchSettings, PapersSettings, SpeedSettings
from caplet.cli.options import help_of, with_options
from caplet.cli.output import console, going_on, note, print_json, show_table
from caplet.cli.shared import ImportOptions, Json, Quiet
from caplet.progress import silent
from caplet.workers.settings import WorkerSettings

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


@with_options
def papers(
    settings: PapersSettings,
    workers: WorkerSettings,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/papers"),
    list_: Annotated[bool, typer.Option("--list", help="Only list the rows and what each needs.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which rows would be made, with estimated minutes.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the folder: finished rows are kept, others added.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Use the folder under other limits on images.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Redo the tables of papers on capsule networks, on the models and data that are here.

    Q-CapsNets, progressive bitwidth assignment, Towards Efficient Capsule Networks, and Q7-CapsNets. Writes papers.md
    and papers.json after every row; what cannot be redone is left blank and says why. Nothing is downloaded. Published
    figures stand beside their source.

    Example: caplet bench papers --model q7-mnist=q7_mnist.h5 --root ~/data --only q7-mnist
    """
    from caplet.bench.papers.job import list_papers, redo_papers

    if list_ or dry_run:
        rows = list(list_papers(settings, estimate=dry_run))
        if json:
            print_json({"rows": rows})
            return
        for row in rows:
            minutes, about = row["minutes"], row["missing"] or "can be made"
            console().print(
                f"{row['name']}: {row['method']}; {about if minutes is None else f'about {minutes:.1f} minutes'}"
            )
        if dry_run:
            console().print(f"in all about {sum(row['minutes'] or 0.0 for row in rows):.0f} minutes")
        return
    with going_on(tells=True):
        told = silent if quiet else note
        result = redo_papers(settings, out, resume=resume, force=force, note=told, workers=workers)
    if json:
        print_json({**result.record, "folder": str(result.folder)})
        return
    console().print((result.folder / "papers.md").read_text(encoding="utf-8"), end="")
    note(f"{len(result.done)} rows made, {len(result.blank)} blank: {result.folder / 'papers.md'}")


@with_options
def speed(
    model: Annotated[str, typer.Argument(help="A float model's file, or the name of a ready-made one: shallow, deep.")],
    settings: SpeedSettings,
    importing: ImportOptions,
    json: Json = False,
) -> None:
    """Measure training, search, interpreter, compiled C and PyTorch on one model, in turns within one run.

    Medians over the turns and their range, on noise: speed does not depend on pixels. The plain broadcast form is the
    same network as it is usually written in PyTorch; whole ShallowCaps and DeepCaps have one. A training step is
    forward, margin loss, backward, Adam; a search's probe is a fake-quantized forward pass.

    Example: caplet bench speed shallow --threads 2
    """
    from caplet.api import load_or_build
    from caplet.bench.speed.job import bench_speed

    record = {"model": model, **bench_speed(load_or_build(model, **importing.model_dump()), settings)}
    if json:
        print_json(record)
        return
    rows = []
    for kind in ("training", "search", "inference"):
        sides = {side["side"]: side["images_per_second"] for side in record["sides"] if side["what"] == kind}
        slowest = min((found["median"] for found in sides.values()), default=0.0)
        for side, found in sides.items():
            around = f"{found['low']:,.1f}-{found['high']:,.1f}"
            rows.append((kind, side, f"{found['median']:,.1f}", around, f"{found['median'] / slowest:.1f}x"))
    title = f"images per second, {settings.threads} thread(s)"
    show_table(("", "", "median", "range", "of slowest"), rows, title, left=2)
    for side, reason in record["left_out"].items():
        note(f"{side}: not measured: {reason}")


@with_options
def models(
    a: Annotated[Path, typer.Argument(help="A float model, such as the unpruned one.")],
    b: Annotated[Path, typer.Argument(help="Another float model for the same images, such as the pruned one.")],
    settings: BenchSettings,
    importing: ImportOptions,
    json: Json = False,
) -> None:
    """Measure training and inference speed of two models in PyTorch, in turns within one run.

    Medians over the turns and their range; the ratio is that of each pair of turns. Random images: speed does not
    depend on them.

    Example: caplet bench model.pt runs/pruned/model.safetensors --threads 2
    """
    from caplet.bench.two_models import bench

    first, second = (importing.load_float(path) for path in (a, b))
    record = bench(first, second, settings)
    if json:
        print_json({**record, "models": {"a": str(a), "b": str(b)}})
        return

    def text(found: Mapping[str, float], digits: int = 0) -> str:
        return f"{found['median']:,.{digits}f} ({found['low']:,.{digits}f}-{found['high']:,.{digits}f})"

    rows = []
    for what in ("inference", "training"):
        row = record[what]
        rows.append((what, text(row["a"]), text(row["b"]), text(row["ratio"], 1)))
    for label, key in (("MACs", "macs"), ("parameters", "parameters")):
        one, two = (record["cost"][name][key] for name in "ab")
        rows.append((label, f"{one:,}", f"{two:,}", f"{two / one:.3f}"))
    show_table(("", a.name, b.name, "ratio"), rows, f"images per second, {settings.threads} thread(s)")


for name, function in {"papers": papers, "speed": speed, COMPARE: models}.items():
    app.command(name, help=help_of(function))(function)
