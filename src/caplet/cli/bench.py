"""``caplet bench``: papers' tables redone, every engine's speed, two models side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from caplet.bench.settings import BenchSettings, PapersSettings, SpeedSettings
from caplet.cli.options import Given, help_of, with_options
from caplet.cli.output import ImageSize, Json, Quiet, console, going_on, note, print_json, show_table
from caplet.errors import ConfigError
from caplet.progress import silent

COMPARE = "models"
_EXAMPLES = {"--model": "q7-mnist=q7_mnist.h5", "--root": "~/data or cifar10=~/cifar"}


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
    given: Annotated[dict[str, Any], Given(PapersSettings)],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="NAME=FILE: a float checkpoint for the rows of a network; may be repeated."),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            "--root", help="Folder (or archive) where datasets' files are, or DATA=FOLDER for one; may be repeated."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/papers"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Rows, papers, networks or datasets (with * and ?); may be repeated."),
    ] = None,
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
    from caplet.bench.papers.job import redo_papers

    roots = _pairs(root or [], "--root", "DATA=FOLDER", alone=True)
    models = _pairs(model or [], "--model", "NAME=FILE")
    where = {"models": models, "root": roots.pop("", None), "roots": roots, "only": only or ()}
    settings = PapersSettings.of({**given, **where})
    if list_ or dry_run:
        _show_rows(settings, minutes=dry_run, json=json)
        return
    with going_on(tells=True):
        result = redo_papers(settings, out, resume=resume, force=force, note=silent if quiet else note)
    if json:
        print_json({**result.record, "folder": str(result.folder)})
        return
    console().print((result.folder / "papers.md").read_text(encoding="utf-8"), end="")
    note(f"{len(result.done)} rows made, {len(result.blank)} blank: {result.folder / 'papers.md'}")


def _pairs(texts: list[str], option: str, rule: str, alone: bool = False) -> dict[str, Path]:
    """Paths by name of ``NAME=PATH``; with ``alone`` a path without a name has the name ''. Raises ConfigError."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals and alone:
            name, path = "", text
        if not path or (not name and not alone):
            raise ConfigError(f"{option} {text!r}: the rule is {rule}, e.g. {_EXAMPLES[option]}")
        if name in found:
            raise ConfigError(f"{option} {text!r}: {name or 'the folder'} is given twice")
        found[name] = Path(path).expanduser()
    return found


def _show_rows(settings: PapersSettings, minutes: bool, json: bool) -> None:
    """List the chosen rows; with ``minutes`` those that would be made are timed."""
    from caplet.bench.papers.job import estimate_papers, list_papers

    found = list(estimate_papers(settings) if minutes else list_papers(settings))
    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "model": row.network.name,
            "data": row.network.data,
            "method": row.work.method,
            "minutes": estimate,
            "missing": missing,
        }
        for row, estimate, missing in found
    ]
    if json:
        print_json({"rows": rows})
        return
    for row in rows:
        about = f"about {row['minutes']:.1f} minutes" if row["minutes"] is not None else row["missing"] or "can be made"
        console().print(f"{row['name']}: {row['method']}; {about}")
    if minutes:
        total = sum(row["minutes"] or 0.0 for row in rows)
        console().print(f"in all about {total:.0f} minutes")


@with_options
def speed(
    model: Annotated[str, typer.Argument(help="A float model's file, or the name of a ready-made one: shallow, deep.")],
    settings: SpeedSettings,
    image_size: ImageSize = None,
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

    record = {"model": model, **bench_speed(load_or_build(model, image_size), settings)}
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
    image_size: ImageSize = None,
    json: Json = False,
) -> None:
    """Measure training and inference speed of two models in PyTorch, in turns within one run.

    Medians over the turns and their range; the ratio is that of each pair of turns. Random images: speed does not
    depend on them.

    Example: caplet bench model.pt runs/model-pruned/model.safetensors --threads 2
    """
    from caplet.api import load_float
    from caplet.bench.two_models import bench

    first, second = (load_float(path, image_size=image_size) for path in (a, b))
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
