"""``caplet quantize``: search widths, write the bit-packed model, measure its integers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from caplet.cli.output import (
    CalibrationSize,
    Channels,
    Data,
    Json,
    Quiet,
    Root,
    Size,
    note,
    print_json,
)
from caplet.settings import parse_bytes


def command(
    model: Annotated[Path, typer.Argument(help="A trained float model: .safetensors, or a .pt / .h5 to import.")],
    data: Data = "digits",
    root: Root = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/NAME-METHOD.")] = None,
    method: Annotated[
        Literal["qcapsnets", "progressive", "ilp"],
        typer.Option("--method", help="The search: docs/qcapsnets.md, docs/progressive.md, docs/ilp.md."),
    ] = "qcapsnets",
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Accepted loss of accuracy, in percentage points.")
    ] = 0.2,
    relative: Annotated[
        bool, typer.Option("--relative", help="The tolerance is in percent of the float accuracy, as in the paper.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Memory for the weights, e.g. 5MB. Default: a fifth of float for qcapsnets, else no limit."
        ),
    ] = None,
    activation_budget: Annotated[
        str | None, typer.Option("--activation-budget", help="Memory for all computed tensors (progressive, ilp).")
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option("--ram", help="RAM of the device with all votes stored, e.g. 64KiB (progressive, ilp)."),
    ] = None,
    granularity: Annotated[
        Literal["network", "block", "layer", "tensor"],
        typer.Option("--granularity", help="Which tensors share a width (progressive, ilp)."),
    ] = "layer",
    hardware: Annotated[
        str,
        typer.Option("--hardware", help="What plans must run on: portable, mcu32, bytes, int8, or a .json file."),
    ] = "portable",
    rounding: Annotated[
        Literal["nearest", "truncate", "stochastic", "all"],
        typer.Option("--rounding", help="How values between two codes are resolved; all tries each scheme."),
    ] = "nearest",
    log2_weights: Annotated[
        bool, typer.Option("--log2-weights", help="Weights are signed powers of two (at most 5 bits).")
    ] = False,
    paper_formats: Annotated[
        bool, typer.Option("--paper-formats", help="One integer bit everywhere instead of calibrated exponents.")
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune/--no-tune",
            help="Choose exponents by their effect on the class capsules, not by each tensor's squared error alone.",
        ),
    ] = True,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Decide on all calibration images, computing everything anew: slow, for comparison."
        ),
    ] = False,
    reconstruct: Annotated[
        str | None,
        typer.Option(
            "--reconstruct",
            help="Fit proposed plans, by a list of equalization, scales, per-channel, bias, rounding, end-to-end.",
        ),
    ] = None,
    narrow: Annotated[
        bool, typer.Option("--narrow", help="Lower the widths of the accepted fit as far as the target allows.")
    ] = False,
    explore: Annotated[
        bool,
        typer.Option(
            "--explore/--no-explore",
            help="ilp: also look for plans smaller than the budgets, or only propose the one of least noise in them.",
        ),
    ] = True,
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence",
            help="Accept only plans that lose at most the tolerance on other images too, with this confidence (0.95).",
        ),
    ] = None,
    simplify_routing: Annotated[
        bool,
        typer.Option(
            "--simplify-routing",
            help="First try constant couplings and fewer routing iterations; kept where a paired test on the"
            " calibration split accepts them.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of stochastic rounding.")] = 0,
    engine: Annotated[
        Literal["auto", "native", "interpreter"],
        typer.Option("--engine", help="What runs the integers: compiled C, or the reference interpreter."),
    ] = "auto",
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Image side of an imported model, where its file leaves it open.")
    ] = None,
    size: Size = None,
    channels: Channels = None,
    calibration_size: CalibrationSize = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the run folder.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Give every tensor of a trained model its own fixed-point width, within an accuracy tolerance and a budget.

    The search sees the calibration split, cut from the training images; the test split is opened once, at the end, and
    measured on the integers of the written .caplet file. Exit code 5 means that no model met target and budget; the
    best ones found (model_memory, model_accuracy) are written all the same.

    Example: caplet quantize model.pt --data fashion-mnist --root ~/data --tolerance 0.2 --budget 5MB
    """
    from caplet.api import Granularity, Method, QuantizeSettings, load_data, load_float, parse_parts, quantize
    from caplet.cli.verdict import show_quantized
    from caplet.errors import TargetNotMet

    loaded = load_float(model, image_size=image_size)
    settings = QuantizeSettings(
        method=Method(method),
        tolerance=tolerance,
        relative=relative,
        budget=None if budget is None else parse_bytes(budget),
        activation_budget=None if activation_budget is None else parse_bytes(activation_budget),
        ram=None if ram is None else parse_bytes(ram),
        granularity=Granularity(granularity),
        hardware=hardware,
        rounding=rounding,
        log2_weights=log2_weights,
        paper_formats=paper_formats,
        tune=tune,
        simplify_routing=simplify_routing,
        reconstruct=() if reconstruct is None else parse_parts(reconstruct),
        narrow=narrow,
        explore=explore,
        exact=exact,
        confidence=confidence,
        seed=seed,
    )
    splits = load_data(data, root, calibration_size=calibration_size, size=size, channels=channels, progress=not quiet)
    name = model.resolve().parent.name if model.stem == "model" else model.stem  # runs/NAME/model.safetensors -> NAME
    folder = out or Path("runs") / f"{name}-{method}"
    from caplet.cli.progress import bar

    with bar(not quiet) as (step, measured):
        result = quantize(
            loaded,
            splits,
            folder,
            settings,
            resume=resume,
            force=force,
            engine=engine,
            note=step,
            progress=measured,
        )
    if json:
        print_json({**result.metrics, "folder": str(result.folder)})
    else:
        show_quantized(result)
    if not result.met:
        raise TargetNotMet(f"{result.metrics['reason']}; the best models found are in {result.folder}")
    note(f"model: {result.models[0].path}")
