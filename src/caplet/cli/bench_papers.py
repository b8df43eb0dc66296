"""``caplet bench papers``: tables of published work, redone on the models and data at hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caplet.cli.output import Json, Quiet, console, going_on, note, print_json
from caplet.errors import ConfigError

if TYPE_CHECKING:
    from caplet.bench.papers.job import PapersSettings


def command(
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
    calibration_size: Annotated[
        int | None,
        typer.Option("--calibration-size", help="Images cut from the training split for calibration and search."),
    ] = None,
    test_images: Annotated[
        int | None, typer.Option("--test-images", help="Look at so many test images at most. Default: all.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads.", min=1)] = None,
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
    from caplet.bench.papers.job import PapersSettings, redo_papers

    roots = _pairs(root or [], "--root", "DATA=FOLDER", alone=True)
    settings = PapersSettings(
        models=_pairs(model or [], "--model", "NAME=FILE"),
        root=roots.pop("", None),
        roots=roots,
        only=tuple(only or ()),
        calibration_size=calibration_size,
        test_images=test_images,
        threads=threads,
    )
    if list_ or dry_run:
        _show_rows(settings, minutes=dry_run, json=json)
        return
    with going_on(tells=True):
        result = redo_papers(settings, out, resume=resume, force=force, note=(lambda text: None) if quiet else note)
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


_EXAMPLES = {"--model": "q7-mnist=q7_mnist.h5", "--root": "~/data or cifar10=~/cifar"}


def _show_rows(settings: "PapersSettings", minutes: bool, json: bool) -> None:
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
