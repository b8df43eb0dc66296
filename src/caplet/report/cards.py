"""The card of a run: what was reached, and which limits hold."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from caplet.metrics import Accuracy, Paired
from caplet.report.content import Number
from caplet.runs.finished import WEB_PAGE, WEB_STAGE, RunRecords
from caplet.runs.folder import METRICS
from caplet.runs.records import (
    DETAILS,
    CompressMetrics,
    FinetuneMetrics,
    ModelDetails,
    PruneMetrics,
    QatMetrics,
    QuantizeMetrics,
    ShippedMetrics,
    TrainMetrics,
    Verified,
)
from caplet.runs.swept import SweepMetrics

Fact = tuple[str, Number, str]
"""A large figure: its name, the number, and a line below it."""
Limit = tuple[str, str, Number, bool | None]
"""What was asked for: its name, the limit, what was reached, and whether it is met; None if no record tells."""
Model = tuple[Number | str, ...]
"""A row of the table of models: name, accuracy, interval, loss, bytes, reductions of weights and activations."""


@dataclass(frozen=True)
class Card:
    """The card of one run.

    Attributes:
        met: whether every limit holds; None if the run had none.
        status: in a word or two.
        headline: one sentence for a reader in a hurry.
        facts, limits, models: what stands on the card.
        exact: one sentence per engine that was compared, and whether it computed the same integers.
        notes: sentences below.
        links: words, and the page beside this one that they lead to.
    """

    met: bool | None
    status: str
    headline: str
    facts: tuple[Fact, ...]
    limits: tuple[Limit, ...] = ()
    models: tuple[Model, ...] = ()
    exact: tuple[tuple[str, bool], ...] = ()
    notes: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


def card(run: RunRecords[Any]) -> Card | None:
    """The card of a run, None for a kind of run that has none."""
    return _CARDS[run.job](run) if run.job in _CARDS else None


def bytes_text(count: float) -> str:
    """Bytes for people.

    >>> bytes_text(27220801), bytes_text(31500.8), bytes_text(12)
    ('27.22 MB', '31.5 KB', '12 bytes')
    """
    if count >= 1e6:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e3:.1f} KB" if count >= 1e3 else f"{count:,.0f} bytes"


def _at(metrics: object, path: str) -> Any:
    """What stands at a path of a run's metrics, such as ``models.0.test``."""
    value: Any = metrics
    for key in path.split("."):
        value = value[key] if isinstance(value, Mapping) else value[int(key)] if key.isdigit() else getattr(value, key)
    return value


def _number(metrics: object, path: str, text: Callable[[Any], str]) -> Number:
    """The number at a path of a run's metrics, shown as ``text`` of it."""
    value = _at(metrics, path)
    return Number(text(value), value, f"{METRICS}:{path}")


_PERCENT = "{:.2f} %".format
_NEW_IMAGES = "Loss on new images"


def _interval(accuracy: Accuracy) -> str:
    return f"{accuracy.low:.2f} to {accuracy.high:.2f}"


def _accuracy(metrics: object, name: str, path: str) -> Fact:
    found = _at(metrics, path)
    return (name, _number(metrics, f"{path}.percent", _PERCENT), f"{_interval(found)} %, n = {found.n:,}")


def _compared(metrics: object, accuracies: dict[str, str], paired: str) -> list[Fact]:
    """Accuracies, name -> path, and the loss from the first to the last."""
    pair: Paired = _at(metrics, paired)
    note = f"paired: {pair.low:+.2f} to {pair.high:+.2f}, {pair.n10} lost, {pair.n01} won, p = {pair.p_value:.2g}"
    loss = ("Loss on the test split", _number(metrics, f"{paired}.loss", "{:+.2f} pp".format), note)
    return [*(_accuracy(metrics, name, path) for name, path in accuracies.items()), loss]


def _of_images(test: Accuracy) -> str:
    return f"{test.percent:.2f} % of {test.n:,} test images"


def _against_float(test: Accuracy, pair: Paired) -> str:
    """The end of a headline: accuracy and difference."""
    return (
        f"classifies {_of_images(test)} correctly: {abs(pair.loss):.2f} percentage points"
        f" {'less' if pair.loss >= 0 else 'more'} than the float network (95 % interval of the difference:"
        f" {pair.low:+.2f} to {pair.high:+.2f})."
    )


