"""Prune a trained model: rounds of scoring, surgery and fine-tuning, then one look at the test split."""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caplet.acceptance import Acceptance
from caplet.data import Splits
from caplet.files import write_bytes
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.prune.targets import NetworkSizes, answers, check_target, put_in_order, removals_for
from caplet.jobs.run import begin, check, open_test_split, ship
from caplet.metrics import Accuracy, Paired, accuracy
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.models.cost import cost_of
from caplet.progress import Note, Progress, silent
from caplet.prune.coupling import measure_activity
from caplet.prune.order import RemovalOrder
from caplet.prune.refit import refitted
from caplet.prune.structure import Selection, cut, kept_sizes, structure_of, with_iterations
from caplet.report.pruning import remaining_units
from caplet.runs.folder import read_record, remove, write_record
from caplet.runs.records import KEPT
from caplet.runs.stages import Done, Stages
from caplet.train.finetune import FinetuneTask, TeacherAnswers, weights_digest
from caplet.train.logs import read_steps
from caplet.train.loop import CHECKPOINT, LOG, train

MODEL, ROUND, PICTURE = "model.safetensors", "round.json", "survivors.svg"
TRIALS = 7
"""Bisection steps of a search by loss of accuracy: what is removed is found to one part in 2**7."""


@dataclass(frozen=True)
class PruneResult:
    """The outcome of a pruning run.

    Attributes:
        met: whether the target was met; False only where no trial kept the allowed loss.
        model: the pruned and fine-tuned model, evaluation mode.
        path: its checkpoint.
        original, test: accuracy of the unpruned and of the pruned model on the test split.
        against: the two on the same test images.
        folder: the run folder.
        metrics: what ``metrics.json`` holds.
    """

    met: bool
    model: CapsNet
    path: Path
    original: Accuracy
    test: Accuracy
    against: Paired
    folder: Path
    metrics: dict[str, Any]


def prune(
    model: CapsNet,
    splits: Splits,
    out: str | Path,
    settings: PruneSettings,
    *,
    resume: bool = False,
    force: bool = False,
    taught: TeacherAnswers | None = None,
    note: Note = silent,
    progress: Progress | None = None,
    bars: bool = False,
) -> PruneResult:
    """Make ``model`` physically smaller and write a run folder with the result, an ordinary float checkpoint.

    Scores and decisions see ``splits.calibration``, fine-tuning also ``splits.train``; the test split is opened once,
    at the end.

    Args:
        out: the run folder. See :func:`caplet.runs.folder.open_run` for ``resume`` and ``force``; a run that was
            interrupted within fine-tuning goes on there.
        taught: what ``model`` as a teacher is known to answer; see :class:`caplet.train.finetune.TeacherAnswers`.
        note: called with one line of text at every decision.
        progress: called with (images done, images in all) while scoring.
        bars: a progress bar on stderr during fine-tuning.

    Raises:
        ConfigError: a target that would empty a layer, an unknown space, too few calibration images.
        ModelError: NaN weights, images of another size, a layer without a pruning rule.
        ArtefactError: the run folder cannot be used.
        CapletError: gradients or a loss that are not finite.
    """
    check(model, splits)
    check_target(model, splits.calibration, settings)
    resolved = {**settings.model_dump(mode="json"), "weights": weights_digest(model)}
    with begin("prune", out, splits, resolved, model, resume=resume, force=force) as run:
        work = PruneWork(run, model, splits, settings, taught, note, progress, bars)
        return _finish(work, work.search() if settings.max_drop is not None else work.rounds())


@dataclass(frozen=True)
class PruneOutcome:
    """What the rounds or trials gave: whether the target was met, their records, and the record of the result."""

    met: bool
    records: list[dict[str, Any]]
    final: dict[str, Any]


