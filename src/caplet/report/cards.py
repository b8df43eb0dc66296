"""The card of a run: what was reached, and which limits hold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from caplet.report.content import Number
from caplet.runs.records import SEARCH, VERIFIED, RunKind, RunRecords


@dataclass(frozen=True)
class Fact:
    """A large figure: its name, the number, and a line below it."""

    name: str
    number: Number
    note: str


@dataclass(frozen=True)
class LimitRow:
    """Something that was asked for. ``met`` is None if the run has no record to tell."""

    name: str
    asked: str
    found: Number
    met: bool | None


@dataclass(frozen=True)
class ModelRow:
    """A row of the table of models: name, accuracy with interval, loss, bytes, reductions."""

    name: str
    accuracy: Number
    interval: str
    loss: Number | None
    file: Number
    weights: Number
    activations: Number


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
    limits: tuple[LimitRow, ...] = ()
    models: tuple[ModelRow, ...] = ()
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


def _bytes(count: float, source: str = "") -> Number:
    return Number(bytes_text(count), count, source)


def _interval(accuracy: dict[str, Any]) -> str:
    return f"{accuracy['low']:.2f} to {accuracy['high']:.2f} %"


def _percent(accuracy: dict[str, Any], source: str) -> Number:
    return Number(f"{accuracy['percent']:.2f} %", accuracy["percent"], source)


def _accuracy(name: str, accuracy: dict[str, Any], source: str) -> Fact:
    return Fact(name, _percent(accuracy, source), f"{_interval(accuracy)}, n = {accuracy['n']:,}")


def _loss(pair: dict[str, Any], source: str) -> Fact:
    return Fact(
        "Loss on the test split",
        Number(f"{pair['loss']:+.2f} pp", pair["loss"], source),
        f"paired: {pair['low']:+.2f} to {pair['high']:+.2f}, {pair['n10']} lost, {pair['n01']} won,"
        f" p = {pair['p_value']:.2g}",
    )


def _file(model: dict[str, Any], at: str, note: str) -> Fact:
    return Fact("File", _bytes(model["file_bytes"], f"{at}.file_bytes"), f"{model['file']}; {note}")


def _difference(pair: dict[str, Any]) -> str:
    word = "less" if pair["loss"] >= 0 else "more"
    return (
        f"{abs(pair['loss']):.2f} percentage points {word} than the float network (95 % interval of the difference:"
        f" {pair['low']:+.2f} to {pair['high']:+.2f})"
    )


def _limits_status(met: bool) -> str:
    return "Limits met" if met else "Limits not met"


def _quantized(run: RunRecords) -> Card:
    """The card of a quantization: float against integers, limits, every model, engines."""
    metrics = run.metrics
    model, float_, at = metrics["models"][0], metrics["float"], "metrics.json:models.0"
    headline = (
        f"As integers the network takes {bytes_text(model['file_bytes'])},"
        f" {float_['weight_bytes'] / model['file_bytes']:.1f} times less than its float weights, and classifies"
        f" {model['test']['percent']:.2f} % of {model['test']['n']:,} test images correctly:"
        f" {_difference(model['paired'])}."
    )
    facts = [
        _accuracy("Float accuracy", float_["test"], "metrics.json:float.test.percent"),
        _accuracy("Integer accuracy", model["test"], f"{at}.test.percent"),
        _loss(model["paired"], f"{at}.paired.loss"),
        _file(model, at, f"float weights {bytes_text(float_['weight_bytes'])}"),
    ]
    if run.details is not None:
        plans, source = run.details["memory"], f"details.json:models.{model['role']}.memory.fast.bytes"
        note = f"arena, all votes stored; {bytes_text(plans['small']['bytes'])} with votes recomputed"
        facts.append(Fact("Peak RAM", _bytes(plans["fast"]["bytes"], source), note))
    return Card(
        metrics["met"],
        _limits_status(metrics["met"]),
        headline,
        tuple(facts),
        tuple(_quantize_limits(run)),
        tuple(_models(metrics)),
        tuple(_exact(run)),
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


def _quantize_limits(run: RunRecords) -> Iterator[LimitRow]:
    """Every limit that was asked for, against what the first model has."""
    metrics, settings, search = run.metrics, run.settings, run.find(SEARCH)
    model, reference = metrics["models"][0], metrics["float"]["calibration"]
    correct = model["calibration"]["correct"]
    found = 100 * (reference["correct"] - correct) / reference["n"]
    yield LimitRow(
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
            number = Number("not recorded", float("nan")) if taken is None else _bytes(taken)
            yield LimitRow(name, f"at most {bytes_text(asked)}", number, None if taken is None else taken <= asked)


def _models(metrics: dict[str, Any]) -> Iterator[ModelRow]:
    before, once = metrics["float"], Number("1x", 1.0)
    yield ModelRow(
        "float",
        _percent(before["test"], "metrics.json:float.test.percent"),
        _interval(before["test"]).removesuffix(" %"),
        None,
        _bytes(before["weight_bytes"], "metrics.json:float.weight_bytes"),
        once,
        once,
    )
    for index, model in enumerate(metrics["models"]):
        pair, at = model["paired"], f"metrics.json:models.{index}"
        reductions = (
            Number(f"{model[name]:.1f}x", model[name], f"{at}.{name}")
            for name in ("weight_reduction", "activation_reduction")
        )
        yield ModelRow(
            f"integers ({model['role']})",
            _percent(model["test"], f"{at}.test.percent"),
            _interval(model["test"]).removesuffix(" %"),
            Number(f"{pair['loss']:+.2f} [{pair['low']:+.2f}, {pair['high']:+.2f}]", pair["loss"], f"{at}.paired.loss"),
            _bytes(model["file_bytes"], f"{at}.file_bytes"),
            *reductions,
        )


def _exact(run: RunRecords) -> Iterator[tuple[str, bool]]:
    """One sentence for each engine that `caplet verify` compared, as long as it was with this very model."""
    if verified_reason(run) is None:
        for engine in run.files[VERIFIED]["engines"]:
            yield _engine_text(engine), not engine["differing"]


def _engine_text(engine: dict[str, Any]) -> str:
    """What one engine computed, in a sentence."""
    codes, device = engine["codes"], engine["device"]
    text = (
        f"{engine['target']}: {codes - engine['differing']:,} of {codes:,} codes of {engine['images']:,} images equal"
        " the reference integers"
    )
    if device is not None:
        text += f"; {bytes_text(device['flash_bytes'])} of flash, {bytes_text(device['ram_bytes'])} of RAM"
    return text


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
    metrics, test = run.metrics, run.metrics["test"]
    parameters, speed = metrics["parameters"], f"{metrics['images_per_second']:,.0f} images/s"
    best = f"accuracy {100 * max(row['calibration_accuracy'] for row in metrics['history']):.2f} %"

    def fact(name: str, text: str, key: str, note: str) -> Fact:
        return Fact(name, Number(text, metrics[key], f"metrics.json:{key}"), note)

    headline = (
        f"Recipe {metrics['recipe']} on {metrics['data']}: {test['percent']:.2f} % of {test['n']:,} test images are"
        f" classified correctly after {metrics['epochs']} epochs."
    )
    facts = (
        _accuracy("Test accuracy", test, "metrics.json:test.percent"),
        fact("Parameters", f"{parameters:,}", "parameters", f"{bytes_text(4 * parameters)} in 32-bit float"),
        fact("Epochs", f"{metrics['epochs']}", "epochs", f"kept: epoch {metrics['epoch']}; best calibration {best}"),
        fact("Training time", f"{metrics['seconds'] / 60:.1f} min", "seconds", speed),
    )
    return Card(None, "Trained", headline, facts)


def _compressed(run: RunRecords) -> Card:
    """The card of a compression: float against integers, and every limit."""
    metrics = run.metrics
    before, after, found = metrics["float"], metrics["compressed"], metrics["limits"]
    headline = (
        f"The network takes {bytes_text(after['file_bytes'])}, {after['times_smaller']:.1f} times less than its float"
        f" parameters, needs {100 * after['macs_kept']:.3g} % of the multiply-accumulates, and classifies"
        f" {after['test']['percent']:.2f} % of {after['test']['n']:,} test images correctly:"
        f" {_difference(after['paired'])}."
    )
    facts = (
        _accuracy("Float accuracy", before["test"], "metrics.json:float.test.percent"),
        _accuracy("Compressed accuracy", after["test"], "metrics.json:compressed.test.percent"),
        _loss(after["paired"], "metrics.json:compressed.paired.loss"),
        _file(after, "metrics.json:compressed", f"float parameters {bytes_text(before['bytes'])}"),
        Fact(
            "Flash of the firmware",
            _bytes(found["flash"]["found"], "metrics.json:limits.flash.found"),
            "packed constants, and room for code",
        ),
        Fact(
            "RAM",
            _bytes(found["ram"]["found"], "metrics.json:limits.ram.found"),
            f"the arena; {found['macs']['found']:,} multiply-accumulates",
        ),
    )
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
        _limits_status(metrics["met"]),
        headline,
        facts,
        tuple(_compress_limits(metrics)),
        exact=tuple((_engine_text(engine), not engine["differing"]) for engine in metrics["verified"]),
        notes=tuple(notes),
    )


def _compress_limits(metrics: dict[str, Any]) -> Iterator[LimitRow]:
    for name, title, asked_text, found_text in (
        ("max_drop", "Loss on calibration images", lambda x: f"{x:g} pp", lambda x: f"{x:+.2f} pp"),
        ("flash", "Flash", bytes_text, bytes_text),
        ("ram", "RAM", bytes_text, bytes_text),
        ("macs", "Multiply-accumulates", "{:,}".format, "{:,}".format),
    ):
        asked, found = metrics["limits"][name]["asked"], metrics["limits"][name]["found"]
        if asked is not None:
            number = Number(found_text(found), found, f"metrics.json:limits.{name}.found")
            yield LimitRow(title, f"at most {asked_text(asked)}", number, name not in metrics["missed"])


def _pruned(run: RunRecords) -> Card:
    """The card of a pruning run: what remains, and how well it does."""
    metrics = run.metrics
    before, after, macs = metrics["original"], metrics["pruned"], metrics["macs_kept"]
    parameters = f"{100 * metrics['parameters_kept']:.1f} % of the parameters"
    headline = (
        f"{100 * macs:.1f} % of the multiply-accumulates and {parameters} remain; the pruned network classifies"
        f" {after['test']['percent']:.2f} % of {after['test']['n']:,} test images correctly, the one before"
        f" {before['test']['percent']:.2f} %."
    )
    facts = (
        _accuracy("Accuracy before", before["test"], "metrics.json:original.test.percent"),
        _accuracy("Accuracy pruned", after["test"], "metrics.json:pruned.test.percent"),
        _loss(metrics["paired"], "metrics.json:paired.loss"),
        Fact("Multiply-accumulates", Number(f"{100 * macs:.1f} %", macs, "metrics.json:macs_kept"), parameters),
    )
    return Card(metrics["met"], "Target met" if metrics["met"] else "Target not met", headline, facts)


def _finetuned(run: RunRecords) -> Card:
    """The card of a fine-tuning run, in float or under a plan."""
    metrics = run.metrics
    integers = "models" in metrics
    model, what = (metrics["models"][0], "integers") if integers else (metrics, "float")
    at = "metrics.json:models.0" if integers else "metrics.json"
    before, after = metrics["float"]["test"], model["test"]
    headline = (
        f"After {metrics['finetune']['steps']:,} steps of fine-tuning the network classifies {after['percent']:.2f} %"
        f" of {after['n']:,} test images correctly ({what}), the float network that it started from"
        f" {before['percent']:.2f} %."
    )
    facts = [
        _accuracy("Accuracy before, float", before, "metrics.json:float.test.percent"),
        _accuracy(f"Accuracy after, {what}", after, f"{at}.test.percent"),
        _loss(model["paired"], f"{at}.paired.loss"),
    ]
    if integers:
        note = f"weights {model['weight_reduction']:.1f}x, activations {model['activation_reduction']:.1f}x smaller"
        facts.append(Fact("File", _bytes(model["file_bytes"], f"{at}.file_bytes"), note))
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