def _quantized(run: RunRecords[Any]) -> Card:
    """The card of a quantization: float against integers, limits, every model, engines."""
    metrics, details = run.metrics, run.details
    model, weights = metrics.models[0], metrics.float.weight_bytes
    headline = (
        f"As integers the network takes {bytes_text(model.file_bytes)},"
        f" {weights / model.file_bytes:.1f} times less than its float weights, and"
        f" {_against_float(model.test, model.paired)}"
    )
    names = {"Float accuracy": "float.test", "Integer accuracy": "models.0.test"}
    facts = _compared(metrics, names, "models.0.paired")
    note = f"{model.file}; float weights {bytes_text(weights)}"
    facts.append(("File", _number(metrics, "models.0.file_bytes", bytes_text), note))
    if details is not None:
        fast, small = (details.memory[ram]["bytes"] for ram in ("fast", "small"))
        note = f"arena, all votes stored; {bytes_text(small)} with votes recomputed"
        source = f"{DETAILS}:models.{model.role}.memory.fast.bytes"
        facts.append(("Peak RAM", Number(bytes_text(fast), fast, source), note))
    return Card(
        metrics.met,
        "Limits met" if metrics.met else "Limits not met",
        headline,
        tuple(facts),
        tuple(_quantize_limits(run)),
        tuple(_models(metrics)),
        () if run.verify is None or verified_reason(run) else tuple(map(_engine, run.verify.engines)),
        (*_quantize_notes(metrics), *_times(details)),
    )


def _times(details: ModelDetails | None) -> Iterator[str]:
    """How long an image is expected to take on devices."""
    if details is not None and details.times:
        found = "; ".join(f"{name} {text}" for name, text in details.times.items())
        yield f"An image takes about, by estimates for memory without wait states, no chip was measured: {found}."


def _quantize_notes(metrics: QuantizeMetrics) -> Iterator[str]:
    """What a reader must know about the figures above."""
    if not metrics.met:
        yield f"No model within the limits was found: {metrics.reason}. The best found is shown."
        return
    reference, loss = metrics.float, metrics.models[0].paired.loss
    if metrics.promise is not None:
        yield f"{metrics.promise.verdict(loss).capitalize()}. The test split was opened once, at the end."
        return
    yield (
        f"The tolerance was met on {reference.calibration.n:,} calibration images, cut from the training split,"
        " which the search saw. The test split was opened once, at the end; no limit was checked on it."
    )
    allowed = metrics.tolerance * (reference.test.percent / 100 if metrics.relative else 1)
    if loss > allowed:
        yield (
            f"On the test split the loss of {loss:.2f} points is above the tolerance, {allowed:.2f} there:"
            " a tolerance met on calibration images is no promise for others."
        )


def _quantize_limits(run: RunRecords[QuantizeMetrics]) -> Iterator[Limit]:
    """Every limit that was asked for, against what the first model has."""
    metrics, search = run.metrics, run.search
    model, reference = metrics.models[0], metrics.float.calibration
    correct, allowed = model.calibration.correct, f"at most {metrics.tolerance:g} "
    allowed += "% of the float accuracy" if metrics.relative else "pp"
    found = 100 * (reference.correct - correct) / reference.n
    number = Number(f"{found:+.2f} pp ({correct:,} of {reference.n:,} correct)", found)
    if metrics.promise is not None and (look := metrics.promise.expected) is not None:
        yield (_NEW_IMAGES, allowed, Number(f"{look.limit:.2f} pp at most", look.limit), look.accepted)
    elif metrics.promise is None:
        kept = None if search is None else correct >= search.needed
        yield (f"Loss on {reference.n:,} calibration images", allowed, number, kept)
    total, ram = model.memory[-1], None if run.details is None else run.details.memory["fast"]["bytes"]
    for name, asked, taken in (
        ("Weights", metrics.budget_bytes, total["weight_bits"] / 8),
        ("Activations of one image", run.settings.get("activation_budget"), total["activation_bits"] / 8),
        ("RAM, all votes stored", run.settings.get("ram"), ram),
    ):
        if asked is not None:
            number = Number("not recorded", float("nan")) if taken is None else Number(bytes_text(taken), taken)
            yield (name, f"at most {bytes_text(asked)}", number, None if taken is None else taken <= asked)