@dataclass
class PruneWork:
    """A run in progress."""

    run: Path
    model: CapsNet
    splits: Splits
    settings: PruneSettings
    taught: TeacherAnswers | None
    note: Note
    progress: Progress | None
    bars: bool
    whole: NetworkSizes = field(init=False)
    stages: Stages = field(init=False)
    dead: dict[str, int] = field(default_factory=dict)  # units that were removed for free, by space
    _ordered: tuple[CapsNet, RemovalOrder] | None = None

    def __post_init__(self) -> None:
        self.whole = NetworkSizes.whole(self.model, self.settings.units)
        self.stages = Stages(self.run, self.note)

    def begin(self) -> tuple[CapsNet, dict[str, list[int]]]:
        """The model before the first round: dead units gone, routing iterations changed; and where its units were."""
        model = self.model
        places = {name: list(range(group.size)) for name, group in structure_of(model).groups.items()}
        if self.settings.iterations is not None:
            model = with_iterations(model, self.settings.iterations)
        if self.settings.dead:
            spaces = structure_of(model).groups
            images = self.splits.calibration.evenly_spaced(self.settings.images).images
            found = measure_activity(model, images).dead()
            dead = {name: keep for name, keep in found.items() if spaces[name].kind in self.settings.units}
            if dead:
                self.dead = {name: int((~keep).sum()) for name, keep in dead.items()}
                gone = ", ".join(f"{count} of {name}" for name, count in self.dead.items())
                self.note(f"never active on {len(images):,} calibration images, removed: {gone}")
                selection = structure_of(model).close(dead)
                model, places = cut(model, selection), _follow(places, selection)
        return model, places

    def rounds(self) -> PruneOutcome:
        """Round by round to the target."""
        model, places = self.begin()
        before: dict[str, str] = {}
        records: list[dict[str, Any]] = []
        for index in range(1, self.settings.rounds + 1):
            fraction = index / self.settings.rounds
            inputs = {"settings": self.settings.model_dump(mode="json"), "share": fraction, "before": before}
            work = partial(self.round, model, places, fraction, None)
            done = self.stages.do(f"round{index}", inputs, work, (MODEL, ROUND))
            before, model = done.outputs, load_model(done.folder / MODEL)
            records.append(self.record(done, index))
            places = records[-1]["kept_units"]
        return PruneOutcome(True, records, records[-1])

    def search(self) -> PruneOutcome:
        """Bisection on how much goes: the most with which the loss of accuracy stays within the one allowed."""
        model, places = self.begin()
        order = self.order(model)
        low, high = 0, len(order.removals)
        assert self.settings.max_drop is not None
        reference = answers(self.model, self.splits.calibration)
        acceptance = Acceptance(reference, self.settings.max_drop)
        records: list[dict[str, Any]] = []
        best: dict[str, Any] | None = None
        for trial in range(1, TRIALS + 1):
            count = (low + high + 1) // 2
            inputs = {"settings": self.settings.model_dump(mode="json"), "count": count}
            work = partial(self.round, model, places, 1.0, count)
            done = self.stages.do(f"trial{trial}", inputs, work, (MODEL, ROUND))
            correct = answers(load_model(done.folder / MODEL), self.splits.calibration)
            pair, accepted = acceptance.paired(correct), acceptance.accepts(correct)
            record = self.record(done, trial) | {"accepted": accepted, "pair": pair.to_json()}
            self.note(
                f"trial {trial}: loss {pair.loss:.2f} pp on {pair.n:,} images, {acceptance.tolerance:g} allowed:"
                f" {'accepted' if accepted else 'rejected'}"
            )
            records.append(record)
            if accepted:
                low, best = count, record
            else:
                high = count - 1
            if low >= high:
                break
        if best is None:
            return PruneOutcome(False, records, min(records, key=lambda record: record["pair"]["loss"]))
        return PruneOutcome(True, records, best)

    def round(
        self,
        model: CapsNet,
        places: dict[str, list[int]],
        fraction: float,
        count: int | None,
        folder: Path,
        resume: bool,
    ) -> None:
        """One round: score, cut, fine-tune, measure on the calibration split; leaves its files in ``folder``."""
        began = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        order = self.order(model)
        if count is None:
            count = removals_for(model, order, self.settings, self.whole, fraction)
        selection = order.selection(count)
        smaller = cut(model, selection, order.structure)
        bare = self.correct(smaller)
        before = bare
        refitted_layers: tuple[str, ...] = ()
        if self.settings.refit:
            images = self.splits.train.evenly_spaced(self.settings.refit).images
            candidate, layers = refitted(
                model, smaller, selection, images, structure=order.structure, seed=self.settings.seed
            )
            found = self.correct(candidate) if layers else bare
            if found.correct > bare.correct:  # where nearly everything is gone, refitting can do harm
                smaller, before, refitted_layers = candidate, found, layers
        curve: dict[str, Any] = {"steps": [], "epochs": []}
        if self.settings.epochs > 0:
            tuning = self.settings.finetuning(len(self.splits.train))
            task = FinetuneTask(tuning, smaller, self.model if self.settings.teach else None, self.taught)
            tuned = train(task, self.splits, folder / "finetune", resume=True, progress=self.bars)
            smaller = tuned.model
            curve["steps"] = read_steps(folder / "finetune" / LOG)
            kept = ("epoch", "global_step", "calibration_accuracy", "calibration_loss")
            curve["epochs"] = [{name: row[name] for name in kept} for row in tuned.history]
        after = self.correct(smaller) if self.settings.epochs > 0 else before
        save_model(smaller, folder / MODEL)
        write_record(
            folder / ROUND,
            {
                "kept_units": _follow(places, selection),
                "sizes": kept_sizes(selection),
                "cost": cost_of(smaller).to_json(),
                "refitted": list(refitted_layers),
                "calibration_cut": bare.to_json(),
                "calibration_before": before.to_json(),
                "calibration": after.to_json(),
                "images_trained": self.trained(),
                "finetuning": curve,
                "seconds": round(time.perf_counter() - began, 1),
            },
        )
        if self.settings.epochs > 0:
            remove(folder / "finetune" / CHECKPOINT)  # large, and no longer needed

    def order(self, model: CapsNet) -> RemovalOrder:
        """The order of removals; kept until another model is asked about."""
        if self._ordered is None or self._ordered[0] is not model:
            self._ordered = (model, put_in_order(model, self.splits.calibration, self.settings, self.progress))
        return self._ordered[1]

    def trained(self) -> int:
        """Images that one round's fine-tuning goes through."""
        if self.settings.epochs == 0:
            return 0
        chosen = self.settings.finetuning(len(self.splits.train))
        return (chosen.steps or 0) * min(chosen.batch_size, len(self.splits.train))

    def correct(self, model: CapsNet) -> Accuracy:
        """Accuracy on the calibration split."""
        hits = answers(model, self.splits.calibration)
        return accuracy(int(hits.sum()), len(hits))

    def record(self, done: Done, index: int) -> dict[str, Any]:
        """A finished round's record; says so."""
        found: dict[str, Any] = read_record(done.folder / ROUND)
        record = {**found, "round": index, "folder": done.folder.name}
        macs, parameters = found["cost"]["macs"] / self.whole.macs, found["cost"]["parameters"] / self.whole.params
        self.note(
            f"{done.folder.name}: {100 * macs:.1f} % of the MACs, {100 * parameters:.1f} % of the parameters,"
            f" calibration {found['calibration_cut']['percent']:.2f} % after surgery,"
            f" {found['calibration_before']['percent']:.2f} % refitted and"
            f" {found['calibration']['percent']:.2f} % after fine-tuning, {found['seconds']:.0f} s"
        )
        return record


