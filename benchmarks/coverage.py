"""How often a tolerance that quantization promises for new images holds on the test split, over many networks.

    python benchmarks/coverage.py --shared ../shared --work runs/coverage --half choose
    python benchmarks/coverage.py --shared ../shared --work runs/coverage --record coverage
    python benchmarks/coverage.py --shared ../shared --networks mnist-14 --methods default quick max --tolerances 0.5

Trains the small networks that it needs (once; they stay in the work folder), then runs every search and the default for
every tolerance, with the promise and, for the price of it, accepted as measured; where they are named, other options,
too, to be compared with the default. A row that is in ``WORK/rows.jsonl`` is not run again, so an interrupted call goes
on where it stopped.

This opens test splits. The rule may be changed in view of the networks of the half ``choose`` only; those of
``confirm`` are run with the rule as it ships.
"""

import argparse
import json
import math
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from caplet.data import Splits, load_data
from caplet.data.imageset import ImageSet
from caplet.data.splits import in_turns
from caplet.errors import ConfigError
from caplet.jobs.quantize.job import quantize
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.run import correct_images, training_notes
from caplet.jobs.train import fit_to_data
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.train.loop import train
from caplet.train.settings import TrainSettings

RECORDS = Path(__file__).parent / "records"
TOLERANCES = (0.1, 0.2, 0.5, 1.0)
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "qcapsnets": {"method": "qcapsnets"},
    "progressive": {"method": "progressive"},
    "ilp": {"method": "ilp"},
}
PARTS = "scales,per-channel,bias,rounding"
OPTIONS: dict[str, dict[str, Any]] = {
    "quick": {"effort": "quick"},
    "max": {"effort": "max"},
    "nearest": {"rounding": "nearest"},
    "by layer": {"granularity": "layer"},
    "by block": {"granularity": "block"},
    "progressive, fitted": {"method": "progressive", "effort": "default"},
    "qcapsnets, fitted": {"method": "qcapsnets", "effort": "default"},
    "one scale a tensor": {"reconstruct": "scales,bias,rounding"},
    "bias alone": {"reconstruct": "bias"},
    "equalized": {"reconstruct": f"equalization,{PARTS}"},
    "end to end": {"reconstruct": f"{PARTS},end-to-end"},
    "narrowed": {"narrow": True},
    "simpler routing": {"simplify_routing": True},
}
"""Other combinations of options, to be compared with the default."""
ACCEPT = ("confidence", "measured")


@dataclass(frozen=True)
class Network:
    """A network of the benchmark.

    Attributes:
        half: ``choose`` or ``confirm``.
        data: name of the data set; resized to ``size`` where that is given.
        file: of a trained network, below the folder of shared models; else it is trained here.
        images: training images (and calibration images) that it learns from, all where None.
        pairs: classes become two: whether their number is in this set.
        familiar: it is trained on the calibration images, too, and its file says nothing of that, as imported ones.
        changes: settings of training that differ from :data:`BASE`.
    """

    half: str
    data: str
    size: int | None = None
    file: str | None = None
    images: int | None = None
    pairs: frozenset[int] | None = None
    familiar: bool = False
    changes: Mapping[str, Any] | None = None


BASE = {
    "model": "shallow-digits",
    "epochs": 3,
    "batch_size": 64,
    "lr": 4e-3,
    "initial_norms": {"digit": 0.3},
    "threads": 1,
}
_LARGER = {"overrides": {"stem": [{"kernel": 5, "channels": 32}], "primary_types": 8}}
NETWORKS = {
    "q7-mnist": Network("choose", "mnist", file="q7_mnist.h5", familiar=True),
    "mnist-14": Network("choose", "mnist", 14, changes={"shift": 1}),
    "fashion-14-overtrained": Network(
        "choose", "fashion-mnist", 14, images=20_000, familiar=True, changes={"epochs": 20, "keep": "last"}
    ),
    "cifar-16-animals-overtrained": Network(
        "choose",
        "cifar10",
        16,
        images=20_000,
        pairs=frozenset(range(2, 8)),
        familiar=True,
        changes={"epochs": 12, "keep": "last"},
    ),
    "q7-mnist-bn": Network("confirm", "mnist", file="q7_mnist_bn.h5", familiar=True),
    "q7-cifar-same": Network("confirm", "cifar10", file="q7_cifar_same.h5", familiar=True),
    "fashion-14": Network("confirm", "fashion-mnist", 14, changes={"shift": 1, **_LARGER}),
    "cifar-16": Network("confirm", "cifar10", 16, changes={"flip": True}),
    "cifar-16-overtrained": Network(
        "confirm", "cifar10", 16, images=20_000, familiar=True, changes={"epochs": 15, "keep": "last"}
    ),
    "mnist-14-odd-overtrained": Network(
        "confirm",
        "mnist",
        14,
        images=20_000,
        pairs=frozenset({1, 3, 5, 7, 9}),
        familiar=True,
        changes={"epochs": 12, "keep": "last"},
    ),
}
"""Of several kinds: imported and trained here, small and larger, overtrained, two and ten classes."""


