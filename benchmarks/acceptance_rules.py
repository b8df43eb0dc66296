"""What rules of acceptance would have chosen among the same plans: bytes, and how often test splits keep the tolerance.

    python benchmarks/acceptance_rules.py --shared ../shared --work runs/coverage --record acceptance-rules

For each network of `coverage.py` (those of the half `choose`, unless others are named) every plan of the ladder that
the default at 0.5 points makes is fitted, and its integers answer all images: those that decide, those for trials, and
the test split. Then caplet's own code chooses among these plans, for many tolerances, once as it is and once for each
change of a rule. So rules are compared on one set of answers, in seconds. Two rows say what is possible: the smallest
plans that the images of the search accept as measured, and those that somebody would take who knows the answers to all
images, the test split's among them, and wants 10,000 new ones to keep the tolerance nineteen times in twenty.

This opens test splits: rules are chosen by what it prints, so only by networks of the half `choose`.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from coverage import NETWORKS, RECORDS, network_of, splits_of
from numpy.typing import NDArray

import caplet.jobs.quantize.job as job
from caplet.data.imageset import ImageSet
from caplet.errors import CapletError
from caplet.jobs.quantize import choose, promise
from caplet.jobs.quantize.accept import Shipper
from caplet.jobs.quantize.answers import Correct, FloatAnswers, PlanAnswers, answers_of
from caplet.jobs.quantize.promise import NEW_IMAGES, FreshImages, Promise, smallest_accepted
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.quantize.trials import Fits, Lazy, last_accepted
from caplet.jobs.run import correct_images
from caplet.progress import Note
from caplet.quant.search.search import Request

TOLERANCES = (0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
HOPELESS, FIRST, SEQUENCE = (choose, "HOPELESS"), (promise, "_FIRST_ERROR"), (promise, "_SEQUENCE_ERROR")
NEW = (promise, "NEW_IMAGES")
RULES: dict[str, dict[tuple[Any, str], float]] = {
    "as it is": {},
    "before": {HOPELESS: 1.25, FIRST: 0.3, SEQUENCE: 0.9},
    "smaller plans are given up at 1.25 times the tolerance": {HOPELESS: 1.25},
    "a first look spends three tenths": {FIRST: 0.3},
    "the first sequence spends nine tenths": {SEQUENCE: 0.9},
    "smaller plans are looked at whatever trials say": {HOPELESS: math.inf},
    "a limit for 30,000 new images": {NEW: 30_000},
    "a limit for all new images": {NEW: 10**9},
}
"""Changes of caplet's numbers."""
KNOWN, MEASURED = "all answers are known", "as measured"
CERTAIN = 1.645
"""Standard errors of the loss on 10,000 images that one in twenty exceeds."""
LEAST, MOST = 3.1, 5.0
"""Plans of a smaller reduction of weights, and those that lose more points of the search's images, are left out."""


class Collected(Exception):
    """All answers are written."""


@dataclass(frozen=True)
class Sets:
    """The sets of images that plans answer."""

    fresh: ImageSet
    search: ImageSet
    test: ImageSet
    trial: ImageSet | None
    held_out: ImageSet | None

    def named(self) -> Iterator[tuple[str, ImageSet]]:
        """Those that are there."""
        yield from ((name, images) for name, images in vars(self).items() if images is not None)


def collect(name: str, path: Path, shared: Path, work: Path) -> None:
    """Write what every plan of a network's ladder answers."""
    splits = splits_of(NETWORKS[name], shared)
    model = network_of(name, splits, shared, work)

    def answer(shipper: Shipper, search: Any, request: Request, asked: Promise, fits: Fits, note: Note) -> None:
        plans, first = fits.plans(search(request), ())
        fresh = asked.fresh
        sets = Sets(fresh.images, shipper.splits.calibration, splits.test, fresh.trial, fresh.held_out)
        data: dict[str, Any] = {"first": first, "familiar": fresh.familiar}
        for key, images in sets.named():
            data |= {f"labels/{key}": images.labels.numpy(), f"float/{key}": correct_images(model, images)}
        known: dict[str, int] = {}
        for index, plan in enumerate(plans[number] for number in range(len(plans))):
            digest = plan.plan.digest()
            number = known.setdefault(digest, len(known))
            data[f"plan/{index}"] = number
            if plan.memory.weight_reduction < LEAST or f"bytes/{number}" in data:
                continue
            program = shipper.program(plan.plan)
            data[f"reduction/{number}"] = (plan.memory.weight_reduction, plan.memory.activation_reduction)
            data[f"bytes/{number}"] = program.flash_bytes
            for key, images in sets.named():
                data[f"{key}/{number}"] = answers_of(program, images).correct
            loss = 100 * float(data["float/search"].mean() - data[f"search/{number}"].mean())
            print(f"{name}, plan {index}: W {plan.memory.weight_reduction:.2f}x, loss {loss:+.2f}", flush=True)
            if loss > MOST:
                break
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **data)
        raise Collected

    with patch.object(job, "as_promised", answer), suppress(Collected):
        job.quantize(model, splits, work / "runs" / f"ladder-{name}", QuantizeSettings(tolerance=0.5), force=True)


