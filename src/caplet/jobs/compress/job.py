"""The stages of a compression: measure, prune, quantize, fine-tune, export, verify; and what keeps to the limits."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.data import Splits
from caplet.errors import ArtefactError, ConfigError, ToolMissing
from caplet.files import why
from caplet.jobs.compress.choose import Choice, Pruned, choose
from caplet.jobs.compress.curves import Curves, measure
from caplet.jobs.compress.result import MODEL, CompressedModel
from caplet.jobs.compress.settings import BATCH, CompressSettings
from caplet.jobs.engine import predictions
from caplet.jobs.evaluate import check_data, float_predictions
from caplet.jobs.finetune import ROLE, finetune_model, finetune_settings
from caplet.jobs.prune import prune
from caplet.jobs.pruning import PruneSettings, spread_set
from caplet.jobs.quantize import CALIBRATION_IMAGES, QuantizeSettings, artefacts, quantize, spread
from caplet.jobs.records import VERIFIED, record_verified
from caplet.jobs.report import write_report
from caplet.jobs.ship import Target, export_c, find_program, verify_engines
from caplet.jobs.stages import Done, Stage, Stages, sha256
from caplet.jobs.train import fit_to_data, resolve_recipe, train_by_recipe
from caplet.lower import lower
from caplet.metrics import accuracy, paired
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet, check_finite
from caplet.models.checkpoint import load_model
from caplet.nn.points import Role
from caplet.program import Program
from caplet.program.arena import plan_memory
from caplet.program.c.emit import EmitSettings
from caplet.program.file import load_program
from caplet.program.program import CODE_BYTES
from caplet.prune.cost import FLOAT_BYTES, cost_of
from caplet.quant.calibrate import calibrate
from caplet.quant.plan import QuantPlan
from caplet.quant.search.methods import Method
from caplet.runs import METRICS, SPLITS, RunFolder, open_run
from caplet.train.finetune import weights_digest

TRAIN, CURVES, FIRMWARE, VERIFY = "train", "curves", "firmware", "verify"
MEMORY = "memory.json"
FLOAT = "model.safetensors"
LARGE = 0.05
"""Share of all weights from which a layer's are narrowed by training."""
RECOVERED = 3.0
"""Points of accuracy that full fine-tuning may win back over the short one at the measured points."""
TABLE_BYTES = 4096
"""Left of a flash limit beside the code, for what is not weights: tables, and rows that end within a byte."""
Note = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Attempt:
    """One pruned and quantized network, measured against the limits.

    Attributes:
        folders: of its stages, in order.
        program, path: the integers and their file.
        values: by limit, what was reached: ``max_drop`` in percentage points on the calibration split, ``flash`` and
            ``ram`` in bytes, ``macs``.
        missed: names of the limits that are not kept.
    """

    folders: tuple[Path, ...]
    program: Program
    path: Path
    values: dict[str, float]
    missed: tuple[str, ...]

    def distance(self, limits: dict[str, float | None]) -> tuple[int, float]:
        """How far from the limits: number missed, then their excess, each relative to its limit."""
        excess = (self.values[name] / max(float(limits[name] or 0), 0.1) - 1 for name in self.missed)
        return len(self.missed), sum(excess)