def _follow(places: dict[str, list[int]], selection: Selection) -> dict[str, list[int]]:
    """Places of the units that stay, in the unpruned model."""
    return {name: [places[name][unit] for unit in np.flatnonzero(keep).tolist()] for name, keep in selection.items()}


def _finish(work: PruneWork, outcome: PruneOutcome) -> PruneResult:
    """Open the test split and write the model, the map of what is left, and the metrics."""
    run, splits, original, final = work.run, work.splits, work.model, outcome.final
    model = load_model(run / final["folder"] / MODEL)
    found = open_test_split(splits, original, {"pruned": model}, work.note)
    test, against = (found.accuracy(), found.accuracy("pruned")), found.against("pruned")
    kept = _kept(original, final["kept_units"])
    images = splits.calibration.evenly_spaced(work.settings.images).images
    metrics = {
        "met": outcome.met,
        "settings": work.settings.model_dump(mode="json"),
        "target": work.settings.target,
        "original": {"cost": cost_of(original).to_json(), "test": test[0].to_json()},
        "pruned": {"cost": cost_of(model).to_json(), "test": test[1].to_json(), "round": final["folder"]},
        "macs_kept": cost_of(model).macs / work.whole.macs,
        "parameters_kept": cost_of(model).parameters / work.whole.params,
        "sizes": {name: [len(row["kept"]), row["of"]] for name, row in kept["spaces"].items()},
        "paired": against.to_json(),
        "dead_removed": work.dead,
        "activity": {
            "original": measure_activity(original, images).to_json(),
            "pruned": measure_activity(model, images).to_json(),
        },
        "rounds": [{key: value for key, value in record.items() if key != "kept_units"} for record in outcome.records],
    }
    note = {"pruned": True, "test": test[1].to_json(), "data": splits.info["name"]}
    save_model(model, run / MODEL, note)
    write_record(run / KEPT, kept)
    write_bytes(run / PICTURE, remaining_units(kept, f"what remains of {original.family}"))
    metrics = ship(run, splits, metrics, found, result="pruned")
    return PruneResult(outcome.met, model, run / MODEL, test[0], test[1], against, run, metrics)


def _kept(original: CapsNet, units: dict[str, list[int]]) -> dict[str, Any]:
    """Which units of the unpruned model are left: by space, and for voting capsules by source, type and position."""
    structure = structure_of(original)
    spaces = {
        name: {"kind": str(group.kind), "of": group.size, "kept": units[name]}
        for name, group in structure.groups.items()
    }
    votes: dict[str, Any] = {}
    for voters in structure.voters:
        size = structure.groups[voters.group].size
        places = np.arange(size) if voters.places is None else np.array(voters.places)
        left = set(places[units[voters.group]].tolist())
        start = 0
        for space, positions in voters.sources:
            types = structure.groups[space].size
            table = [[int(start + kind * positions + at in left) for at in range(positions)] for kind in range(types)]
            votes[space.partition(".")[0]] = table
            start += types * positions
    return {"spaces": spaces, "votes": votes}
