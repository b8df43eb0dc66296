"""The card of a run: what was reached, and which limits hold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from caplet.report.content import Number
from caplet.runs.folder import METRICS
from caplet.runs.records import DETAILS, SEARCH, VERIFIED, RunKind, RunRecords

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
    """

    met: bool | None
    status: str
    headline: str
    facts: tuple[Fact, ...]
    limits: tuple[Limit, ...] = ()
    models: tuple[Model, ...] = ()
    exact: tuple[tuple[str, bool], ...] = ()
    notes: tuple[str, ...] = ()


def card(run: RunRecords) -> Card | None:
    """The card of a run, None for a kind of run that has none."""
    return _CARDS[run.kind](run) if run.kind in _CARDS else None


def bytes_text(count: float) -> str:
    """Bytes for people.

    >>> bytes_text(27220801), bytes_text(31500.8), bytes_text(12)
    ('27.22 MB', '31.5 KB', '12 bytes')
    """
    if count >= 1e6:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e3:.1f} KB" if count >= 1e3 else f"{count:,.0f} bytes"


def _at(run: RunRecords, path: str, file: str = METRICS) -> Any:
    """What stands at a path of a record, such as ``models.0.test``."""
    value = run.files[file]
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def _number(run: RunRecords, path: str, text: Callable[[Any], str], file: str = METRICS) -> Number:
    """The number at a path of a record, shown as ``text`` of it."""
    value = _at(run, path, file)
    return Number(text(value), value, f"{file}:{path}")


_PERCENT = "{:.2f} %".format


def _interval(accuracy: dict[str, Any]) -> str:
    return f"{accuracy['low']:.2f} to {accuracy['high']:.2f}"


def _accuracy(run: RunRecords, name: str, path: str) -> Fact:
    found = _at(run, path)
    return (name, _number(run, f"{path}.percent", _PERCENT), f"{_interval(found)} %, n = {found['n']:,}")


def _compared(run: RunRecords, accuracies: dict[str, str], paired: str) -> list[Fact]:
    """Accuracies, name -> path, and the loss from the first to the last."""
    pair = _at(run, paired)
    note = (
        f"paired: {pair['low']:+.2f} to {pair['high']:+.2f}, {pair['n10']} lost, {pair['n01']} won,"
        f" p = {pair['p_value']:.2g}"
    )
    loss = ("Loss on the test split", _number(run, f"{paired}.loss", "{:+.2f} pp".format), note)
    return [*(_accuracy(run, name, path) for name, path in accuracies.items()), loss]


def _of_images(test: dict[str, Any]) -> str:
    return f"{test['percent']:.2f} % of {test['n']:,} test images"


def _against_float(model: dict[str, Any]) -> str:
    """The end of a headline: accuracy and difference."""
    pair = model["paired"]
    return (
        f"classifies {_of_images(model['test'])} correctly: {abs(pair['loss']):.2f} percentage points"
        f" {'less' if pair['loss'] >= 0 else 'more'} than the float network (95 % interval of the difference:"
        f" {pair['low']:+.2f} to {pair['high']:+.2f})."
    )


def _quantized(run: RunRecords) -> Card:
    """The card of a quantization: float against integers, limits, every model, engines."""
    metrics = run.metrics
    model, weights = metrics["models"][0], metrics["float"]["weight_bytes"]
    headline = (
        f"As integers the network takes {bytes_text(model['file_bytes'])},"
        f" {weights / model['file_bytes']:.1f} times less than its float weights, and {_against_float(model)}"
    )
    facts = _compared(run, {"Float accuracy": "float.test", "Integer accuracy": "models.0.test"}, "models.0.paired")
    note = f"{model['file']}; float weights {bytes_text(weights)}"
    facts.append(("File", _number(run, "models.0.file_bytes", bytes_text), note))
    if run.details is not None:
        note = f"arena, all votes stored; {bytes_text(run.details['memory']['small']['bytes'])} with votes recomputed"
        path = f"models.{model['role']}.memory.fast.bytes"
        facts.append(("Peak RAM", _number(run, path, bytes_text, DETAILS), note))
    return Card(
        metrics["met"],
        "Limits met" if metrics["met"] else "Limits not met",
        headline,
        tuple(facts),
        tuple(_quantize_limits(run)),
        tuple(_models(run)),
        () if verified_reason(run) else tuple(map(_engine, run.files[VERIFIED]["engines"])),
        tuple(_quantize_notes(metrics)),
    )


