"""A sweep: many networks trained for a short time, a few of them in full, the winner quantized and measured.

Processes of several machines may work on one: Optuna's journal lies in the run folder, which trial is next is settled
under that folder's lock, and who makes a network holds the network's own folder. What a trial draws depends on the
seed, its number and the trials before it, not on the process; one that an interrupted process left is gone on with.
"""

import math
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caplet.data import Splits
from caplet.errors import CapletError, ConfigError, FolderInUse, ModelError, PlanError, TargetNotMet
from caplet.files import access, check_regular, locked, write_bytes, write_json
from caplet.jobs.compress.choose import outlook
from caplet.jobs.quantize.job import quantize
from caplet.jobs.quantize.promise import divide, provable_tolerance
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.report import PAGE, write_report
from caplet.jobs.run import begin
from caplet.jobs.sweep.networks import BITS, MODEL, PLANS, PROGRAM, WEIGHT_BITS, Maker, Network, draw
from caplet.jobs.sweep.settings import UNTIMED, SweepSettings
from caplet.metrics import accuracy
from caplet.models.checkpoint import load_model
from caplet.program.file import load_program
from caplet.program.within import plan_within
from caplet.progress import Note, silent
from caplet.runs import folder as runs
from caplet.runs.records import DETAILS, FLIPS, PREDICTIONS, SEARCH
from caplet.runs.swept import TrialMetrics
from caplet.version import __version__

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

JOURNAL, HARDWARE, TRIALS, FULL = "sweep.journal", "hardware.json", "trials", "full"
RANDOM, JUDGED, REFUSED = 12, 5, 200
"""Trials drawn without regard to others; finished before others are stopped; draws in a row that may fit no limit."""
SMALL, ACCURATE = 0.5, 0.1
"""Half the flash is worth 2 to this power times as many errors, where the smallest network is wanted and where not."""
ROW_BYTES = 700
"""Flash for rows of packed weights, which end with a byte."""
_FOUND, _SIZES, _TAKEN = "found", "sizes", ("failed", "stopped", "made")
"""Attributes of a trial: its :class:`TrialMetrics`, in the end; what its network is to take. States that count."""


def sweep(
    splits: Splits,
    out: str | Path,
    settings: SweepSettings | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    note: Note = silent,
) -> dict[str, Any]:
    """Find a small capsule network for these images and limits, and write it with all others to the run folder ``out``.

    Calibration images decide; the test split is opened once, for the winner. A process that is given the folder of a
    sweep that goes on, with equal settings and data, joins it. ``resume`` goes on with an interrupted sweep, or with
    more trials; ``force`` begins anew.

    Returns:
        What ``metrics.json`` holds; ``met`` says whether the winner keeps to all limits.

    Raises:
        ConfigError: Optuna is not installed; settings out of range, or others than those of the sweep in the folder.
        ArtefactError: the run folder cannot be used.
        TargetNotMet: nothing that was drawn fits the limits of flash, RAM and multiply-accumulates.
    """
    settings, run = settings or SweepSettings(), Path(out)
    maker = Maker(settings, splits)
    maker.recipe(full=True)  # refuses settings of training
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a sweep needs the package optuna: pip install 'caplet[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = settings.model_dump(mode="json", exclude={"trials", "minutes", "finalists"})
    asked["versions"] = {"caplet": __version__, "torch": torch.__version__}  # all processes have the same
    with begin("sweep", run, splits, asked, resume=resume, force=force, shared=True):
        for part in (JOURNAL, TRIALS, FULL, runs.METRICS) if force else ():
            runs.remove(run / part)
        work = _Sweep(run, maker, optuna, note)
    work.trials()
    with locked(run / FULL, "--out", wait=True):  # one process makes them; others wait, and find them made
        return work.finish(*work.finals())


