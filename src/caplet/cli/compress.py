"""``caplet compress``, its settings file, and its demo: from limits to the best network that fits them."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caplet.cli.options import with_options
from caplet.cli.output import bar, console, going_on, kilobytes, note, percent, points, print_json, show_table
from caplet.cli.shared import Device, RunOptions
from caplet.errors import TargetNotMet
from caplet.jobs.compress.settings import CompressSettings
from caplet.settings import Few, Settings, option
from caplet.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from caplet.api import CompressedModel

DEMO = {
    "recipe": "demo",
    "calibration_size": 300,
    "limits": {"max_drop": 0.4},
    "accept": "measured",  # 300 images are too few to show so small a loss of new ones
    "prune": {"probes": [0.5, 0.35]},
    "web": True,
}
"""The settings of the demo."""


class CompressOptions(Settings):
    """How a compression is started."""

    settings: Path | None = option(None, "Run")
    """A TOML file, such as `caplet init` writes; options go before it."""
    jobs: Few | None = option(None, "Run")
    """CPU threads that every stage computes with; stages run one after another. Default: all cores, or
    OMP_NUM_THREADS."""
    dry_run: bool = option(False, "Run")
    """Only say what would be done, with estimated minutes and memory."""


@with_options
def command(
    changes: Annotated[dict[str, Any], CompressSettings],
    options: CompressOptions,
    run: RunOptions,
    workers: WorkerSettings,
    model: Annotated[
        Path | None, typer.Argument(help="A trained float model: .safetensors, or a .pt / .h5 to import.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Get the best network within limits, its firmware, and one page about it.

    Measures how accuracy falls with pruning and with narrower integers, decides how much to leave to either, prunes and
    fine-tunes, searches widths, and verifies the integers on every engine. A part of the calibration split is set
    aside: it must show that new images lose at most what is accepted. Exit code 5 means that no network keeps to all
    limits; the nearest one is written all the same.

    Example: caplet compress model.safetensors --data mnist --root ~/data --max-drop 0.2 --flash 160KB --ram 32KB
    """
    with going_on(tells=not options.dry_run):
        from caplet.api import compress_settings, estimate_compression

        settings = compress_settings(options.settings, changes if model is None else {**changes, "model": str(model)})
        if options.dry_run:
            plan = estimate_compression(settings, threads=options.jobs, progress=not run.quiet)
            if run.as_json:
                print_json(plan)
                return
            for row in plan["stages"]:
                console().print(f"{row['stage']}: {row['about']}: about {row['minutes']:.1f} minutes")
            memory = f"{plan['memory_bytes'] / 1e9:.1f} GB of memory"
            console().print(f"in all about {plan['minutes']:.0f} minutes, {memory}")
            return
        folder = run.folder(Path(settings.model or settings.recipe or ""), "compress")
        result = _compress(settings, folder, run, options.jobs, workers, device)
        if not result.met:
            missed = ", ".join(result.metrics["missed"])
            give = "; or ".join(result.metrics["outlook"])
            raise TargetNotMet(
                f"no network keeps to all limits; the nearest one, in {result.folder}, misses {missed}. What would have"
                f" to give: {give}"
            )


@with_options
def demo(
    run: RunOptions,
    trained: Annotated[
        bool, typer.Option("--trained", help="Only classify, with the digits network that comes with caplet: seconds.")
    ] = False,
) -> None:
    """Train a capsule net on 8x8 digits and compress it. Needs no data and a minute or two.

    It is `caplet compress` with a recipe: prune, fine-tune, quantize, write firmware, compare the integers of every
    engine, and report. With --trained nothing is trained or written: test images are classified at once.
    """
    if trained:
        _classify(run)
        return
    note("training a small capsule network on scikit-learn's digits, then making it smaller")
    result = _compress(CompressSettings.of(DEMO), run.out or Path("runs/demo"), run)
    if not result.met:
        raise TargetNotMet(f"no network was found within the limits; the nearest one is in {result.folder}")