def _quantize_notes(metrics: dict[str, Any]) -> Iterator[str]:
    """What a reader must know about the figures above."""
    if not metrics["met"]:
        yield f"No model within the limits was found: {metrics['reason']}. The best found is shown."
        return
    reference, pair = metrics["float"], metrics["models"][0]["paired"]
    yield (
        f"The tolerance was met on {reference['calibration']['n']:,} calibration images, cut from the training split,"
        " which the search saw. The test split was opened once, at the end; no limit was checked on it."
    )
    allowed = metrics["tolerance"] * (reference["test"]["percent"] / 100 if metrics["relative"] else 1)
    if pair["loss"] > allowed:
        yield (
            f"On the test split the loss of {pair['loss']:.2f} points is above the tolerance, {allowed:.2f} there:"
            " a tolerance met on calibration images is no promise for others."
        )


def _quantize_limits(run: RunRecords) -> Iterator[Limit]:
    """Every limit that was asked for, against what the first model has."""
    metrics, settings, search = run.metrics, run.settings, run.find(SEARCH)
    model, reference = metrics["models"][0], metrics["float"]["calibration"]
    correct = model["calibration"]["correct"]
    found = 100 * (reference["correct"] - correct) / reference["n"]
    yield (
        f"Loss on {reference['n']:,} calibration images",
        f"at most {metrics['tolerance']:g} {'% of the float accuracy' if metrics['relative'] else 'pp'}",
        Number(f"{found:+.2f} pp ({correct:,} of {reference['n']:,} correct)", found),
        None if search is None or search["needed"] is None else correct >= search["needed"],
    )
    total, ram = model["memory"][-1], settings.get("ram")
    for name, asked, taken in (
        ("Weights", metrics["budget_bytes"], total["weight_bits"] / 8),
        ("Activations of one image", settings.get("activation_budget"), total["activation_bits"] / 8),
        ("RAM, all votes stored", ram, None if run.details is None else run.details["memory"]["fast"]["bytes"]),
    ):
        if asked is not None:
            number = Number("not recorded", float("nan")) if taken is None else Number(bytes_text(taken), taken)
            yield (name, f"at most {bytes_text(asked)}", number, None if taken is None else taken <= asked)


def _models(run: RunRecords) -> Iterator[Model]:
    once = Number("1x", 1.0)
    test, size = _number(run, "float.test.percent", _PERCENT), _number(run, "float.weight_bytes", bytes_text)
    yield "float", test, _interval(_at(run, "float.test")), "", size, once, once
    for index, model in enumerate(run.metrics["models"]):
        pair, at = model["paired"], f"models.{index}"
        interval = f" [{pair['low']:+.2f}, {pair['high']:+.2f}]"
        yield (
            f"integers ({model['role']})",
            _number(run, f"{at}.test.percent", _PERCENT),
            _interval(model["test"]),
            _number(run, f"{at}.paired.loss", ("{:+.2f}" + interval).format),
            _number(run, f"{at}.file_bytes", bytes_text),
            *(_number(run, f"{at}.{name}_reduction", "{:.1f}x".format) for name in ("weight", "activation")),
        )


def _engine(engine: dict[str, Any]) -> tuple[str, bool]:
    """What one engine that `caplet verify` compared computed, in a sentence, and whether it was the same integers."""
    codes, device = engine["codes"], engine["device"]
    text = (
        f"{engine['target']}: {codes - engine['differing']:,} of {codes:,} codes of {engine['images']:,} images equal"
        " the reference integers"
    )
    if device is not None:
        text += f"; {bytes_text(device['flash_bytes'])} of flash, {bytes_text(device['ram_bytes'])} of RAM"
    return text, not engine["differing"]


def verified_reason(run: RunRecords) -> str | None:
    """Why the card says nothing about other engines, or None if it does."""
    record = run.find(VERIFIED)
    if record is None:
        return "bit-exactness: `caplet verify` was not run on this folder."
    if run.details is None or record["sha256"] != run.details["sha256"]:
        return "bit-exactness: `caplet verify` was run on another model than the present one; run it again."
    return None


def _trained(run: RunRecords) -> Card:
    """The card of a training run."""
    metrics = run.metrics
    size = f"{bytes_text(4 * metrics['parameters'])} in 32-bit float"
    best = f"accuracy {100 * max(row['calibration_accuracy'] for row in metrics['history']):.2f} %"
    headline = (
        f"Recipe {metrics['recipe']} on {metrics['data']}: {_of_images(metrics['test'])} are"
        f" classified correctly after {metrics['epochs']} epochs."
    )
    epochs = _number(run, "epochs", str)
    minutes = _number(run, "seconds", lambda seconds: f"{seconds / 60:.1f} min")
    facts = (
        _accuracy(run, "Test accuracy", "test"),
        ("Parameters", _number(run, "parameters", "{:,}".format), size),
        ("Epochs", epochs, f"kept: epoch {metrics['epoch']}; best calibration {best}"),
        ("Training time", minutes, f"{metrics['images_per_second']:,.0f} images/s"),
    )
    return Card(None, "Trained", headline, facts)


