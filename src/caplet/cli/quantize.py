"""``caplet quantize``: search widths, write the bit-packed model, measure its integers."""

from typing import TYPE_CHECKING, Any

from caplet.cli.options import with_options
from caplet.cli.output import bar, console, kilobytes, note, percent, points, print_json, show_table
from caplet.cli.shared import DataOptions, Device, Engine, FloatModel, ImportOptions, RunOptions, origin
from caplet.errors import TargetNotMet
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from caplet.api import QuantizeResult


@with_options
def command(
    model: FloatModel,
    settings: QuantizeSettings,
    data: DataOptions,
    importing: ImportOptions,
    run: RunOptions,
    workers: WorkerSettings,
    engine: Engine = "auto",
    device: Device = "auto",
) -> None:
    """Give every tensor of a trained model its own fixed-point width, within an accuracy tolerance and a budget.

    Without --method, an integer program finds the widths, and smaller plans are fitted: caplet's best. The search sees
    the calibration split, cut from the training images; other training images decide (--accept). The test split is
    opened once, at the end, and measured on the integers of the written .caplet file. Exit code 5 means that no model
    met target and budget; the best ones found (model_memory, model_accuracy) are written all the same.

    Example: caplet quantize model.pt --data fashion-mnist --root ~/data --tolerance 0.2
    """
    from caplet.api import quantize

    loaded = importing.load_float(model)
    data.check_size(loaded)
    how: dict[str, Any] = {"engine": engine, "workers": workers, "device": device, **run.begun}
    with bar(not run.quiet) as (step, measured):
        splits, folder = data.load(not run.quiet), run.folder(model, settings.method)
        result = quantize(loaded, splits, folder, settings, note=step, progress=measured, **how)
    if run.as_json:
        print_json({**result.metrics, "folder": str(result.folder), **origin(loaded)})
    else:
        _show(result)
    if not result.met:
        raise TargetNotMet(f"{result.metrics['reason']}; the best models found are in {result.folder}")
    note(f"model: {result.models[0].path}")


def _show(result: "QuantizeResult") -> None:
    """Float against every shipped model: accuracy with interval, bytes, reductions, widths, files."""
    metrics, out = result.metrics, console()
    before = metrics["float"]
    rows = [("float", percent(before["test"]), "", kilobytes(before["weight_bytes"]), "1.0x", "1.0x")]
    for record in metrics["models"]:
        reductions = (f"{record[f'{kind}_reduction']:.1f}x" for kind in ("weight", "activation"))
        size = kilobytes(record["file_bytes"])
        rows.append((record["role"], percent(record["test"]), points(record["paired"]), size, *reductions))
    title = f"Float against integers: {before['test']['n']:,} test images, 95 % intervals"
    show_table(("model", "accuracy (%)", "loss (pp)", "bytes", "W", "A"), rows, title)
    for shipped in result.models:
        widths = ", ".join(
            f"{name} {'/'.join(str(w.get(kind, '-')) for kind in ('weights', 'activations', 'routing'))}"
            for name, w in shipped.record["widths"].items()
        )
        out.print(f"{shipped.role}: {shipped.path}")
        out.print(f"  bits of weights/activations/routing: {widths}")
        counted = shipped.record["output_reduction"]
        out.print(f"  the image and each block's output, which is what Q-CapsNets counts as A: {counted:.1f}x smaller")
    if result.verdict is not None:
        out.print(result.verdict)
    search = metrics["search"]
    out.print(
        f"{metrics['reason']}; {search['probes']} probes, {search['full_passes']:.1f} full passes of"
        f" {search['calibration_images']:,} calibration images, {search['seconds']:.0f} s"
    )