def splits_of(network: Network, shared: Path) -> Splits:
    """The network's data."""
    root = shared / "data" / "cifar10-jpeg.tar.xz" if network.data == "cifar10" else shared / "data"
    splits = load_data(network.data, root, size=network.size)
    parts = {name: getattr(splits, name) for name in ("train", "calibration", "test")}
    if network.pairs is not None:
        parts = {name: _paired(part, network.pairs) for name, part in parts.items()}
    if network.images is not None:
        train, calibration = parts["train"], parts["calibration"]
        first = in_turns(train.labels, train.ids, seed=0)[: network.images - len(calibration)]
        parts["train"] = train.subset(first.sort().values)
    hashes = {name: part.sha256() for name, part in parts.items()}
    return replace(splits, **parts, info={**splits.info, "classes": [*parts["test"].classes], "hashes": hashes})


def _paired(images: ImageSet, second: frozenset[int]) -> ImageSet:
    labels = torch.tensor([int(label) in second for label in images.labels], dtype=torch.int64)
    return replace(images, labels=labels, classes=("first", "second"))


def network_of(name: str, splits: Splits, shared: Path, work: Path) -> CapsNet:
    """The trained network; training it first where the work folder has none."""
    network = NETWORKS[name]
    if network.file is not None:
        return load_model(shared / "models" / network.file)
    path = work / "networks" / f"{name}.safetensors"
    if not path.exists():
        settings = TrainSettings.of({**BASE, "dataset": network.data, **(network.changes or {})})
        seen = splits
        if network.familiar:  # trained on the calibration images as well; ids tell the parts of a split apart
            both = [splits.train, splits.calibration]
            images = torch.cat([part.images for part in both])
            labels = torch.cat([part.labels for part in both])
            known = replace(splits.train, images=images, labels=labels, ids=torch.arange(len(images)))
            looked = replace(splits.calibration, ids=splits.calibration.ids + len(images) + int(splits.train.ids.max()))
            seen = replace(splits, train=known, calibration=looked)
        print(f"training {name} on {len(seen.train):,} images", flush=True)
        model = train(fit_to_data(settings, seen), seen, work / "networks" / name, resume=True, progress=False).model
        notes = {} if network.familiar else training_notes(splits)
        save_model(model, path, notes)
    return load_model(path)