def _compressed(run: RunRecords) -> Card:
    """The card of a compression: float against integers, and every limit."""
    metrics = run.metrics
    before, after = metrics["float"], metrics["compressed"]
    headline = (
        f"The network takes {bytes_text(after['file_bytes'])}, {after['times_smaller']:.1f} times less than its float"
        f" parameters, needs {100 * after['macs_kept']:.3g} % of the multiply-accumulates, and {_against_float(after)}"
    )
    names = {"Float accuracy": "float.test", "Compressed accuracy": "compressed.test"}
    facts = _compared(run, names, "compressed.paired")
    for name, path, note in (
        ("File", "compressed.file_bytes", f"{after['file']}; float parameters {bytes_text(before['bytes'])}"),
        ("Flash of the firmware", "limits.flash.found", "packed constants, and room for code"),
        ("RAM", "limits.ram.found", f"the arena; {metrics['limits']['macs']['found']:,} multiply-accumulates"),
    ):
        facts.append((name, _number(run, path, bytes_text), note))
    notes = [
        f"The limits were checked on {before['calibration']['n']:,} calibration images, cut from the training split. No"
        " decision looked at the test split.",
        "The compressed accuracy is that of the integers. A device whose engine is marked bit-exact computes the same"
        " codes, so its accuracy is the same.",
    ]
    if metrics["missed"]:
        give = "; or ".join(metrics["outlook"])
        notes.insert(0, f"No network meets all limits; the nearest one is shown. What would have to give: {give}.")
    return Card(
        metrics["met"],
        "Limits met" if metrics["met"] else "Limits not met",
        headline,
        tuple(facts),
        tuple(_compress_limits(run)),
        exact=tuple(map(_engine, metrics["verified"])),
        notes=tuple(notes),
    )


def _compress_limits(run: RunRecords) -> Iterator[Limit]:
    for name, title, asked_text, found_text in (
        ("max_drop", "Loss on calibration images", "{:g} pp".format, "{:+.2f} pp".format),
        ("flash", "Flash", bytes_text, bytes_text),
        ("ram", "RAM", bytes_text, bytes_text),
        ("macs", "Multiply-accumulates", "{:,}".format, "{:,}".format),
    ):
        asked = run.metrics["limits"][name]["asked"]
        if asked is not None:
            found = _number(run, f"limits.{name}.found", found_text)
            yield (title, f"at most {asked_text(asked)}", found, name not in run.metrics["missed"])


def _pruned(run: RunRecords) -> Card:
    """The card of a pruning run: what remains, and how well it does."""
    metrics = run.metrics
    macs = _number(run, "macs_kept", lambda fraction: f"{100 * fraction:.1f} %")
    parameters = f"{100 * metrics['parameters_kept']:.1f} % of the parameters"
    headline = (
        f"{macs.text} of the multiply-accumulates and {parameters} remain; the pruned network classifies"
        f" {_of_images(metrics['pruned']['test'])} correctly, the one before"
        f" {metrics['original']['test']['percent']:.2f} %."
    )
    names = {"Accuracy before": "original.test", "Accuracy pruned": "pruned.test"}
    facts = (*_compared(run, names, "paired"), ("Multiply-accumulates", macs, parameters))
    return Card(metrics["met"], "Target met" if metrics["met"] else "Target not met", headline, facts)


def _finetuned(run: RunRecords) -> Card:
    """The card of a fine-tuning run, in float or under a plan."""
    metrics = run.metrics
    integers = "models" in metrics
    what, at = ("integers", "models.0.") if integers else ("float", "")
    headline = (
        f"After {metrics['finetune']['steps']:,} steps of fine-tuning the network classifies"
        f" {_of_images(_at(run, f'{at}test'))} correctly ({what}), the float network that it started from"
        f" {metrics['float']['test']['percent']:.2f} %."
    )
    names = {"Accuracy before, float": "float.test", f"Accuracy after, {what}": f"{at}test"}
    facts = _compared(run, names, f"{at}paired")
    if integers:
        model = metrics["models"][0]
        note = f"weights {model['weight_reduction']:.1f}x, activations {model['activation_reduction']:.1f}x smaller"
        facts.append(("File", _number(run, "models.0.file_bytes", bytes_text), note))
    notes = tuple(f"Alarm during training: {alarm}" for alarm in metrics.get("alarms", ()))
    return Card(None, "Fine-tuned", headline, tuple(facts), notes=notes)


_CARDS: dict[RunKind, Callable[[RunRecords], Card]] = {
    RunKind.TRAIN: _trained,
    RunKind.QUANTIZE: _quantized,
    RunKind.PRUNE: _pruned,
    RunKind.FINETUNE: _finetuned,
    RunKind.QAT: _finetuned,
    RunKind.COMPRESS: _compressed,
}