def init(
    out: Annotated[Path, typer.Argument(help="The file to write.")] = Path("compress.toml"),
    model: Annotated[str | None, typer.Option("--model", help="The trained model to compress.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="What to train, where there is no model yet.")] = "digits",
    data: Annotated[str, typer.Option("--data", help="Dataset name or image folder.")] = "digits",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a settings file in which every setting of `caplet compress` is shown and explained.

    Example: caplet init flowers.toml --data flowers && caplet compress --settings flowers.toml
    """
    from caplet.api import write_settings

    write_settings(out, model=model, recipe=recipe, data=data, force=force)
    note(f"{out}: edit it, then run: caplet compress --settings {shlex.quote(str(out))}")


def _compress(
    settings: CompressSettings,
    folder: Path,
    run: RunOptions,
    threads: int | None = None,
    workers: WorkerSettings | None = None,
    device: str = "auto",
) -> "CompressedModel":
    """Compress what the settings name, and print the result."""
    from caplet.api import compress

    how: dict[str, Any] = {"threads": threads, "bars": not run.quiet, "workers": workers, "device": device, **run.begun}
    with bar(not run.quiet) as (step, measured):
        result = compress(None, None, folder, settings, note=step, progress=measured, **how)
    if run.as_json:
        print_json({**result.metrics, "folder": str(result.folder)})
        return result
    metrics = result.metrics
    before, after = metrics["float"], metrics["compressed"]
    rows = [
        ("float", percent(before["test"]), "", kilobytes(before["bytes"]), f"{before['macs']:,}"),
        (
            "compressed",
            percent(after["test"]),
            points(after["paired"]),
            kilobytes(after["file_bytes"]),
            f"{metrics['limits']['macs']['found']:,}",
        ),
    ]
    title = f"Float against the result: {after['paired']['n']:,} test images, 95 % intervals"
    show_table(("model", "accuracy (%)", "loss (pp)", "bytes", "MACs"), rows, title)
    for line in (*filter(None, [result.verdict]), *_verdict(metrics)):
        console().print(line)
    console().print(f"{after['times_smaller']:.1f}x fewer bytes; see {result.report}")
    return result


def _verdict(metrics: dict[str, Any]) -> Iterator[str]:
    """Every limit, every engine, and every speed, a line each."""
    loss = "loss on calibration images (pp)" if metrics["promise"] is None else "loss on new images (pp), at most"
    names = {"max_drop": loss, "flash": "flash", "ram": "RAM", "macs": "MACs"}
    for name, limit in metrics["limits"].items():
        found = f"{limit['found']:+.2f}" if name == "max_drop" else f"{limit['found']:,}"
        kept = "missed" if name in metrics["missed"] else "kept"
        verdict = ", no limit" if limit["asked"] is None else f" of {limit['asked']:,}: {kept}"
        yield f"{names[name]}: {found}{verdict}" + (f" (--ram {metrics['plan']})" if name == "ram" else "")
    for engine in metrics["verified"]:
        same = engine["codes"] - engine["differing"]
        yield f"{engine['target']}: {same:,} of {engine['codes']:,} codes identical"
    threads = metrics["speed"]["threads"]
    for side, rate in metrics["speed"]["sides"].items():
        told = "" if side == "float" else f", {rate['times']:.1f}x the float model's"
        yield f"{side}: {rate['median']:,.0f} images/s on {threads} thread{'s' * (threads > 1)}{told}"


SHADES = " .:-=+*#%@"
"""Characters for pixels, from black to white."""
SHOWN = 4
"""Images that are drawn, side by side."""


def _classify(run: RunOptions) -> None:
    """Classify the test images of scikit-learn's digits with the integers of ``trained:digits``; draw some."""
    from caplet.api import evaluate, load, load_data

    program, test = load("trained:digits"), load_data("digits").test
    found = evaluate(program, test)
    if run.as_json:
        print_json({"model": "trained:digits", "accuracy": found.accuracy, "predictions": found.predictions.tolist()})
        return
    few = range(0, len(test), len(test) // SHOWN + 1)
    pixels = test.images[list(few), 0].tolist()
    for row in range(len(pixels[0])):
        drawn = ("".join(2 * SHADES[value * len(SHADES) // 256] for value in image[row]) for image in pixels)
        print("   ".join(drawn))
    told = (f"{test.classes[int(test.labels[i])]} taken for {test.classes[found.predictions[i]]}" for i in few)
    print("   ".join(text.ljust(2 * len(pixels[0])) for text in told).rstrip())
    console().print(f"{test.name}: accuracy {found.accuracy} in integers ({found.engine}, {found.seconds:.2f} s)")
    note("caplet models --trained lists more networks; caplet demo trains one and makes it smaller")
