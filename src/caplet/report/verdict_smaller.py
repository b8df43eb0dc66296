"""The cards of pruning and compression runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from caplet.report.figure import Number
from caplet.report.records import RunRecords
from caplet.report.verdict import Fact, Limit, Verdict, bytes_text, engine_text, interval_text


def compressed(run: RunRecords) -> Verdict:
    """The card of a compression: float against integers, and every limit."""
    metrics = run.metrics
    before, after, pair = metrics["float"], metrics["compressed"], metrics["compressed"]["paired"]
    found = metrics["limits"]
    lost = f"{abs(pair['loss']):.2f} percentage points {'less' if pair['loss'] >= 0 else 'more'}"
    headline = (
        f"The network takes {bytes_text(after['file_bytes'])}, {after['times_smaller']:.1f} times less than its float"
        f" parameters, needs {100 * after['macs_kept']:.3g} % of the multiply-accumulates, and classifies"
        f" {after['test']['percent']:.2f} % of {after['test']['n']:,} test images correctly: {lost} than the float"
        f" network (95 % interval of the difference: {pair['low']:+.2f} to {pair['high']:+.2f})."
    )
    facts = (
        _accuracy("Float accuracy", before["test"], "metrics.json:float.test.percent"),
        _accuracy("Compressed accuracy", after["test"], "metrics.json:compressed.test.percent"),
        _loss(pair, "metrics.json:compressed.paired.loss"),
        Fact(
            "File",
            Number(bytes_text(after["file_bytes"]), after["file_bytes"], "metrics.json:compressed.file_bytes"),
            f"{after['file']}; float parameters {bytes_text(before['bytes'])}",
        ),
        Fact(
            "Flash of the firmware",
            Number(bytes_text(found["flash"]["found"]), found["flash"]["found"], "metrics.json:limits.flash.found"),
            "packed constants, and room for code",
        ),
        Fact(
            "RAM",
            Number(bytes_text(found["ram"]["found"]), found["ram"]["found"], "metrics.json:limits.ram.found"),
            f"the arena; {found['macs']['found']:,} multiply-accumulates",
        ),
    )
    notes = [
        f"The limits were checked on {before['calibration']['n']:,} calibration images, cut from the training split. No"
        " decision looked at the test split.",
        "The compressed accuracy is that of the integers. A device whose engine is marked bit-exact computes the same"
        " codes, so that its accuracy is the same.",
    ]
    if metrics["missed"]:
        give = "; or ".join(metrics["outlook"])
        notes.insert(0, f"No network keeps to all limits; the nearest one is shown. What would have to give: {give}.")
    return Verdict(
        run.name,
        metrics["met"],
        "Limits met" if metrics["met"] else "Limits not met",
        headline,
        facts,
        tuple(_limits(metrics)),
        exact=tuple((engine_text(engine), not engine["differing"]) for engine in metrics["verified"]),
        notes=tuple(notes),
    )


def pruned(run: RunRecords) -> Verdict:
    """The card of a pruning run: what is left, and how well it does."""
    metrics = run.metrics
    before, after, pair = metrics["original"], metrics["pruned"], metrics["paired"]
    macs, parameters = metrics["macs_kept"], metrics["parameters_kept"]
    headline = (
        f"{100 * macs:.1f} % of the multiply-accumulates and {100 * parameters:.1f} % of the parameters are left; the"
        f" smaller network classifies {after['test']['percent']:.2f} % of {after['test']['n']:,} test images correctly,"
        f" the one before {before['test']['percent']:.2f} %."
    )
    facts = (
        _accuracy("Accuracy before", before["test"], "metrics.json:original.test.percent"),
        _accuracy("Accuracy pruned", after["test"], "metrics.json:pruned.test.percent"),
        _loss(pair, "metrics.json:paired.loss"),
        Fact(
            "Multiply-accumulates",
            Number(f"{100 * macs:.1f} %", macs, "metrics.json:macs_kept"),
            f"{100 * parameters:.1f} % of the parameters",
        ),
    )
    return Verdict(run.name, metrics["met"], "Target met" if metrics["met"] else "Target not met", headline, facts)


def finetuned(run: RunRecords) -> Verdict:
    """The card of a fine-tuning run, in float or under a plan."""
    metrics = run.metrics
    model = metrics["models"][0] if "models" in metrics else metrics
    at = "metrics.json:models.0" if "models" in metrics else "metrics.json"
    before, after, pair = metrics["float"]["test"], model["test"], model["paired"]
    what = "integers" if "models" in metrics else "float"
    headline = (
        f"After {metrics['finetune']['steps']:,} steps of fine-tuning the network classifies {after['percent']:.2f} %"
        f" of {after['n']:,} test images correctly ({what}), the float network that it started from"
        f" {before['percent']:.2f} %."
    )
    facts = [
        _accuracy("Accuracy before, float", before, "metrics.json:float.test.percent"),
        _accuracy(f"Accuracy after, {what}", after, f"{at}.test.percent"),
        _loss(pair, f"{at}.paired.loss"),
    ]
    if "models" in metrics:
        taken = model["file_bytes"]
        reductions = (
            f"weights {model['weight_reduction']:.1f}x, activations {model['activation_reduction']:.1f}x smaller"
        )
        facts.append(Fact("File", Number(bytes_text(taken), taken, f"{at}.file_bytes"), reductions))
    notes = tuple(f"Alarm during training: {alarm}" for alarm in metrics.get("alarms", ()))
    return Verdict(run.name, None, "Fine-tuned", headline, tuple(facts), notes=notes)


def _accuracy(name: str, record: dict[str, Any], source: str) -> Fact:
    return Fact(name, Number(f"{record['percent']:.2f} %", record["percent"], source), interval_text(record))


def _loss(pair: dict[str, Any], source: str) -> Fact:
    return Fact(
        "Loss on the test split",
        Number(f"{pair['loss']:+.2f} pp", pair["loss"], source),
        f"paired: {pair['low']:+.2f} to {pair['high']:+.2f}, {pair['n10']} lost, {pair['n01']} won,"
        f" p = {pair['p_value']:.2g}",
    )


def _limits(metrics: dict[str, Any]) -> Iterator[Limit]:
    names = {"max_drop": "Loss on calibration images", "flash": "Flash", "ram": "RAM", "macs": "Multiply-accumulates"}
    for name, title in names.items():
        asked, found = metrics["limits"][name]["asked"], metrics["limits"][name]["found"]
        source = f"metrics.json:limits.{name}.found"
        if asked is None:
            continue
        text: dict[str, str] = {
            "max_drop": f"at most {asked:g} pp",
            "flash": f"at most {bytes_text(asked)}",
            "ram": f"at most {bytes_text(asked)}",
            "macs": f"at most {asked:,}",
        }
        shown = {"max_drop": f"{found:+.2f} pp", "macs": f"{found:,}"}.get(name) or bytes_text(found)
        yield Limit(title, text[name], Number(shown, found, source), name not in metrics["missed"])