class Ladder:
    """The answers of a network's plans, in the place of :class:`Fits` and of the images themselves.

    An image's id is its place in its set, so that parts of sets find their answers.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as stored:
            self._data = {key: stored[key] for key in stored.files}
        sets = {key: self._set(key) for key in ("fresh", "search", "trial", "held_out") if f"float/{key}" in self._data}
        self.fresh = FreshImages(
            sets["fresh"], "images", bool(self._data["familiar"]), sets.get("held_out"), sets.get("trial")
        )
        self.images = sets.get("trial", sets["search"])
        self.before = FloatAnswers(self.reference, self.images)
        self.shipper, self.request = SimpleNamespace(fitter=SimpleNamespace(active=True)), None
        self.lower = False
        places = (key.partition("/")[2] for key in self._data if key.startswith("plan/"))
        numbers = [int(self._data[f"plan/{index}"]) for index in sorted(map(int, places))]
        first, found = int(self._data["first"]), [f"bytes/{number}" in self._data for number in numbers]
        self._first = sum(found[:first])
        kept = [number for number, there in zip(numbers, found, strict=True) if there]
        self.candidates = [self._candidate(number) for number in kept]
        self._tried: set[int] = set()

    def _set(self, key: str) -> ImageSet:
        labels = torch.from_numpy(self._data[f"labels/{key}"])
        nothing, classes = torch.zeros((len(labels), 1, 1, 1), dtype=torch.uint8), int(labels.max()) + 1
        return ImageSet(nothing, labels, torch.arange(len(labels)), tuple(map(str, range(classes))), key)

    def _candidate(self, number: int) -> Any:
        weights, activations = self._data[f"reduction/{number}"]
        memory = SimpleNamespace(weight_reduction=weights, activation_reduction=activations)
        correct = SimpleNamespace(correct_images=self._data[f"search/{number}"])
        return SimpleNamespace(plan=number, memory=memory, evaluation=correct)

    def reference(self, images: ImageSet) -> Correct:
        """What the float model answers on a part of a set."""
        found: Correct = self._data[f"float/{images.name}"][images.ids.numpy()]
        return found

    def answers(self, number: int, images: ImageSet) -> PlanAnswers:
        """What a plan answers on a part of a set."""
        return PlanAnswers(self._data[f"{images.name}/{number}"][images.ids.numpy()])

    def known(self, plan: int) -> PlanAnswers | None:
        """Of plans that were tried."""
        return self.answers(plan, self.images) if plan in self._tried else None

    def plans(self, found: Any, others: Any) -> tuple[Lazy[Any], int]:
        """As those of :class:`Fits`."""
        return Lazy(len(self.candidates), self.candidates.__getitem__), min(self._first, len(self.candidates) - 1)

    def settle(self, candidate: Any, verdict: Any) -> None:
        """There is one fit of each plan."""

    def smallest(self, plans: Lazy[Any], start: int, verdict: Any) -> int | None:
        """As that of :class:`Fits`."""

        def trial(index: int) -> float:
            self._tried.add(plans[index].plan)
            return float(verdict(self.answers(plans[index].plan, self.images)))

        return last_accepted(len(plans), start, trial)

    def chosen(self, tolerance: float) -> dict[str, Any] | None:
        """What caplet's rule ships at a tolerance, and how it does; None where it ships nothing."""
        self._tried.clear()
        asked = Promise(self.fresh, self.reference, tolerance)
        reference = SimpleNamespace(correct_images=self._data["float/search"])
        found: Any = SimpleNamespace(satisfied=self.candidates[0], fallbacks=(), reference=reference, frontier=())
        found.best = found.satisfied
        rungs, start = choose.fitted_ladder(self, found, asked)  # type: ignore[arg-type]
        looks = 0

        def accepts(one: Any, error: float) -> bool:
            nonlocal looks
            looks += 1
            return asked.look(partial(self.answers, one.candidate.plan), error, one.changed, one.loss).accepted

        index = smallest_accepted(len(rungs), start, choose.each_once(rungs, accepts), asked.error)
        return None if index is None else self._row(rungs[index].candidate.plan, tolerance, looks)

    def smallest_of(self, rule: str, tolerance: float) -> dict[str, Any] | None:
        """The same of the smallest plan that keeps a tolerance by what no rule of caplet's would know, or ask."""
        keys, chance = (("search",), 0.0) if rule == MEASURED else (("fresh", "trial", "test"), CERTAIN)
        keep: list[Any] = []
        for candidate in self.candidates:
            pairs = [
                (self._data[f"float/{key}"], self._data[f"{key}/{candidate.plan}"])
                for key in keys
                if f"float/{key}" in self._data
            ]
            before, after = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
            error = math.sqrt(float((before != after).mean()) / NEW_IMAGES)
            if 100 * (before.mean() - after.mean() + chance * error) <= tolerance + 1e-9:
                keep.append(candidate.plan)
        best = min(keep, key=lambda number: int(self._data[f"bytes/{number}"]), default=None)
        return None if best is None else self._row(best, tolerance, 0)

    def _row(self, number: Any, tolerance: float, looks: int) -> dict[str, Any]:
        before, after = self._data["float/test"], self._data[f"test/{number}"]
        loss = 100 * float(before.mean() - after.mean())
        size = int(self._data[f"bytes/{number}"])
        return {"tolerance": tolerance, "loss": loss, "kept": loss <= tolerance + 1e-9, "bytes": size, "looks": looks}


