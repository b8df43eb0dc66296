"""``caplet trace``: where float, fake-quant, the Program and the compiled C part."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from caplet.cli.options import with_options
from caplet.cli.output import console, print_json, show_table
from caplet.cli.shared import DataOptions, ImportOptions, Json, Quiet
from caplet.errors import ConfigError

if TYPE_CHECKING:
    from caplet.api import Comparison


@with_options
def command(
    data: DataOptions,
    importing: ImportOptions,
    run: Annotated[Path, typer.Argument(help="The run folder of `caplet quantize`, or a .caplet file.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="The float model that was quantized, for the levels float and fake.")
    ] = None,
    levels: Annotated[
        str, typer.Option("--levels", help="What to follow, each compared with the next: float, fake, program, native.")
    ] = "float,fake,program,native",
    sample: Annotated[int, typer.Option("--sample", help="The first image: its place in the split.", min=0)] = 0,
    images: Annotated[int, typer.Option("--images", help="How many images.", min=1)] = 8,
    split: Annotated[Literal["calibration", "train", "test"], typer.Option("--split", help="Which images.")] = (
        "calibration"
    ),
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Follow images through every level, tensor by tensor, and show the first one where two levels part.

    fake and program are expected to agree but for single codes, program and native in every code. Given a run folder
    and the level float, it also writes trace.json there, for `caplet report`.

    Example: caplet trace runs/fmnist --model model.pt --data fashion-mnist --root ~/data --sample 17 --images 1
    """
    from caplet.api import find_program, load_plan, load_program, parse_levels, record_trace, trace_levels

    asked = parse_levels(levels)
    path = find_program(run)
    program, plan = load_program(path), load_plan(path)
    float_model = None if model is None else importing.load_float(model)
    splits = data.load(not quiet, None, program, float_model)
    chosen = getattr(splits, split)
    if sample >= len(chosen):
        raise ConfigError(f"--sample {sample}: the {split} split has {len(chosen):,} images, 0 to {len(chosen) - 1:,}")
    pixels = chosen.images[sample : sample + images].numpy()
    found = trace_levels(program, pixels, asked, model=float_model, plan=plan)
    if run.is_dir() and found.noise:
        record_trace(run, program, found)
    if json:
        print_json({**asdict(found), "data_note": splits.info["note"]})
    else:
        for comparison in found.comparisons:
            _show(comparison, found.images)


def _show(comparison: "Comparison", images: int) -> None:
    out, first = console(), comparison.first
    one, two = comparison.levels
    if first is None:
        count = sum(row.elements for row in comparison.rows)
        out.print(f"{one} and {two}: equal, {count:,} values of {images:,} images")
        return
    rows = [
        (
            row.tensor,
            f"{row.differing:,}",
            f"{row.elements:,}",
            f"{row.largest:.4g}",
            f"{row.steps:.4g}",
            "-" if row.sqnr is None else f"{row.sqnr:.1f}",
        )
        for row in comparison.rows
    ]
    show_table(("tensor", "differing", "of", "largest", "in steps", "SQNR (dB)"), rows, f"{one} and {two}", fold=True)
    out.print(
        f"{one} and {two} part first at {first.tensor}: {first.differing:,} of {first.elements:,} values differ, by at"
        f" most {first.steps:.3g} steps of its format"
    )
