"""``caplet compress``: from a model or a recipe, and limits, to the best network that fits them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from caplet.cli.output import CalibrationSize, Channels, Json, Quiet, Root, Size, console, going_on, print_json


def command(
    model: Annotated[
        Path | None, typer.Argument(help="A trained float model: .safetensors, or a .pt / .h5 to import.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="A TOML file, such as `caplet init` writes; options go before it.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Train this recipe (or TOML file) first, where there is no model.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Dataset name, or the path of an image folder. Default: the recipe's.")
    ] = None,
    root: Root = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/NAME-compress.")] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Accepted loss of accuracy in percentage points. Default: 0.3.")
    ] = None,
    flash: Annotated[str | None, typer.Option("--flash", help="Limit of the whole firmware, e.g. 256KB.")] = None,
    ram: Annotated[str | None, typer.Option("--ram", help="Limit of the arena, e.g. 64KB.")] = None,
    macs: Annotated[
        str | None, typer.Option("--macs", help="Limit of the multiply-accumulates of one image, e.g. 12M.")
    ] = None,
    target: Annotated[
        Literal["host", "cortex-m4"] | None, typer.Option("--target", help="What the firmware is verified on.")
    ] = None,
    method: Annotated[
        Literal["qcapsnets", "progressive", "ilp"] | None,
        typer.Option("--method", help="The search for widths. Default: ilp."),
    ] = None,
    prune: Annotated[
        Literal["auto", "yes", "no"] | None, typer.Option("--prune", help="Whether capsules may be removed.")
    ] = None,
    size: Size = None,
    channels: Channels = None,
    calibration_size: CalibrationSize = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything that draws.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            help="CPU threads that every stage computes with; stages run one after another. Default: all cores, or"
            " OMP_NUM_THREADS.",
            min=1,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, with estimated minutes and memory.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Use the folder for other settings; stages that they leave equal are kept.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Get the best network within limits, its firmware, and one page about it.

    Measures how accuracy falls with pruning and with narrower integers, decides how much to leave to either, prunes and
    fine-tunes, searches widths, and verifies the integers on every engine. Decisions are made on the calibration split.
    Exit code 5 means that no network keeps to all limits; the nearest one is written all the same.

    Example: caplet compress model.safetensors --data mnist --root ~/data --max-drop 0.2 --flash 160KB --ram 32KB
    """
    with going_on(tells=not dry_run):
        from caplet.api import compress_by_settings, compress_settings, estimate_compression
        from caplet.cli.progress import bar
        from caplet.errors import TargetNotMet

        limits = {"max_drop": max_drop, "flash": flash, "ram": ram, "macs": macs}
        changes: dict[str, Any] = {
            "model": None if model is None else str(model),
            "recipe": recipe,
            "data": data,
            "root": None if root is None else str(root),
            "size": size,
            "channels": channels,
            "calibration_size": calibration_size,
            "target": target,
            "seed": seed,
            "limits": limits,
            "prune": {"use": prune},
            "quantize": {"method": method},
        }
        resolved = compress_settings(settings, _given(changes))
        if dry_run:
            plan = estimate_compression(resolved, threads=jobs, progress=not quiet)
            if json:
                print_json(plan)
                return
            for row in plan["stages"]:
                console().print(f"{row['stage']}: {row['about']}: about {row['minutes']:.1f} minutes")
            console().print(
                f"in all about {plan['minutes']:.0f} minutes, {plan['memory_bytes'] / 1e9:.1f} GB of memory"
            )
            return
        source = resolved.model or resolved.recipe or ""
        folder = out or Path("runs") / f"{Path(source).stem}-compress"
        with bar(not quiet) as (step, measured):
            result = compress_by_settings(
                resolved,
                folder,
                resume=resume,
                force=force,
                threads=jobs,
                note=step,
                progress=measured,
                bars=not quiet,
            )
        if json:
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


def _given(changes: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    found = {name: _given(value) if isinstance(value, dict) else value for name, value in changes.items()}
    return {name: value for name, value in found.items() if value is not None and value != {}}
