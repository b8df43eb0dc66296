"""``caplet compress``: from a model or a recipe, and limits, to the best network that fits them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from caplet.cli.options import Given, with_options
from caplet.cli.output import RunOptions, console, going_on, print_json
from caplet.jobs.compress.settings import CompressSettings


@with_options
def command(
    changes: Annotated[dict[str, Any], Given(CompressSettings)],
    run: RunOptions,
    model: Annotated[
        Path | None, typer.Argument(help="A trained float model: .safetensors, or a .pt / .h5 to import.")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            help="A TOML file, such as `caplet init` writes; options go before it.",
            rich_help_panel="Run",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            help="CPU threads that every stage computes with; stages run one after another. Default: all cores, or"
            " OMP_NUM_THREADS.",
            min=1,
            rich_help_panel="Run",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what would be done, with estimated minutes and memory.",
            rich_help_panel="Run",
        ),
    ] = False,
) -> None:
    """Get the best network within limits, its firmware, and one page about it.

    Measures how accuracy falls with pruning and with narrower integers, decides how much to leave to either, prunes and
    fine-tunes, searches widths, and verifies the integers on every engine. Decisions are made on the calibration split.
    Exit code 5 means that no network keeps to all limits; the nearest one is written all the same.

    Example: caplet compress model.safetensors --data mnist --root ~/data --max-drop 0.2 --flash 160KB --ram 32KB
    """
    with going_on(tells=not dry_run):
        from caplet.api import compress_by_settings, compress_settings, estimate_compression
        from caplet.cli.output import bar
        from caplet.errors import TargetNotMet

        resolved = compress_settings(settings, changes if model is None else {**changes, "model": str(model)})
        if dry_run:
            plan = estimate_compression(resolved, threads=jobs, progress=not run.quiet)
            if run.as_json:
                print_json(plan)
                return
            for row in plan["stages"]:
                console().print(f"{row['stage']}: {row['about']}: about {row['minutes']:.1f} minutes")
            console().print(
                f"in all about {plan['minutes']:.0f} minutes, {plan['memory_bytes'] / 1e9:.1f} GB of memory"
            )
            return
        folder = run.folder(Path(resolved.model or resolved.recipe or ""), "compress")
        with bar(not run.quiet) as (step, measured):
            result = compress_by_settings(
                resolved,
                folder,
                resume=run.resume,
                force=run.force,
                threads=jobs,
                note=step,
                progress=measured,
                bars=not run.quiet,
            )
        if run.as_json:
            print_json({**result.metrics, "folder": str(result.folder)})
        else:
            from caplet.cli.verdict import show_compressed

            show_compressed(result)
        if not result.met:
            missed = ", ".join(result.metrics["missed"])
            give = "; or ".join(result.metrics["outlook"])
            raise TargetNotMet(
                f"no network keeps to all limits; the nearest one, in {result.folder}, misses {missed}. What would have"
                f" to give: {give}"
            )
