"""``caplet finetune``: go on training a model, in float or under a plan of integer formats."""

from pathlib import Path
from typing import Annotated

import typer

from caplet.cli.options import with_options
from caplet.cli.output import DataOptions, Engine, FloatModel, ImageSize, RunOptions, console, note, print_json


@with_options
def command(
    data: DataOptions,
    run: RunOptions,
    model: FloatModel,
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
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the training images. Default: 1.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="End after so many steps, within an epoch too.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one setting, e.g. --set lr=1e-3 --set exponents=learned. May be repeated."),
    ] = None,
    engine: Engine = "auto",
    image_size: ImageSize = None,
) -> None:
    """Fine-tune a model; with a plan, so that its integers do well (quantization-aware training, docs/finetune.md).

    Every pass computes the plan's numbers, with integer softmax and squash, and follows the float model (distillation)
    and the labels. The run folder gets model.safetensors, and with a plan model_finetuned.caplet and
    plan_finetuned.json; the test split is opened once, at the end, and measured on the integers.

    Example: caplet finetune model.pt --plan runs/model-qcapsnets/plan_memory.json --data fashion-mnist --root ~/data
    """
    from caplet.api import finetune_model, finetune_settings, load_float, plan_of_widths, read_plan

    if plan is not None and widths is not None:
        raise typer.BadParameter("give a plan or widths, not both", param_hint="--widths")
    under_plan = plan is not None or widths is not None
    settings = finetune_settings(set_ or [], under_plan=under_plan, epochs=epochs, steps=steps)
    loaded = load_float(model, image_size=image_size)
    chosen = None if plan is None else read_plan(plan)
    followed = None if teacher is None else load_float(teacher, image_size=image_size)
    splits = data.load(not run.quiet)
    if widths is not None:
        chosen = plan_of_widths(loaded, splits, widths)
    done = finetune_model(
        loaded,
        splits,
        run.folder(model, "finetuned"),
        chosen,
        settings,
        teacher=followed,
        resume=run.resume,
        force=run.force,
        engine=engine,
        note=(lambda text: None) if run.quiet else note,
        progress=not run.quiet,
    )
    if run.as_json:
        print_json({**done.metrics, "model": str(done.model_path)})
        return
    first = done.metrics["float"]["test"]["percent"]
    kind = "float" if done.program is None else "integers"
    console().print(f"test accuracy {done.test} ({kind}); before {first:.2f} % (float)")
    pair = done.against_start
    console().print(f"loss {pair.loss:+.2f} pp [{pair.low:+.2f}, {pair.high:+.2f}], paired")
    if done.program is not None:
        record = done.metrics["models"][0]
        console().print(
            f"weights {record['weight_reduction']:.1f}x, activations {record['activation_reduction']:.1f}x smaller"
        )
    note(f"model: {done.program_path or done.model_path}")