def rows_of(name: str, options: argparse.Namespace, known: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Every row of a network that is not known yet."""
    wanted = [
        (accept, tolerance, method)
        for accept in options.accept
        for tolerance in options.tolerances
        for method in options.methods
        if (name, method, tolerance, accept) not in known
    ]
    if not wanted:
        return
    network = NETWORKS[name]
    splits = splits_of(network, options.shared)
    model = network_of(name, splits, options.shared, options.work)
    accuracy = 100 * float(correct_images(model, splits.test).mean())
    for accept, tolerance, method in wanted:
        folder = options.work / "runs" / f"{name}-{method}-{tolerance:g}-{accept}"
        settings = QuantizeSettings.of({**{**METHODS, **OPTIONS}[method], "tolerance": tolerance, "accept": accept})
        began = time.perf_counter()
        row = {
            "network": name,
            "half": network.half,
            "familiar": network.familiar,
            "classes": len(splits.test.classes),
            "float_percent": accuracy,
            "method": method,
            "tolerance": tolerance,
            "accept": accept,
        }
        try:
            result = quantize(model, splits, folder, settings, force=True)
        except ConfigError as error:  # the images cannot show so small a loss
            yield {**row, "met": False, "refused": str(error)}
            continue
        first, record = result.models[0], result.metrics["models"][0]
        pair = first.against_float
        yield {
            **row,
            "met": result.met,
            "expected": (result.metrics["promise"] or {}).get("expected"),
            "looks": len((result.metrics["promise"] or {}).get("looks", ())),
            "test": asdict(pair),
            "kept": pair.loss <= tolerance + 1e-9,
            "weight_bytes": record["flash_bytes"],
            "weights": record["weight_reduction"],
            "activations": record["activation_reduction"],
            "seconds": round(time.perf_counter() - began, 1),
        }
        shutil.rmtree(folder)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often accepted rows keep the tolerance, in all and by group, and what the promise costs in bytes."""
    promised = [row for row in rows if row["accept"] == "confidence"]
    groups: dict[str, list[Mapping[str, Any]]] = {"all": promised}
    for row in promised:
        for key in ("half", "network", "method", "tolerance", "familiar"):
            groups.setdefault(f"{key} {row[key]}", []).append(row)
    measured = {(row["network"], row["method"], row["tolerance"]): row for row in rows if row["accept"] == "measured"}
    ratios: dict[str, list[float]] = {}
    for row in promised:
        other = measured.get((row["network"], row["method"], row["tolerance"]))
        if other is not None and row["met"] and other["met"]:
            for group in ("all", row["method"]):
                ratios.setdefault(group, []).append(row["weight_bytes"] / other["weight_bytes"])
    means = {name: _mean(found) for name, found in ratios.items()}
    compared = {"measured": [row for row in rows if row["accept"] == "measured"]}
    return {
        "promised": {name: _kept(found) for name, found in sorted(groups.items())},
        "as_measured": {name: _kept(found) for name, found in compared.items()},
        "bytes_over_measured": {name: round(value, 3) for name, value in means.items()},
        **beside_the_default([row for row in promised if row["met"]]),
    }


def beside_the_default(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of promised rows that were accepted: each method's bytes over the default's, and the default's over the least of
    any, the geometric mean over networks and tolerances that have rows of other options."""
    cases: dict[tuple[str, float], dict[str, float]] = {}
    for row in rows:
        cases.setdefault((row["network"], row["tolerance"]), {})[row["method"]] = row["weight_bytes"]
    whole = [case for case in cases.values() if "default" in case and OPTIONS.keys() & case.keys()]
    ratios: dict[str, list[float]] = {}
    for case in whole:
        for method, size in case.items():
            ratios.setdefault(method, []).append(size / case["default"])
    if not whole:
        return {}
    best = _mean([case["default"] / min(case.values()) for case in whole])
    return {
        "bytes_over_default": {method: round(_mean(found), 3) for method, found in sorted(ratios.items())},
        "default_over_best": round(best, 3),
    }


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def _kept(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accepted = [row for row in rows if row["met"]]
    if not accepted:
        return {"rows": len(rows), "accepted": 0}
    return {
        "rows": len(rows),
        "accepted": len(accepted),
        "kept": sum(row["kept"] for row in accepted),
        "fraction": round(sum(row["kept"] for row in accepted) / len(accepted), 3),
        "largest_loss_over_tolerance": round(max(row["test"]["loss"] / row["tolerance"] for row in accepted), 2),
    }


def main() -> None:
    """Parse the options, run what is missing, print the summary, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/coverage"), help="networks, rows and runs under way")
    parser.add_argument("--half", choices=("choose", "confirm", "both"), default="both")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *OPTIONS], default=[*METHODS])
    parser.add_argument("--tolerances", nargs="+", type=float, default=TOLERANCES)
    parser.add_argument("--accept", nargs="+", choices=ACCEPT, default=ACCEPT)
    parser.add_argument("--train-only", action="store_true", help="train the networks and stop")
    parser.add_argument("--record", help="name of the record to write")
    parser.add_argument("--note", default="", help="what else is to be known of the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)  # small networks: more threads are slower
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    known = {(row["network"], row["method"], row["tolerance"], row["accept"]) for row in rows}
    chosen = [name for name in options.networks if options.half in ("both", NETWORKS[name].half)]
    for number, name in enumerate(chosen, 1):
        if options.train_only:
            network_of(name, splits_of(NETWORKS[name], options.shared), options.shared, options.work)
            continue
        for row in rows_of(name, options, known):
            rows.append(row)
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            if "refused" in row:
                print(
                    f"{name} {row['method']} {row['tolerance']:g} {row['accept']}: refused: {row['refused']}",
                    flush=True,
                )
                continue
            told = f"loss {row['test']['loss']:+.2f}, W {row['weights']:.2f}x, A {row['activations']:.2f}x"
            verdict = ("kept" if row["kept"] else "BROKEN") if row["met"] else "not accepted"
            place = f"{number}/{len(chosen)} {name} {row['method']} {row['tolerance']:g} {row['accept']}"
            print(f"{place}: {verdict}, {told}, {row['seconds']:.0f} s", flush=True)
    found = summary(rows)
    print(json.dumps(found, indent=1))
    if options.record:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        record = {
            "what": __doc__.splitlines()[0],
            "command": re.sub(r"--(shared|work) \S+", r"--\1 PATH", shlex.join(["python", *sys.argv])),
            "date": date,
            "machine": {"threads": 1, "system": platform.system(), "torch": torch.__version__},
            "note": options.note,
            "summary": found,
            "rows": rows,
        }
        target = RECORDS / f"{date[:10]}-{options.record}.json"
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(target)


if __name__ == "__main__":
    main()