def compress(
    model: CapsNet | None,
    splits: Splits,
    out: str | Path,
    settings: CompressSettings,
    *,
    resume: bool = False,
    force: bool = False,
    note: Note = lambda text: None,
    progress: Progress | None = None,
    bars: bool = False,
) -> CompressedModel:
    """Prune, fine-tune and quantize ``model`` until it keeps to the limits; write, verify and report the result.

    How much is left to pruning and how much to widths is chosen from a few measured points of either. Decisions see
    ``splits.calibration`` and, for fine-tuning, ``splits.train``. Every stage is a run folder of its own, and its last
    act is to measure the test split; no stage reads what another one measured there.

    Args:
        model: None trains the settings' recipe first.
        out: the run folder. ``resume`` goes on with the same settings; ``force`` also takes a folder with other
            settings. Either way finished stages whose inputs are equal are kept.
        settings: its ``model``, ``recipe`` and ``data`` only say where ``model`` and ``splits`` came from.
        note: called with one line of text at every decision.
        progress: called with (images done, images in all) during measurements.
        bars: a progress bar on stderr while networks are trained.

    Returns:
        The network; where no attempt keeps to all limits, the one that comes nearest, with ``met`` False.

    Raises:
        ModelError: NaN weights, images of another size, a layer without a pruning rule or an integer form.
        ConfigError: settings out of range, or others than those of the run to resume.
        ArtefactError: the run folder cannot be used.
    """
    if model is not None:
        check_finite(named_tensors(model), f"model {model.family}")
        check_data(model, splits.calibration)
    elif settings.recipe is None:
        raise ConfigError("compress: no model, and the settings name no recipe; give one of them")
    resolved = {
        **settings.model_dump(mode="json"),
        "weights": None if model is None else weights_digest(model),
        "data_hashes": splits.info["hashes"],
    }
    with open_run(out, resolved, resume=resume, force=force) as run:
        splits.save_ids(run / SPLITS)
        start = _Start(run, splits, settings, note, progress, bars)
        result = _Compression(start, start.trained() if model is None else model).all()
    folders = [result.folder / name for name in reversed(result.metrics["folders"])]
    write_report([result.folder, *folders], result.report)
    return result


@dataclass
class _Start:
    """What all stages of a run share."""

    run: RunFolder
    splits: Splits
    settings: CompressSettings
    note: Note
    progress: Progress | None
    bars: bool
    done: dict[str, Done] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages = Stages(self.run, self.note)
        self.data = {"name": self.splits.info["name"], "hashes": self.splits.info["hashes"]}

    def do(self, name: str, inputs: dict[str, Any], work: Callable[[Path, bool], None], *outputs: str) -> Done:
        """Do a stage."""
        done = self.stages.do(Stage(name, {**inputs, "data": self.data}, work, outputs))
        self.done[name] = done
        return done

    def trained(self) -> CapsNet:
        """The stage that trains the recipe."""
        settings = self.settings
        recipe = settings.recipe
        assert recipe is not None
        changes = {"calibration_size": len(self.splits.calibration)}

        def work(folder: Path, resume: bool) -> None:
            train_by_recipe(
                recipe,
                folder,
                root=settings.root,
                data=settings.data,
                size=settings.size,
                channels=settings.channels,
                changes=changes,
                resume=resume,
                progress=self.bars,
            )

        resolved = fit_to_data(resolve_recipe(recipe, changes), self.splits)
        done = self.do(TRAIN, {"settings": resolved.model_dump(mode="json")}, work, FLOAT, METRICS)
        return load_model(done.folder / FLOAT)


