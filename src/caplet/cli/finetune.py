"""``caplet finetune``: go on training a model, in float or under a plan of integer formats."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from caplet.cli.options import with_options
from caplet.cli.output import console, note, points, print_json
from caplet.cli.shared import Changes, DataOptions, Device, Engine, FloatModel, ImportOptions, RunOptions
from caplet.train.settings import FinetuneSettings


@with_options
def command(
    data: DataOptions,
    importing: ImportOptions,
    run: RunOptions,
    model: FloatModel,
    given: Annotated[dict[str, Any], FinetuneSettings],
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
    set_: Changes = None,
    engine: Engine = "auto",
    device: Device = "auto",
) -> None:
    """Fine-tune a model; with a plan, so that its integers do well (quantization-aware training, docs/finetune.md).

    Every pass computes the plan's numbers, with integer softmax and squash, and follows the float model (distillation)
    and the labels. The run folder gets model.safetensors, and with a plan model_finetuned.caplet and
    plan_finetuned.json; the test split is opened once, at the end, and measured on the integers.

    Example: caplet finetune model.pt --plan runs/quantized/plan_satisfied.json --data fashion-mnist --root ~/data
    """
    from caplet.api import finetune_model, finetune_settings, parse_changes, plan_of_widths, read_plan

    if plan is not None and widths is not None:
        raise typer.BadParameter("give a plan or widths, not both", param_hint="--widths")
    under_plan = plan is not None or widths is not None
    settings = finetune_settings({**parse_changes(set_ or []), **given}, under_plan=under_plan)
    loaded = importing.load_float(model)
    chosen = None if plan is None else read_plan(plan)
    followed = None if teacher is None else importing.load_float(teacher)
    data.check_size(loaded)
    splits = data.load(not run.quiet)
    if widths is not None:
        chosen = plan_of_widths(loaded, splits, widths)
    how: dict[str, Any] = {"teacher": followed, "engine": engine, "device": device, "progress": not run.quiet}
    folder = run.folder(model, "finetuned")
    done = finetune_model(loaded, splits, folder, chosen, settings, note=run.note, **how, **run.begun)
    if run.as_json:
        print_json({**done.metrics, "model": str(done.model_path)})
        return
    first = done.metrics["float"]["test"]["percent"]
    kind = "float" if done.program is None else "integers"
    console().print(f"test accuracy {done.test} ({kind}); before {first:.2f} % (float)")
    console().print(f"loss {points(asdict(done.against_start))} pp, paired")
    for record in done.metrics.get("models", ()):
        weights, activations = record["weight_reduction"], record["activation_reduction"]
        console().print(f"weights {weights:.1f}x, activations {activations:.1f}x smaller")
    note(f"model: {done.program_path or done.model_path}")
