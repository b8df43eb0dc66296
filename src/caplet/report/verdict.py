"""The verdict: what was reached, and which limits hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from caplet.report.figure import Number
from caplet.report.records import SEARCH, VERIFIED, RunRecords


@dataclass(frozen=True)
class Fact:
    """A large figure: its name, the number, and a line below it."""

    name: str
    number: Number
    note: str


@dataclass(frozen=True)
class Limit:
    """Something that was asked for. ``met`` is None where the run has no record to tell."""

    name: str
    asked: str
    found: Number
    met: bool | None


@dataclass(frozen=True)
class Model:
    """A row of the table of models: name, accuracy with interval, loss, bytes, reductions."""

    name: str
    accuracy: Number
    interval: str
    loss: Number | None
    file: Number
    weights: Number
    activations: Number


@dataclass(frozen=True)
class Verdict:
    """The card of one run.

    Attributes:
        run: the run's name.
        met: whether every limit holds; None where the run had none.
        status: in a word or two.
        headline: one sentence for a reader in a hurry.
        facts, limits, models: what stands on the card.
        exact: one sentence per engine that was compared, and whether it computed the same integers.
        notes: sentences below.
    """

    run: str
    met: bool | None
    status: str
    headline: str
    facts: tuple[Fact, ...]
    limits: tuple[Limit, ...] = ()
    models: tuple[Model, ...] = ()
    exact: tuple[tuple[str, bool], ...] = ()
    notes: tuple[str, ...] = ()


def bytes_text(count: float) -> str:
    """Bytes for people.

    >>> bytes_text(27220801), bytes_text(31500.8), bytes_text(12)
    ('27.22 MB', '31.5 KB', '12 bytes')
    """
    if count >= 1e6:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e3:.1f} KB" if count >= 1e3 else f"{count:,.0f} bytes"


def interval_text(accuracy: dict[str, Any]) -> str:
    """The interval and n of a recorded accuracy."""
    return f"{accuracy['low']:.2f} to {accuracy['high']:.2f} %, n = {accuracy['n']:,}"


def quantized(run: RunRecords) -> Verdict:
    metrics = run.metrics
    model, float_ = metrics["models"][0], metrics["float"]
    pair, at = model["paired"], "metrics.json:models.0"
    file_times = float_["weight_bytes"] / model["file_bytes"]
    lost = f"{abs(pair['loss']):.2f} percentage points {'less' if pair['loss'] >= 0 else 'more'}"
    headline = (
        f"As integers the network takes {bytes_text(model['file_bytes'])}, {file_times:.1f} times less than its float"
        f" weights, and classifies {model['test']['percent']:.2f} % of {model['test']['n']:,} test images correctly:"
        f" {lost} than in float (95 % interval of the difference: {pair['low']:+.2f} to {pair['high']:+.2f})."
    )
    facts = [
        Fact(
            "Float accuracy",
            Number(f"{float_['test']['percent']:.2f} %", float_["test"]["percent"], "metrics.json:float.test.percent"),
            interval_text(float_["test"]),
        ),
        Fact(
            "Integer accuracy",
            Number(f"{model['test']['percent']:.2f} %", model["test"]["percent"], f"{at}.test.percent"),
            interval_text(model["test"]),
        ),
        Fact(
            "Loss on the test split",
            Number(f"{pair['loss']:+.2f} pp", pair["loss"], f"{at}.paired.loss"),
            f"paired: {pair['low']:+.2f} to {pair['high']:+.2f}, {pair['n10']} lost, {pair['n01']} won,"
            f" p = {pair['p_value']:.2g}",
        ),
        Fact(
            "File",
            Number(bytes_text(model["file_bytes"]), model["file_bytes"], f"{at}.file_bytes"),
            f"{model['file']}; float weights {bytes_text(float_['weight_bytes'])}",
        ),
    ]
    if run.details is not None:
        plans, place = run.details["memory"], f"details.json:models.{model['role']}.memory"
        facts.append(
            Fact(
                "Peak RAM",
                Number(bytes_text(plans["fast"]["bytes"]), plans["fast"]["bytes"], f"{place}.fast.bytes"),
                f"arena, all votes stored; {bytes_text(plans['small']['bytes'])} with votes recomputed",
            )
        )
    limits = tuple(_limits(run))
    return Verdict(
        run.name,
        metrics["met"],
        "Limits met" if metrics["met"] else "Limits not met",
        headline,
        tuple(facts),
        limits,
        tuple(_models(run)),
        tuple(_exact(run)),
        tuple(_notes(metrics)),
    )


def _notes(metrics: dict[str, Any]) -> Iterator[str]:
    """What a reader must know about the figures above."""
    if not metrics["met"]:
        yield f"No model within the limits was found: {metrics['reason']}. The best found is shown."
        return
    reference, pair = metrics["float"], metrics["models"][0]["paired"]
    yield (
        f"The tolerance was kept on {reference['calibration']['n']:,} calibration images, cut from the training split,"
        " which the search saw. The test split was opened once, at the end; no limit was checked on it."
    )
    allowed = metrics["tolerance"] * (reference["test"]["percent"] / 100 if metrics["relative"] else 1)
    if pair["loss"] > allowed:
        yield (
            f"On the test split the loss of {pair['loss']:.2f} points is above the tolerance, {allowed:.2f} there:"
            " keeping a tolerance on calibration images is no promise for others."
        )


def _limits(run: RunRecords) -> Iterator[Limit]:
    """Every limit that was asked for, against what the first model has."""
    metrics, settings = run.metrics, run.settings
    model, reference = metrics["models"][0], metrics["float"]["calibration"]
    found = 100 * (reference["correct"] - model["calibration"]["correct"]) / reference["n"]
    search = run.find(SEARCH)
    needed = None if search is None else search["needed"]
    unit = "% of the float accuracy" if metrics["relative"] else "pp"
    yield Limit(
        f"Loss on {reference['n']:,} calibration images",
        f"at most {metrics['tolerance']:g} {unit}",
        Number(f"{found:+.2f} pp ({model['calibration']['correct']:,} of {reference['n']:,} correct)", found),
        None if needed is None else model["calibration"]["correct"] >= needed,
    )
    total = model["memory"][-1]
    for name, asked, kind in (
        ("Weights", metrics["budget_bytes"], "weight_bits"),
        ("Activations of one image", settings.get("activation_budget"), "activation_bits"),
    ):
        if asked is not None:
            taken = total[kind] / 8
            number = Number(bytes_text(taken), taken)
            yield Limit(name, f"at most {bytes_text(asked)}", number, taken <= asked)
    ram = settings.get("ram")
    if ram is not None:
        arena = None if run.details is None else run.details["memory"]["fast"]["bytes"]
        number = Number("not recorded", float("nan")) if arena is None else Number(bytes_text(arena), arena)
        yield Limit(
            "RAM, all votes stored", f"at most {bytes_text(ram)}", number, None if arena is None else arena <= ram
        )


def _models(run: RunRecords) -> Iterator[Model]:
    float_ = run.metrics["float"]
    test = float_["test"]
    yield Model(
        "float",
        Number(f"{test['percent']:.2f} %", test["percent"], "metrics.json:float.test.percent"),
        f"{test['low']:.2f} to {test['high']:.2f}",
        None,
        Number(bytes_text(float_["weight_bytes"]), float_["weight_bytes"], "metrics.json:float.weight_bytes"),
        Number("1x", 1.0),
        Number("1x", 1.0),
    )
    for index, model in enumerate(run.metrics["models"]):
        test, pair, at = model["test"], model["paired"], f"metrics.json:models.{index}"
        yield Model(
            f"integers ({model['role']})",
            Number(f"{test['percent']:.2f} %", test["percent"], f"{at}.test.percent"),
            f"{test['low']:.2f} to {test['high']:.2f}",
            Number(f"{pair['loss']:+.2f} [{pair['low']:+.2f}, {pair['high']:+.2f}]", pair["loss"], f"{at}.paired.loss"),
            Number(bytes_text(model["file_bytes"]), model["file_bytes"], f"{at}.file_bytes"),
            Number(f"{model['weight_reduction']:.1f}x", model["weight_reduction"], f"{at}.weight_reduction"),
            Number(
                f"{model['activation_reduction']:.1f}x", model["activation_reduction"], f"{at}.activation_reduction"
            ),
        )


def _exact(run: RunRecords) -> Iterator[tuple[str, bool]]:
    """One sentence for each engine that `caplet verify` compared, as long as it was with this very model."""
    record = run.find(VERIFIED)
    if record is None or run.details is None or record["sha256"] != run.details["sha256"]:
        return
    for engine in record["engines"]:
        yield engine_text(engine), not engine["differing"]


def engine_text(engine: dict[str, Any]) -> str:
    """What one engine computed, in a sentence."""
    codes, differing, device = engine["codes"], engine["differing"], engine["device"]
    text = (
        f"{engine['target']}: {codes - differing:,} of {codes:,} codes of {engine['images']:,} images equal the"
        " reference integers"
    )
    if device is not None:
        text += f"; {bytes_text(device['flash_bytes'])} of flash, {bytes_text(device['ram_bytes'])} of RAM"
    return text


def verified_reason(run: RunRecords) -> str | None:
    """Why the card says nothing about other engines, or None where it does."""
    record = run.find(VERIFIED)
    if record is None:
        return "bit-exactness: `caplet verify` was not run on this folder."
    if run.details is None or record["sha256"] != run.details["sha256"]:
        return "bit-exactness: `caplet verify` was run on another model than the present one; run it again."
    return None


def trained(run: RunRecords) -> Verdict:
    metrics = run.metrics
    test = metrics["test"]
    best = max(row["calibration_accuracy"] for row in metrics["history"])
    return Verdict(
        run.name,
        None,
        "Trained",
        f"Recipe {metrics['recipe']} on {metrics['data']}: {test['percent']:.2f} % of {test['n']:,} test images are"
        f" classified correctly after {metrics['epochs']} epochs.",
        (
            Fact(
                "Test accuracy",
                Number(f"{test['percent']:.2f} %", test["percent"], "metrics.json:test.percent"),
                interval_text(test),
            ),
            Fact(
                "Parameters",
                Number(f"{metrics['parameters']:,}", metrics["parameters"], "metrics.json:parameters"),
                f"{bytes_text(4 * metrics['parameters'])} in 32-bit float",
            ),
            Fact(
                "Epochs",
                Number(f"{metrics['epochs']}", metrics["epochs"], "metrics.json:epochs"),
                f"kept: epoch {metrics['epoch']}; best calibration accuracy {100 * best:.2f} %",
            ),
            Fact(
                "Training time",
                Number(f"{metrics['seconds'] / 60:.1f} min", metrics["seconds"], "metrics.json:seconds"),
                f"{metrics['images_per_second']:,.0f} images/s",
            ),
        ),
    )
