"""``caplet quantize``: search widths, write the bit-packed model, measure its integers."""

from caplet.cli.options import with_options
from caplet.cli.output import DataOptions, Engine, FloatModel, ImageSize, RunOptions, note, print_json
from caplet.jobs.quantize.settings import QuantizeSettings


@with_options
def command(
    model: FloatModel,
    settings: QuantizeSettings,
    data: DataOptions,
    run: RunOptions,
    image_size: ImageSize = None,
    engine: Engine = "auto",
) -> None:
    """Give every tensor of a trained model its own fixed-point width, within an accuracy tolerance and a budget.

    The search sees the calibration split, cut from the training images; the test split is opened once, at the end, and
    measured on the integers of the written .caplet file. Exit code 5 means that no model met target and budget; the
    best ones found (model_memory, model_accuracy) are written all the same.

    Example: caplet quantize model.pt --data fashion-mnist --root ~/data --tolerance 0.2 --budget 5MB
    """
    from caplet.api import load_float, quantize
    from caplet.cli.output import bar
    from caplet.cli.verdict import show_quantized
    from caplet.errors import TargetNotMet

    loaded = load_float(model, image_size=image_size)
    with bar(not run.quiet) as (step, measured):
        result = quantize(
            loaded,
            data.load(not run.quiet),
            run.folder(model, settings.method),
            settings,
            resume=run.resume,
            force=run.force,
            engine=engine,
            note=step,
            progress=measured,
        )
    if run.as_json:
        print_json({**result.metrics, "folder": str(result.folder)})
    else:
        show_quantized(result)
    if not result.met:
        raise TargetNotMet(f"{result.metrics['reason']}; the best models found are in {result.folder}")
    note(f"model: {result.models[0].path}")