def _models(metrics: QuantizeMetrics) -> Iterator[Model]:
    once = Number("1x", 1.0)
    test, size = _number(metrics, "float.test.percent", _PERCENT), _number(metrics, "float.weight_bytes", bytes_text)
    yield "float", test, _interval(metrics.float.test), "", size, once, once
    for index, model in enumerate(metrics.models):
        at, interval = f"models.{index}", f" [{model.paired.low:+.2f}, {model.paired.high:+.2f}]"
        yield (
            f"integers ({model.role})",
            _number(metrics, f"{at}.test.percent", _PERCENT),
            _interval(model.test),
            _number(metrics, f"{at}.paired.loss", ("{:+.2f}" + interval).format),
            _number(metrics, f"{at}.file_bytes", bytes_text),
            *(_number(metrics, f"{at}.{name}_reduction", "{:.1f}x".format) for name in ("weight", "activation")),
        )


def _engine(engine: Verified) -> tuple[str, bool]:
    """What one engine that `caplet verify` compared computed, in a sentence, and whether it was the same integers."""
    codes, device = engine.codes, engine.device
    text = (
        f"{engine.target}: {codes - engine.differing:,} of {codes:,} codes of {engine.images:,} images equal"
        " the reference integers"
    )
    if device is not None and "flash_bytes" in device:
        text += f"; {bytes_text(device['flash_bytes'])} of flash, {bytes_text(device['ram_bytes'])} of RAM"
    if device is not None and "microseconds_median" in device:
        text += f"; {device['microseconds_median'] / 1000:,.1f} ms an image, measured on the board"
    return text, not engine.differing


def verified_reason(run: RunRecords[Any]) -> str | None:
    """Why the card says nothing about other engines, or None if it does."""
    if run.verify is None:
        return "bit-exactness: `caplet verify` was not run on this folder."
    if run.details is None or run.verify.sha256 != run.details.sha256:
        return "bit-exactness: `caplet verify` was run on another model than the present one; run it again."
    return None


def _trained(run: RunRecords[TrainMetrics]) -> Card:
    """The card of a training run."""
    metrics = run.metrics
    size = f"{bytes_text(4 * metrics.parameters)} in 32-bit float"
    best = f"accuracy {100 * max(row['calibration_accuracy'] for row in metrics.history):.2f} %"
    headline = (
        f"Recipe {metrics.recipe} on {metrics.data}: {_of_images(metrics.test)} are"
        f" classified correctly after {metrics.epochs} epochs."
    )
    minutes = _number(metrics, "seconds", lambda seconds: f"{seconds / 60:.1f} min")
    facts = (
        _accuracy(metrics, "Test accuracy", "test"),
        ("Parameters", _number(metrics, "parameters", "{:,}".format), size),
        ("Epochs", _number(metrics, "epochs", str), f"kept: epoch {metrics.epoch}; best calibration {best}"),
        ("Training time", minutes, f"{metrics.images_per_second:,.0f} images/s"),
    )
    return Card(None, "Trained", headline, facts)


def _compressed(run: RunRecords[CompressMetrics]) -> Card:
    """The card of a compression: float against integers, and every limit."""
    metrics = run.metrics
    before, after = metrics.float, metrics.compressed
    headline = (
        f"The network takes {bytes_text(after.file_bytes)}, {after.times_smaller:.1f} times less than its float"
        f" parameters, needs {100 * after.macs_kept:.3g} % of the multiply-accumulates, and"
        f" {_against_float(after.test, after.paired)}"
    )
    web = metrics.stages.get(WEB_STAGE)
    names = {"Float accuracy": "float.test", "Compressed accuracy": "compressed.test"}
    facts = _compared(metrics, names, "compressed.paired")
    for name, path, note in (
        ("File", "compressed.file_bytes", f"{after.file}; float parameters {bytes_text(before.bytes)}"),
        ("Flash of the firmware", "limits.flash.found", "packed constants, and room for code"),
        ("RAM", "limits.ram.found", f"--ram {metrics.plan}; {metrics.limits['macs']['found']:,} multiply-accumulates"),
    ):
        facts.append((name, _number(metrics, path, bytes_text), note))
    checked = "" if metrics.promise is None else f"{metrics.promise.verdict(after.paired.loss).capitalize()}."
    notes = [
        checked
        or f"The limits were checked on {before.calibration.n:,} calibration images, cut from the training split. No"
        " decision looked at the test split.",
        "The compressed accuracy is that of the integers. A device whose engine is marked bit-exact computes the same"
        " codes, so its accuracy is the same.",
    ]
    if metrics.missed:
        give = "; or ".join(metrics.outlook)
        notes.insert(0, f"No network meets all limits; the nearest one is shown. What would have to give: {give}.")
    return Card(
        metrics.met,
        "Limits met" if metrics.met else "Limits not met",
        headline,
        tuple(facts),
        tuple(_found_limits(metrics)),
        exact=tuple(map(_engine, metrics.verified)),
        notes=(*notes, *_times(run.details)),
        links=() if web is None else (("Try these integers in a browser", f"{web.folder.name}/{WEB_PAGE}"),),
    )