def compare(ladders: Mapping[str, Ladder]) -> list[dict[str, Any]]:
    """For every rule: rows kept, the geometric mean of bytes relative to the first rule's, looks at plans."""
    found: list[dict[str, Any]] = []
    first: NDArray[np.float64] | None = None
    for rule, changes in {**RULES, KNOWN: {}, MEASURED: {}}.items():
        with ExitStack() as changed:
            for (module, name), value in changes.items():
                changed.enter_context(patch.object(module, name, value))
            pairs = [(one, tolerance) for one in ladders.values() for tolerance in TOLERANCES]
            other = rule in (KNOWN, MEASURED)
            rows = [one.smallest_of(rule, asked) if other else one.chosen(asked) for one, asked in pairs]
        sizes = np.array([math.nan if row is None else math.log(row["bytes"]) for row in rows])
        first = sizes if first is None else first
        accepted = [row for row in rows if row is not None]
        found.append(
            {
                "rule": rule,
                "rows": len(rows),
                "accepted": len(accepted),
                "kept": sum(row["kept"] for row in accepted),
                "largest_loss_over_tolerance": round(max(row["loss"] / row["tolerance"] for row in accepted), 2),
                "bytes_over_first": round(float(np.exp(np.nanmean(sizes - first))), 3),
                "looks": round(sum(row["looks"] for row in accepted) / len(accepted), 1),
            }
        )
        print(found[-1], flush=True)
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, collect what is missing, compare, print or write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/coverage"), help="of coverage.py; gets ladders/")
    chosen = [name for name, network in NETWORKS.items() if network.half == "choose"]
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=chosen)
    parser.add_argument("--record", help="name of the record to write")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    paths = {name: options.work / "ladders" / f"{name}.npz" for name in options.networks}
    for name, path in paths.items():
        if not path.exists():
            collect(name, path, options.shared, options.work)
    try:
        rows = compare({name: Ladder(path) for name, path in paths.items()})
    except CapletError as error:
        sys.exit(str(error))
    if options.record:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        given = shlex.join(["python", "benchmarks/acceptance_rules.py", *sys.argv[1:]])
        command = given.replace(str(options.shared), "PATH").replace(str(options.work), "PATH")
        about = {"what": __doc__.splitlines()[0], "command": command, "date": date, "networks": options.networks}
        record = {**about, "tolerances": TOLERANCES, "rules": rows}
        target = RECORDS / f"{date[:10]}-{options.record}.json"
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(target)


if __name__ == "__main__":
    main()
