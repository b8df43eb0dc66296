"""Prune a trained model: rounds of scoring, surgery and fine-tuning, then one look at the test split."""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caplet.acceptance import Acceptance
from caplet.data import Splits
from caplet.files import write_bytes
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.prune.targets import check_target, network_sizes, put_in_order, removals_for
from caplet.jobs.run import begin, check, correct_images, evaluate, job_device, open_test_split, ship, training_notes
from caplet.metrics import Accuracy, Paired
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.models.cost import cost_of
from caplet.nn.device import AUTO, CPU, TRAINING, computing, placed
from caplet.progress import Note, Progress, silent
from caplet.prune.coupling import measure_activity
from caplet.prune.order import RemovalOrder
from caplet.prune.refit import refitted
from caplet.prune.structure import Selection, cut, kept_sizes, structure_of, with_iterations
from caplet.report.pruning import remaining_units
from caplet.runs.folder import plain, read_record, remove, write_record
from caplet.runs.records import KEPT, Kept, KeptUnits, RoundMetrics
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
        met: whether the target was met; False only where no evaluation kept the allowed loss.
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
    device: str = AUTO,
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
        device: where scores, fine-tuning and accuracies are computed; ``auto``: the first of cuda, mps and cpu here.

    Raises:
        ConfigError: a target that would empty a layer, an unknown space, too few calibration images.
        ModelError: NaN weights, images of another size, a layer without a pruning rule.
        ArtefactError: the run folder cannot be used.
        CapletError: gradients or a loss that are not finite.
    """
    there = job_device(device, auto=TRAINING, exact=False)
    splits = check(splits, model, note=note)
    check_target(model, splits.calibration, settings)
    resolved = {**settings.model_dump(mode="json"), "weights": weights_digest(model)}
    with computing(there), begin("prune", out, splits, resolved, model, resume=resume, force=force) as run:
        work = PruneWork(run, placed(model, there), splits, settings, taught, note, progress, bars, device)
        return work.finish(*(work.rounds() if settings.max_drop is None else work.search()))


def ship_pruned(
    run: Path, splits: Splits, original: CapsNet, model: CapsNet, record: dict[str, Any], note: Note, met: bool = True
) -> PruneResult:
    """Open the test split, and write the pruned ``model`` and its metrics: ``record``, costs and accuracies."""
    answers = open_test_split(splits, original, {"pruned": model}, note)
    before, after = cost_of(original), cost_of(model)
    accuracies, against = (answers.accuracy(), answers.accuracy("pruned")), answers.against("pruned")
    metrics = {
        **record,
        "original": {"cost": before.to_json(), "test": accuracies[0]},
        "pruned": {**record.get("pruned", {}), "cost": after.to_json(), "test": accuracies[1]},
        "macs_kept": after.macs / before.macs,
        "parameters_kept": after.parameters / before.parameters,
        "paired": against,
    }
    known = {"pruned": True, "test": asdict(accuracies[1]), "data": splits.info["name"]}
    model.notes = {**known, **training_notes(splits, original)}
    save_model(model, run / MODEL, model.notes)
    metrics = ship(run, splits, metrics, answers, result="pruned")
    return PruneResult(met, placed(model, CPU), run / MODEL, *accuracies, against, run, metrics)


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
    device: str  # of training; the model is where everything else is computed
    whole: dict[str, int] = field(init=False)
    stages: Stages = field(init=False)
    dead: dict[str, int] = field(default_factory=dict)  # units that were removed for free, by dependency group

    def __post_init__(self) -> None:
        self.whole = network_sizes(self.model, self.settings.units)
        self.stages = Stages(self.run, self.note)

    def load(self, folder: Path) -> CapsNet:
        """The model that a round left in ``folder``, where everything is computed."""
        return load_model(folder / MODEL).to(self.model.device)

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

    def rounds(self) -> tuple[list[RoundMetrics], RoundMetrics, bool]:
        """Round by round to the target: the rounds' records, that of the result, whether the target is met."""
        model, places = self.begin()
        before: dict[str, str] = {}
        records: list[RoundMetrics] = []
        for index in range(1, self.settings.rounds + 1):
            fraction = index / self.settings.rounds
            inputs = {"settings": self.settings.model_dump(mode="json"), "share": fraction, "before": before}
            work = partial(self.round, model, places, None, fraction)
            done = self.stages.do(f"round{index}", inputs, work, (MODEL, ROUND))
            before, model = done.outputs, self.load(done.folder)
            records.append(self.record(done, index))
            places = records[-1].kept_units
        return records, records[-1], True

    def search(self) -> tuple[list[RoundMetrics], RoundMetrics, bool]:
        """As :meth:`rounds`, by bisection on how much goes: the most that keeps to the allowed loss of accuracy."""
        model, places = self.begin()
        order = put_in_order(model, self.splits.calibration, self.settings, self.progress)
        low, high = 0, len(order.removals)
        assert self.settings.max_drop is not None
        acceptance = Acceptance(correct_images(self.model, self.splits.calibration), self.settings.max_drop)
        records: list[RoundMetrics] = []
        best: RoundMetrics | None = None
        for trial in range(1, TRIALS + 1):
            count = (low + high + 1) // 2
            inputs = {"settings": self.settings.model_dump(mode="json"), "count": count}
            work = partial(self.round, model, places, order, count)
            done = self.stages.do(f"trial{trial}", inputs, work, (MODEL, ROUND))
            correct = correct_images(self.load(done.folder), self.splits.calibration)
            pair, accepted = acceptance.paired(correct), acceptance.accepts(correct)
            record = replace(self.record(done, trial), accepted=accepted, pair=pair)
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
        nearest = min(records, key=lambda record: record.pair.loss if record.pair else math.inf)
        return records, best or nearest, best is not None

    def round(
        self,
        model: CapsNet,
        places: dict[str, list[int]],
        order: RemovalOrder | None,
        amount: float,
        folder: Path,
        resume: bool,
    ) -> None:
        """One round: score, cut, fine-tune, measure on the calibration split; leaves its files in ``folder``.

        Args:
            order: of removals, if there is one already; then ``amount`` is their number, else the part of the way to
                the target.
        """
        began = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        count = int(amount)
        if order is None:
            order = put_in_order(model, self.splits.calibration, self.settings, self.progress)
            count = removals_for(model, order, self.settings, self.whole, amount)
        selection = order.selection(count)
        smaller = cut(model, selection, order.structure)
        bare = before = evaluate(smaller, self.splits.calibration).accuracy
        refitted_layers: tuple[str, ...] = ()
        if self.settings.refit:
            images = self.splits.train.evenly_spaced(self.settings.refit).images
            candidate, layers = refitted(
                model, smaller, selection, images, structure=order.structure, seed=self.settings.seed
            )
            found = evaluate(candidate, self.splits.calibration).accuracy if layers else bare
            if found.correct > bare.correct:  # where nearly everything is gone, refitting can do harm
                smaller, before, refitted_layers = candidate, found, layers
        after, trained = before, 0
        curve: dict[str, Any] = {"steps": (), "epochs": ()}
        if self.settings.epochs > 0:
            tuning = self.settings.finetuning(len(self.splits.train))
            task = FinetuneTask(tuning, smaller, self.model if self.settings.teach else None, self.taught)
            tuned = train(task, self.splits, folder / "finetune", resume=True, progress=self.bars, device=self.device)
            smaller = tuned.model.to(model.device)
            curve["steps"] = read_steps(folder / "finetune" / LOG)
            kept = ("epoch", "global_step", "calibration_accuracy", "calibration_loss")
            curve["epochs"] = [{name: row[name] for name in kept} for row in tuned.history]
            after = evaluate(smaller, self.splits.calibration).accuracy
            trained = (tuning.steps or 0) * min(tuning.batch_size, len(self.splits.train))
        save_model(smaller, folder / MODEL, training_notes(self.splits, model))
        record = RoundMetrics(
            cost_of(smaller).to_json(),
            before,
            after,
            round(time.perf_counter() - began, 1),
            calibration_cut=bare,
            finetuning=curve,
            images_trained=trained,
            refitted=refitted_layers,
            sizes=kept_sizes(selection),
            kept_units=_follow(places, selection),
        )
        write_record(folder / ROUND, record)
        if self.settings.epochs > 0:
            remove(folder / "finetune" / CHECKPOINT)  # large, and no longer needed

    def record(self, done: Done, index: int) -> RoundMetrics:
        """A finished round's record; says so."""
        found = read_record(done.folder / ROUND, RoundMetrics)
        cost, whole, bare = found.cost, self.whole, found.calibration_cut or found.calibration_before
        self.note(
            f"{done.folder.name}: {100 * cost['macs'] / whole['macs']:.1f} % of the MACs,"
            f" {100 * cost['parameters'] / whole['params']:.1f} % of the parameters,"
            f" calibration {bare.percent:.2f} % after surgery, {found.calibration_before.percent:.2f} % refitted and"
            f" {found.calibration.percent:.2f} % after fine-tuning, {found.seconds:.0f} s"
        )
        return replace(found, round=index, folder=done.folder.name)

    def finish(self, records: list[RoundMetrics], final: RoundMetrics, met: bool) -> PruneResult:
        """Write the map of what remains, and ship the result."""
        model, settings = self.load(self.run / final.folder), self.settings
        kept = _kept(self.model, final.kept_units)
        images = self.splits.calibration.evenly_spaced(settings.images).images
        record = {
            "met": met,
            "settings": settings.model_dump(mode="json"),
            "target": settings.target,
            "pruned": {"round": final.folder},
            "sizes": {name: [len(row.kept), row.of] for name, row in kept.spaces.items()},
            "dead_removed": self.dead,
            "activity": {
                "original": measure_activity(self.model, images).to_json(),
                "pruned": measure_activity(model, images).to_json(),
            },
            "rounds": [
                {key: value for key, value in plain(row).items() if key != "kept_units" and value is not None}
                for row in records
            ],
        }
        write_record(self.run / KEPT, kept)
        write_bytes(self.run / PICTURE, remaining_units(kept, f"what remains of {self.model.family}"))
        return ship_pruned(self.run, self.splits, self.model, model, record, self.note, met)


def _follow(places: dict[str, list[int]], selection: Selection) -> dict[str, list[int]]:
    """Places of the units that stay, in the unpruned model."""
    return {name: [places[name][unit] for unit in np.flatnonzero(keep).tolist()] for name, keep in selection.items()}


def _kept(original: CapsNet, units: dict[str, list[int]]) -> Kept:
    """Which units of the unpruned model remain: by group, and of voting capsules by source, type and position."""
    structure = structure_of(original)
    spaces = {name: KeptUnits(str(group.kind), group.size, units[name]) for name, group in structure.groups.items()}
    votes: dict[str, list[list[int]]] = {}
    for voters in structure.voters:
        remain = np.isin(np.arange(structure.groups[voters.group].size), units[voters.group])
        for (space, positions), (own, types, at) in zip(voters.sources, structure.by_source(voters), strict=True):
            table = np.zeros((structure.groups[space].size, positions), dtype=int)
            table[types, at] = remain[own]
            votes[space.partition(".")[0]] = table.tolist()
    return Kept(spaces, votes)