class _Sweep:
    """One process's part in a sweep."""

    def __init__(self, run: Path, maker: Maker, optuna: Any, note: Note) -> None:
        self.run, self.maker, self.note, self.settings = run, maker, note, maker.settings
        self.began, self.optuna, path = time.monotonic(), optuna, run / JOURNAL
        storages, warmup = optuna.storages, max(1, maker.recipe(full=False).epochs // 3)
        with access("write", path):
            path.touch()
            check_regular(path, "the journal")
            lock = storages.journal.JournalFileSymlinkLock(str(path))
            lock.acquire()
            text = path.read_bytes()
            if not text.endswith(b"\n"):  # a killed process did not finish its last line
                path.write_bytes(text[: text.rfind(b"\n") + 1])
            lock.release()
            storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(path), lock))
            how = {"pruner": optuna.pruners.MedianPruner(JUDGED, warmup), "load_if_exists": True}
            self.study: Study = optuna.create_study(storage=storage, study_name="sweep", **how)

    def drawn(self) -> "list[FrozenTrial]":
        """All trials, in order."""
        return self.study.get_trials(deepcopy=False)

    def again(self, number: int) -> "Trial":
        """A trial that was drawn before."""
        trial: Trial = self.optuna.Trial(self.study, self.drawn()[number]._trial_id)
        return trial

    def found(self, *states: str) -> list[TrialMetrics]:
        """Trials that ended in one of the ``states``, the best one first."""
        rows = (each.user_attrs[_FOUND] for each in self.drawn() if _FOUND in each.user_attrs)
        typed = (runs.typed(TrialMetrics, row, str(self.run / JOURNAL)) for row in rows if row["state"] in states)
        return sorted(typed, key=lambda row: row.value)

    def network(self, trial: "Trial") -> Network:
        return draw(trial, min(self.maker.splits.train.image_shape[1:]))

    def folder(self, number: int, full: bool) -> Path:
        return self.run / (FULL if full else TRIALS) / f"{number:04}"

    def opened(self, trial: "Trial", full: bool) -> AbstractContextManager[Path]:
        """The run folder of a network, held open. Raises FolderInUse where another process makes it."""
        network, splits = self.network(trial), self.maker.splits if full else self.maker.few
        settings = {**self.maker.recipe(full, network).model_dump(mode="json"), "keep": network.keep}
        return begin("trial", self.folder(trial.number, full), splits, settings, resume=True)

    def trials(self) -> None:
        """Trials, until all that were asked for have ended, also those of other processes."""
        more = True
        while more:
            with ExitStack() as held:
                with locked(self.run, "--out", wait=True):
                    trial, more = self.next(held)
                if trial is not None:
                    self.make(trial)
            time.sleep(0.5 * (more and trial is None))

    def next(self, held: ExitStack) -> "tuple[Trial | None, bool]":
        """A trial to do, its folder ``held``: one that an interrupted process left, or a new one; and whether other
        processes are at theirs. Raises TargetNotMet where nothing that was drawn fits."""
        others = 0
        for each in (each for each in self.drawn() if not each.state.is_finished()):
            if _SIZES not in each.user_attrs:  # interrupted while it was drawn: the same draw is made again
                self.study.tell(each.number, state=self.optuna.trial.TrialState.FAIL)
                continue
            try:
                trial = self.again(each.number)
                held.enter_context(self.opened(trial, False))
                return trial, True
            except FolderInUse:
                others += 1
        spent, minutes = time.monotonic() - self.began, self.settings.minutes  # one more trial, and the finalists, too
        in_time = minutes is None or spent + self.left(self.settings.most - 1) < 60 * minutes
        taken = len(self.found(*_TAKEN)) + others
        more = taken < self.settings.most and (in_time or not taken)
        for _ in range(REFUSED if more else 0):
            if (new := self.ask()) is not None:
                held.enter_context(self.opened(new, False))
                return new, True
        if not others and not self.found("made"):
            limits, values = self.settings.limits, [row.sizes for row in self.found("rejected") if row.flash]
            told = outlook([min(values, key=limits.distance)], limits) if values else ("larger images",)
            raise TargetNotMet(
                f"no network within the limits was found among {len(self.drawn())} that were drawn; what would have to"
                f" give for the nearest one, with weights of {WEIGHT_BITS} bits: {told[0]}"
            )
        return None, others > 0

    def ask(self) -> "Trial | None":
        """A new trial, where its network is to fit; others end here."""
        count = sum(each.state.name != "FAIL" for each in self.drawn())
        (seed,) = np.random.SeedSequence((self.settings.seed, count)).generate_state(1)
        self.study.sampler = self.optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=RANDOM)
        trial: Trial = self.study.ask()
        network, known = self.network(trial), [each.user_attrs.get(_SIZES) for each in self.drawn()]
        sized = TrialMetrics(trial.number, "rejected", network.text)
        if same := [row["number"] for row in known if row and row["network"] == network.text]:
            self.tell(trial, replace(sized, about=f"the network of trial {same[0]}"))  # teaches it to draw others
            return None
        try:
            sized = replace(sized, **self.maker.estimate(network))
            if not (excess := self.settings.limits.excess(sized.sizes)):
                trial.set_user_attr(_SIZES, runs.plain(sized))
                return trial
            trial.report(100 + sum(excess.values()), 0)  # teaches the sampler which ones are nearer to the limits
        except (ModelError, PlanError) as error:
            sized = replace(sized, about=str(error))
        self.tell(trial, sized)
        return None

    def tell(self, trial: "Trial", found: TrialMetrics) -> None:
        """End a trial."""
        trial.set_user_attr(_FOUND, runs.plain(replace(found, history=())))
        state, made = self.optuna.trial.TrialState, found.state == "made"
        self.study.tell(trial, found.value if made else None, state=state.COMPLETE if made else state.PRUNED)

    def make(self, trial: "Trial") -> None:
        """Make the network of a trial, and say how it went."""
        frozen, count = self.drawn()[trial.number], len(self.maker.few.calibration)
        found = replace(runs.typed(TrialMetrics, frozen.user_attrs[_SIZES], JOURNAL), state="stopped")

        def report(epoch: dict[str, Any]) -> None:
            nonlocal found
            judged = accuracy(round(count * epoch["calibration_accuracy"]), count)
            found = self.valued(replace(found, accuracy=judged, seconds=epoch["seconds"], epoch=epoch["epoch"]))
            if epoch["epoch"] not in frozen.intermediate_values:  # it is, where an interrupted process was as far
                trial.report(found.value, epoch["epoch"])
            if trial.should_prune():
                raise self.optuna.TrialPruned

        try:
            folder = self.folder(trial.number, False)
            found = self.valued(self.maker.make(trial.number, self.network(trial), folder, False, report))
            if self.settings.limits.excess(found.sizes):
                found = replace(found, state="rejected")
        except self.optuna.TrialPruned:
            found = replace(found, about=f"after epoch {found.epoch}")
        except CapletError as error:
            found = replace(found, state="failed", about=str(error))
        self.tell(trial, found)
        ended = len(self.found(*_TAKEN))
        of = f" of {self.settings.most}" * (self.settings.most < UNTIMED)
        self.note(f"trial {found.number} ({ended}{of}): {_described(found)}")
        rest = 60 * (self.settings.minutes or math.inf) - (time.monotonic() - self.began)
        for best in self.found("made")[:1]:
            left = max(0.0, min(rest, self.left(ended))) / 60
            self.note(f"  best so far {_described(best)}; about {left:.0f} minutes left")

    def valued(self, found: TrialMetrics) -> TrialMetrics:
        """With what is minimised: the logarithm of the errors, and a part of that of the flash."""
        assert found.accuracy is not None
        wrong, asked = found.accuracy.n - found.accuracy.correct, (self.settings.min_accuracy, self.settings.max_drop)
        weight = ACCURATE if asked == (None, None) else SMALL
        return replace(found, value=math.log((wrong + 1) / found.accuracy.n) + weight * math.log(found.flash))

    def left(self, ended: int) -> float:
        """About how many seconds the trials that are left, and the finalists, take one process."""
        spent = [row.seconds for row in self.found("stopped", "made")]
        maker, count = self.maker, self.settings.finalists
        full = maker.recipe(True).epochs * len(maker.splits.train)
        rest = max(0, self.settings.most - ended) + count * full / (maker.recipe(False).epochs * len(maker.few.train))
        return rest * sum(spent) / max(1, len(spent))

    def finals(self) -> tuple[list[TrialMetrics], list[TrialMetrics], float | None]:
        """Networks in full: the most accurate ones, or the smallest with the accuracy asked for, by bisection. Also the
        trials that no other one beats, by flash (first), and the accuracy that is asked for, in percent (last)."""
        front: list[TrialMetrics] = []
        for trial in sorted(self.found("made"), key=lambda found: (found.flash, -found.percent)):
            if not front or trial.percent > front[-1].percent:
                front.append(trial)
        done, settings, target = dict[int, TrialMetrics](), self.settings, self.settings.min_accuracy
        best = sorted(self.found("made"), key=lambda found: (found.percent, -found.loss))
        steps = best if (target, settings.max_drop) == (None, None) else front
        while len(done) < settings.finalists:
            enough = [at for at, found in done.items() if target is not None and found.percent >= target]
            few = [at for at in done if target is not None and at < min(enough, default=len(steps))]
            places = [at for at in range(max(few, default=-1) + 1, min(enough, default=len(steps))) if at not in done]
            if not places:
                break
            place = places[-1 if target is None else len(places) // 2]
            done[place] = self.full(steps[place], len(done) + 1)
            self.note(f"in full: {_described(done[place])}")
            if settings.max_drop is not None:
                target = max(found.percent for found in done.values()) - settings.max_drop
        return front, [*done.values()], target

    def full(self, found: TrialMetrics, count: int) -> TrialMetrics:
        """The network of a trial in full, made where it is not there."""
        folder, trial = self.folder(found.number, True), self.again(found.number)
        if not runs.is_finished(folder):
            self.note(f"in full, {count} of at most {self.settings.finalists}: {found.network}")
            with self.opened(trial, True):
                self.maker.make(trial.number, self.network(trial), folder, True)
        return runs.read_record(folder / runs.METRICS, TrialMetrics)

    def finish(self, front: list[TrialMetrics], done: list[TrialMetrics], target: float | None) -> dict[str, Any]:
        """Quantize the winner within the limits, open the test split for it, and write everything about the sweep."""
        run, limits, won = self.run, self.settings.limits, winner(done, target)
        folder = self.folder(won.number, True)
        quantized = self.quantized(folder, won, target)
        metrics = runs.read_record(quantized / runs.METRICS, dict)
        model = metrics["models"][0]
        program, errors = load_program(quantized / model["file"]), 100 - model["calibration"]["percent"]
        arena, plan = plan_within(program, limits.ram, PLANS)
        flash = program.firmware_bytes + arena.code_bytes
        values: dict[str, float] = {"flash": flash, "ram": arena.bytes, "macs": won.macs}
        missed, give = [*limits.excess(values)], [*outlook([values], limits)]
        if target is not None and errors > 100 - target + 1e-9:
            missed.append("errors")
            give.append(f"an accuracy of {100 - errors:.2f} % of calibration images instead of {target:.2f} %")
        asked = {name: getattr(limits, name) for name in values}
        asked["errors"], values["errors"] = None if target is None else 100 - target, errors
        networks = [*self.found("rejected", *_TAKEN), *done]
        metrics |= {
            "met": not missed,
            "limits": {name: {"asked": asked[name], "found": value} for name, value in values.items()},
            "plan": plan,
            "missed": missed,
            "outlook": [" and ".join(give)] if give else [],
            "winner": won.number,
            "front": [found.number for found in front],
            "networks": sorted(networks, key=lambda found: found.number),
        }
        for made in (run / found.folder for found in networks if found.folder):
            if not (made / PAGE).exists():
                write_report([made])
        with locked(run, "--out", wait=True):
            for name in (model["file"], f"plan_{model['role']}.json", PREDICTIONS, FLIPS, DETAILS, SEARCH):
                write_bytes(run / name, (quantized / name).read_bytes())
            write_bytes(run / MODEL, (folder / MODEL).read_bytes())
            runs.write_record(run / runs.METRICS, metrics)
            write_report([run])
        whole: dict[str, Any] = runs.plain(metrics)
        return whole

    def quantized(self, folder: Path, won: TrialMetrics, target: float | None) -> Path:
        """The run folder of the winner's quantization, made where it is not there; the arena stays as it is."""
        out, settings, reference = folder / "quantized", self.settings, won.reference
        whole, model = load_program(folder / PROGRAM), load_model(folder / MODEL)
        assert reference is not None
        code = whole.code_bytes + plan_within(whole, settings.ram, PLANS)[0].code_bytes
        if target is None:  # no accuracy on calibration images was asked for: training images decide
            error = 1 - QuantizeSettings().confidence
            tolerance = provable_tolerance(divide(model, self.maker.splits, None)[1].least, error)
            tolerance = max(settings.tolerance, tolerance)
        else:
            tolerance = min(settings.tolerance, round(max(0.0, reference.percent - target), 6))
        write_json(folder / HARDWARE, {"name": "winner", "activation_containers": [BITS], "only_containers": True})
        asked = QuantizeSettings(
            tolerance=tolerance,
            budget=max(settings.flash - code - ROW_BYTES, whole.flash_bytes // 2),
            hardware=str(folder / HARDWARE),
            rounding="nearest",  # what votes carry on takes RAM, which the trial did not count
            accept="measured" if target is not None else "confidence",
            seed=settings.seed,
        )
        if not runs.is_finished(out):
            quantize(model, self.maker.splits, out, asked, resume=True, note=self.note)
        return out


def winner(done: list[TrialMetrics], target: float | None) -> TrialMetrics:
    """The smallest finalist with the accuracy asked for, in percent; else the most accurate one, of equals the one with
    the lower loss."""
    enough = [found for found in done if target is not None and found.percent >= target]
    best = max(done, key=lambda found: (found.percent, -found.loss))
    return min(enough, key=lambda found: found.flash, default=best)


def _described(found: TrialMetrics) -> str:
    """A network in a line."""
    sizes = f"{found.flash:,} bytes of flash, {found.ram:,} of RAM, {found.macs:,} MACs"
    return f"{found.percent:.2f} %, {sizes}, {found.state} {found.about}".rstrip() + f" ({found.network})"