def _found_limits(metrics: CompressMetrics | SweepMetrics) -> Iterator[Limit]:
    loss = "Loss on calibration images" if metrics.promise is None else _NEW_IMAGES
    for name, title, asked_text, found_text in (
        ("errors", "Errors on calibration images", _PERCENT, _PERCENT),
        ("max_drop", loss, "{:g} pp".format, "{:+.2f} pp".format),
        ("flash", "Flash", bytes_text, bytes_text),
        ("ram", "RAM", bytes_text, bytes_text),
        ("macs", "Multiply-accumulates", "{:,}".format, "{:,}".format),
    ):
        asked = metrics.limits.get(name, {}).get("asked")
        if asked is not None:
            found = _number(metrics, f"limits.{name}.found", found_text)
            yield (title, f"at most {asked_text(asked)}", found, name not in metrics.missed)


def _pruned(run: RunRecords[PruneMetrics]) -> Card:
    """The card of a pruning run: what remains, and how well it does."""
    metrics = run.metrics
    before, after = metrics.original.test, metrics.pruned.test
    macs = _number(metrics, "macs_kept", lambda fraction: f"{100 * fraction:.1f} %")
    parameters = f"{100 * metrics.parameters_kept:.1f} % of the parameters"
    headline = (
        f"{macs.text} of the multiply-accumulates and {parameters} remain; the pruned network classifies"
        f" {_of_images(after)} correctly, the one before {before.percent:.2f} %."
    )
    names = {"Accuracy before": "original.test", "Accuracy pruned": "pruned.test"}
    facts = (*_compared(metrics, names, "paired"), ("Multiply-accumulates", macs, parameters))
    return Card(metrics.met, "Target met" if metrics.met else "Target not met", headline, facts)


def _finetuned(run: RunRecords[FinetuneMetrics | QatMetrics]) -> Card:
    """The card of a fine-tuning run, in float or under a plan."""
    metrics, before = run.metrics, run.metrics.float.test
    found = metrics if isinstance(metrics, FinetuneMetrics) else metrics.models[0]
    what, at = ("float", "") if found is metrics else ("integers", "models.0.")
    headline = (
        f"After {metrics.finetune.steps:,} steps of fine-tuning the network classifies"
        f" {_of_images(found.test)} correctly ({what}), the float network that it started from {before.percent:.2f} %."
    )
    names = {"Accuracy before, float": "float.test", f"Accuracy after, {what}": f"{at}test"}
    facts = _compared(metrics, names, f"{at}paired")
    if isinstance(found, ShippedMetrics):
        note = f"weights {found.weight_reduction:.1f}x, activations {found.activation_reduction:.1f}x smaller"
        facts.append(("File", _number(metrics, "models.0.file_bytes", bytes_text), note))
    notes = tuple(f"Alarm during training: {alarm}" for alarm in getattr(metrics, "alarms", ()))
    return Card(None, "Fine-tuned", headline, tuple(facts), notes=notes)


def _swept(run: RunRecords[SweepMetrics]) -> Card:
    """The card of a sweep: its winner's, with the sweep's limits."""
    notes = [f"The best network misses a limit; what would have to give: {text}." for text in run.metrics.outlook]
    notes.append("Calibration images chose among networks, so they flatter the winner. No limit looked at test images.")
    limits = tuple(_found_limits(run.metrics))
    return replace(_quantized(run), limits=limits, notes=(*notes, *_times(run.details)))


_CARDS: dict[str, Callable[[RunRecords[Any]], Card]] = {
    "train": _trained,
    "quantize": _quantized,
    "prune": _pruned,
    "finetune": _finetuned,
    "qat": _finetuned,
    "compress": _compressed,
    "sweep": _swept,
}
