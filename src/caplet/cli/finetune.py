"""``caplet finetune``: go on training a model, in float or under a plan of integer formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from caplet.cli.output import CalibrationSize, Channels, Data, Json, Quiet, Root, Size, console, note, print_json


def command(
    model: Annotated[Path, typer.Argument(help="A trained float model: .safetensors, or a .pt / .h5 to import.")],
    data: Data = "digits",
    root: Root = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="Train the numbers of this plan (plan_*.json of `caplet quantize`)."),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(
            "--widths",
            help="Instead of a plan, weights/activations/routing bits of every group, e.g. conv1=4/5,primary=2/5,"
            "digit=3/5/6.",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", help="Float model to follow. Default: MODEL itself with a plan, else none."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/NAME-finetuned.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the training images. Default: 1.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="End after so many steps, within an epoch too.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one setting, e.g. --set lr=1e-3 --set exponents=learned. May be repeated."),
    ] = None,
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
    """Fine-tune a model; with a plan, so that its integers do well (quantization-aware training, docs/finetune.md).

    Every pass computes the plan's numbers, with integer softmax and squash, and follows the float model (distillation)
    and the labels. The run folder gets model.safetensors, and with a plan model_finetuned.caplet and
    plan_finetuned.json; the test split is opened once, at the end, and measured on the integers.

    Example: caplet finetune model.pt --plan runs/model-qcapsnets/plan_memory.json --data fashion-mnist --root ~/data
    """
    from caplet.api import finetune_model, finetune_settings, load_data, load_float, plan_of_widths, read_plan

    if plan is not None and widths is not None:
        raise typer.BadParameter("give a plan or widths, not both", param_hint="--widths")
    under_plan = plan is not None or widths is not None
    settings = finetune_settings(set_ or [], under_plan=under_plan, epochs=epochs, steps=steps)
    loaded = load_float(model, image_size=image_size)
    chosen = None if plan is None else read_plan(plan)
    followed = None if teacher is None else load_float(teacher, image_size=image_size)
    splits = load_data(data, root, calibration_size=calibration_size, size=size, channels=channels, progress=not quiet)
    if widths is not None:
        chosen = plan_of_widths(loaded, splits, widths)
    name = model.resolve().parent.name if model.stem == "model" else model.stem  # runs/NAME/model.safetensors -> NAME
    run = finetune_model(
        loaded,
        splits,
        out or Path("runs") / f"{name}-finetuned",
        chosen,
        settings,
        teacher=followed,
        resume=resume,
        force=force,
        engine=engine,
        note=(lambda text: None) if quiet else note,
        progress=not quiet,
    )
    if json:
        print_json({**run.metrics, "model": str(run.model_path)})
        return
    first = run.metrics["float"]["test"]["percent"]
    kind = "float" if run.program is None else "integers"
    console().print(f"test accuracy {run.test} ({kind}); before {first:.2f} % (float)")
    pair = run.against_start
    console().print(f"loss {pair.loss:+.2f} pp [{pair.low:+.2f}, {pair.high:+.2f}], paired")
    if run.program is not None:
        record = run.metrics["models"][0]
        console().print(
            f"weights {record['weight_reduction']:.1f}x, activations {record['activation_reduction']:.1f}x smaller"
        )
    note(f"model: {run.program_path or run.model_path}")