class _Compression:
    """A run in progress, from the trained model on."""

    def __init__(self, start: _Start, model: CapsNet) -> None:
        self.start, self.model = start, model
        self.run, self.splits, self.settings = start.run, start.splits, start.settings
        self.note, self.progress, self.do = start.note, start.progress, start.do
        calibration = self.splits.calibration
        self.right: NDArray[np.bool_] = float_predictions(model, calibration) == calibration.labels.numpy()

    def all(self) -> CompressedModel:
        """Everything, to the report."""
        curves, choice = self.choice()
        limits = self.settings.limits.model_dump()
        tried: list[Attempt] = []
        for attempts in self.attempts(curves, choice):
            tried += attempts
            if any(not attempt.missed for attempt in attempts):
                break
        best = min(tried, key=lambda attempt: (attempt.distance(limits), attempt.values["flash"]))
        return self.finish(curves, choice, best)

    def choice(self) -> tuple[Curves, Choice]:
        """The measured curves, and what they say."""
        folder = self.run / CURVES
        folder.mkdir(exist_ok=True)
        curves = measure(self.model, self.splits, self.settings, RunFolder(folder), self.start.data, self.note)
        choice = choose(curves.curve, curves.widths, curves.size, self.settings.limits)
        for reason in choice.reasons:
            self.note(reason)
        self.run.write_json("choice.json", choice.to_json())
        return curves, choice

    def attempts(self, curves: Curves, choice: Choice) -> Iterator[list[Attempt]]:
        """Amounts of pruning, each quantized: first more than was chosen, where full fine-tuning may win it back."""
        for point in sorted(curves.curve, key=lambda point: point.macs):
            if point.macs >= choice.pruned.macs:
                yield self.attempt(point, 1.0)
            elif point.drop <= self.settings.limits.max_drop + RECOVERED:
                yield self.attempt(point, 0.5)

    def attempt(self, point: Pruned, share: float) -> list[Attempt]:
        """One amount of pruning, quantized within what pruning left of the accepted loss.

        Args:
            share: of the accepted loss that pruning may take.
        """
        limits = self.settings.limits
        model, folders = self.model, []
        name = f"{100 * point.macs_kept:.3g}"
        if point.steps or point.macs_kept < 1:
            done = self.pruned(point, f"prune-{name}")
            model, folders = load_model(done.folder / FLOAT), [done.folder]
        calibration = self.splits.calibration
        loss = paired(self.right, float_predictions(model, calibration) == calibration.labels.numpy()).loss
        left = limits.max_drop - loss
        if model is not self.model:
            self.note(f"pruning to {name} % of the multiply-accumulates: {loss:+.2f} points, {left:.2f} are left")
        if loss > share * limits.max_drop:
            self.note(f"pruning alone takes more than {share:.0%} of the accepted loss; pruning less")
            return []
        done = self.quantized(model, max(0.0, left), f"quantize-{name}")
        found = self.measured((*folders, done.folder), find_program(done.folder), model)
        use, missed = self.settings.quantize.finetune, set(found.missed)
        if use == "yes" or (use == "auto" and missed and missed <= {"flash", "max_drop"}):
            return [found, *self.finetuned(model, found, name)]
        return [found]

    def pruned(self, point: Pruned, name: str) -> Done:
        """The stage that prunes."""
        chosen = self.settings.prune
        settings = PruneSettings(
            score=chosen.score,
            macs=min(1.0, point.macs_kept * (1 + 1e-6)),
            epochs=self.settings.finetuned(len(self.splits.train)),
            lr=chosen.lr,
            batch_size=BATCH,
            seed=self.settings.seed,
        )

        def work(folder: Path, resume: bool) -> None:
            prune(
                self.model,
                self.splits,
                folder,
                settings,
                resume=resume,
                note=self.note,
                progress=self.progress,
                bars=self.start.bars,
            )

        inputs = {"model": weights_digest(self.model), "settings": settings.model_dump(mode="json")}
        return self.do(name, inputs, work, FLOAT, METRICS)

    def quantized(self, model: CapsNet, tolerance: float, name: str) -> Done:
        """The stage that finds widths."""
        limits, chosen = self.settings.limits, self.settings.quantize
        budget = None if limits.flash is None else max(1, limits.flash - CODE_BYTES - TABLE_BYTES)
        settings = QuantizeSettings(
            method=chosen.method,
            hardware="portable" if chosen.method is Method.QCAPSNETS else "bytes",  # limits are bytes, not bits
            tolerance=round(tolerance, 6),
            budget=budget,
            reconstruct=chosen.reconstruct,
            narrow=chosen.narrow and bool(chosen.reconstruct),
            seed=self.settings.seed,
        )

        def work(folder: Path, resume: bool) -> None:
            quantize(model, self.splits, folder, settings, resume=resume, note=self.note, progress=self.progress)

        inputs = {"model": weights_digest(model), "settings": settings.model_dump(mode="json")}
        return self.do(name, inputs, work, METRICS)

    def finetuned(self, model: CapsNet, found: Attempt, name: str) -> list[Attempt]:
        """Quantization-aware training with narrower weights than the search's."""
        plan = self.narrower(model, QuantPlan.load(plan_file(found.path)))
        if plan is None:
            self.note("no width is left to narrow by training")
            return []
        chosen, splits = self.settings.quantize, self.splits
        steps = round(self.settings.finetuned(len(splits.train)) * (len(splits.train) // BATCH))
        changes = {"lr": chosen.finetune_lr, "batch_size": BATCH, "seed": self.settings.seed}
        settings = finetune_settings(changes, under_plan=True, steps=steps)

        def work(folder: Path, resume: bool) -> None:
            finetune_model(
                model,
                splits,
                folder,
                plan,
                settings,
                teacher=self.model,
                resume=resume,
                note=self.note,
                progress=self.start.bars,
            )

        inputs = {
            "model": weights_digest(model),
            "teacher": weights_digest(self.model),
            "plan": plan.digest(),
            "settings": settings.model_dump(mode="json"),
        }
        done = self.do(f"finetune-{name}", inputs, work, METRICS, artefacts(ROLE)[0])
        return [self.measured((*found.folders, done.folder), done.folder / artefacts(ROLE)[0], model)]

    def narrower(self, model: CapsNet, plan: QuantPlan) -> QuantPlan | None:
        """``plan`` with large weights a bit narrower than their mean, or as flash asks; None below 2 bits.

        Weights that are few keep their widths: narrowing them costs accuracy and saves next to nothing.
        """
        calibration = calibrate(model, spread(self.splits.calibration, CALIBRATION_IMAGES))
        specs = model.points()
        elements = {key: spec.elements for key, spec in specs.items() if spec.role is Role.WEIGHT}
        large = {key: count for key, count in elements.items() if count >= LARGE * sum(elements.values())}

        def at_most(width: int) -> QuantPlan:
            return plan.with_formats(
                {key: calibration.format(key, width) for key in large if plan.points[key].bits > width}
            )

        limit = self.settings.limits.flash
        mean = sum(plan.points[key].bits * count for key, count in large.items()) / sum(large.values())
        for width in range(math.ceil(mean) - 1, 1, -1):
            tried = at_most(width)
            if limit is None or lower(model, tried).firmware_bytes <= limit:
                return tried
        return None

    def measured(self, folders: tuple[Path, ...], path: Path, model: CapsNet) -> Attempt:
        """What an attempt reached, and which limits it misses."""
        program, limits = load_program(path), self.settings.limits
        calibration = self.splits.calibration
        predicted, _ = predictions(program, calibration.images.numpy())
        values: dict[str, float] = {
            "max_drop": paired(self.right, predicted == calibration.labels.numpy()).loss,
            "flash": program.firmware_bytes,
            "ram": plan_memory(program, self.settings.ram).bytes,
            "macs": cost_of(model).macs,
        }
        allowed = limits.model_dump()
        missed = tuple(name for name, value in values.items() if allowed[name] is not None and value > allowed[name])
        told = f"{values['max_drop']:+.2f} points, {values['flash']:,} bytes of flash, {values['ram']:,} of RAM"
        self.note(f"{folders[-1].name}: {told}: " + (f"misses {', '.join(missed)}" if missed else "within all limits"))
        return Attempt(folders, program, path, values, missed)

    def finish(self, curves: Curves, choice: Choice, attempt: Attempt) -> CompressedModel:
        """Export, verify, open the test split for the last time, and write metrics and report."""
        digest = sha256(attempt.path)
        inputs = {"program": digest, "ram": self.settings.ram}
        self.do(FIRMWARE, inputs, partial(self.export, attempt), MEMORY)
        asked = {**inputs, **self.settings.verify.model_dump(), "target": self.settings.target}
        checked = self.do(VERIFY, asked, partial(self.verify, attempt), VERIFIED)
        try:
            shutil.copyfile(attempt.path, self.run / MODEL)
            shutil.copyfile(checked.folder / VERIFIED, attempt.folders[-1] / VERIFIED)
        except OSError as error:
            raise ArtefactError(f"cannot write to {self.run.path}: {why(error)}") from error
        metrics = self.metrics(curves, choice, attempt, RunFolder(checked.folder).read_json(VERIFIED))
        self.run.write_json(METRICS, metrics)
        return CompressedModel(not attempt.missed, attempt.program, self.run.path, metrics)

    def export(self, attempt: Attempt, folder: Path, resume: bool) -> None:
        """The stage that writes the firmware's sources."""
        if resume:  # begun, and only C text: written anew
            shutil.rmtree(folder)
        export = export_c(attempt.program, folder, EmitSettings(prefix="network", ram=self.settings.ram))
        RunFolder(folder).write_json(MEMORY, export.plan.to_json())

    def verify(self, attempt: Attempt, folder: Path, resume: bool) -> None:
        """The stage that compares every engine's integers, on calibration images."""
        chosen = self.settings.verify
        folder.mkdir(exist_ok=True)
        images = spread_set(self.splits.calibration, chosen.images).images.numpy()
        asked: list[tuple[tuple[Target, ...], int]] = [(("interpreter", "native"), len(images))]
        if self.settings.target == "cortex-m4":
            asked.append((("cortex-m4",), chosen.device_images))
        for targets, count in asked:
            try:
                found = verify_engines(attempt.program, images[:count], targets, ram=self.settings.ram, note=self.note)
            except ToolMissing as error:
                self.note(f"{', '.join(targets)}: not verified: {error}")
                continue
            record_verified(folder, attempt.program, f"{self.splits.info['name']}, calibration", found)

    def metrics(self, curves: Curves, choice: Choice, attempt: Attempt, verified: dict[str, Any]) -> dict[str, Any]:
        """Everything that was reached, JSON values; opens the test split."""
        splits = self.splits
        self.note(f"measuring the test split, {len(splits.test):,} images")
        labels = splits.test.labels.numpy()
        float_hits = float_predictions(self.model, splits.test) == labels
        hits = predictions(attempt.program, splits.test.images.numpy())[0] == labels
        float_bytes = FLOAT_BYTES * self.model.parameter_count()
        file_bytes = attempt.path.stat().st_size
        limits = self.settings.limits.model_dump()
        return {
            "met": not attempt.missed,
            "missed": list(attempt.missed),
            "limits": {name: {"asked": limits[name], "found": value} for name, value in attempt.values.items()},
            "float": {
                "test": accuracy(int(float_hits.sum()), len(labels)).to_json(),
                "calibration": accuracy(int(self.right.sum()), len(self.right)).to_json(),
                "bytes": float_bytes,
                "macs": cost_of(self.model).macs,
            },
            "compressed": {
                "test": accuracy(int(hits.sum()), len(labels)).to_json(),
                "paired": paired(float_hits, hits).to_json(),
                "file": MODEL,
                "file_bytes": file_bytes,
                "times_smaller": float_bytes / file_bytes,
                "macs_kept": attempt.values["macs"] / cost_of(self.model).macs,
            },
            "choice": {
                **choice.to_json(),
                "curve": [asdict(point) for point in curves.curve],
                "widths": [asdict(point) for point in curves.widths],
            },
            "verified": verified["engines"],
            "stages": {
                name: {"folder": done.folder.name, "seconds": done.seconds, "skipped": done.skipped}
                for name, done in self.start.done.items()
            },
            "folders": [folder.name for folder in attempt.folders],
            "data": splits.info["name"],
            "data_note": splits.info["note"],
        }


def plan_file(program: Path) -> Path:
    """The plan beside a shipped ``model_ROLE.caplet``."""
    return program.with_name(f"plan_{program.stem.removeprefix('model_')}.json")
