"""The end of a compression: firmware, verification, analysis, speed, and the last look at the test split."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.data.imageset import ImageSet
from caplet.errors import ToolMissing
from caplet.files import access, file_digest, write_bytes
from caplet.jobs.compress.attempts import Attempt
from caplet.jobs.compress.choose import PairChoice, outlook
from caplet.jobs.compress.curves import Context, Curves
from caplet.jobs.export import Target, export_c, verify_engines
from caplet.jobs.run import evaluate, open_test_split, ship
from caplet.jobs.sensitivity import sensitivity
from caplet.jobs.timing import SPEED, measure_speed
from caplet.jobs.trace import LevelName, record_trace, trace_levels
from caplet.metrics import Accuracy, accuracy
from caplet.models.base import CapsNet
from caplet.models.cost import FLOAT_BYTES, cost_of
from caplet.nn.device import CPU, placed
from caplet.program import Program
from caplet.program.c.emit import WEB, EmitSettings, Export
from caplet.program.interpreter import RunResult, run
from caplet.quant.choices import SensitivitySettings
from caplet.runs.finished import COMPRESSED, WEB_STAGE
from caplet.runs.folder import METRICS, read_record, write_record
from caplet.runs.promised import verdict_of
from caplet.runs.records import TRACE, VERIFIED, SpeedMetrics, VerifyRecord
from caplet.runs.shipped import record_verified
from caplet.runtime.engine import Engine
from caplet.train.finetune import weights_digest


@dataclass(frozen=True)
class CompressedModel:
    """A compressed network: integers, and where everything about them is.

    Attributes:
        met: whether all limits are kept.
        program: the integer Program.
        folder: the run folder: ``model.caplet``, ``metrics.json``, ``report.html``, ``firmware/`` and every stage.
        metrics: what ``metrics.json`` holds.
    """

    met: bool
    program: Program
    folder: Path
    metrics: dict[str, Any]

    def run(self, images: NDArray[np.uint8]) -> RunResult:
        """Class capsules and predictions of images uint8 (N, C, H, W). Raises DataError for others."""
        return run(self.program, images)

    def accuracy(self, images: ImageSet, *, engine: Engine | str = Engine.AUTO) -> Accuracy:
        """Accuracy of the integers; see :func:`caplet.jobs.run.evaluate` for what is raised."""
        return evaluate(self.program, images, engine=engine).accuracy

    def save(self, path: str | Path) -> None:
        """Copy the ``.caplet`` file to ``path``. Raises ArtefactError when it cannot be written."""
        with access("write", path):
            shutil.copyfile(self.folder / MODEL, path)

    def export_c(self, folder: str | Path, settings: EmitSettings | None = None) -> Export:
        """Write C99 sources to a new folder, by default within the limit of RAM; see
        :func:`caplet.jobs.export.export_c`."""
        return export_c(self.program, folder, settings or EmitSettings(ram=self.metrics["plan"]))

    @property
    def verdict(self) -> str | None:
        """Asked, expected on new images, measured, kept or not, in a sentence; None where nothing was promised."""
        return verdict_of(self.metrics["promise"], self.metrics["compressed"]["paired"]["loss"])

    @property
    def report(self) -> Path:
        """The report page."""
        return self.folder / REPORT


MODEL, REPORT = "model.caplet", "report.html"
FIRMWARE, VERIFY, NOISE, SENSITIVITY, TIMING = "firmware", "verify", "noise", "sensitivity", "speed"
MEMORY = "memory.json"
TRACED = 8
"""Images whose tensors are compared with the float model's."""
SENSITIVE_IMAGES = 32
"""Images per draw of the error analysis, where the calibration split has as many."""
SENSITIVE = SensitivitySettings(widths=(8, 4, 2), draws=3, images=SENSITIVE_IMAGES)


class Finish:
    """What is done once the network is found.

    Args:
        model: the float model.
        correct: the calibration images that it classifies correctly, bool (N,).
    """

    def __init__(self, context: Context, model: CapsNet, correct: NDArray[np.bool_], attempt: Attempt) -> None:
        self.context, self.model, self.correct, self.attempt = context, model, correct, attempt
        self.run, self.splits, self.settings, self.note = context.run, context.splits, context.settings, context.note

    def all(self, curves: Curves, choice: PairChoice, tried: Sequence[Attempt]) -> CompressedModel:
        """Export, verify, analyse, time, open the test split for the last time, and write metrics."""
        attempt, do = self.attempt, self.context.do
        inputs = {"program": file_digest(attempt.path), "ram": attempt.ram}
        do(FIRMWARE, inputs, self.export, MEMORY)
        if self.settings.web:
            try:
                do(WEB_STAGE, inputs, self.browse, "caplet-core.js")
            except ToolMissing as error:
                self.note(f"no page for a browser: {error}")
        asked = {**inputs, **self.settings.verify.model_dump(), "target": self.settings.target}
        checked = do(VERIFY, asked, self.verify, VERIFIED)
        both = {**inputs, "model": weights_digest(attempt.model), "images": TRACED}
        noise = do(NOISE, both, self.noise, TRACE)
        do(SENSITIVITY, {"model": both["model"], **SENSITIVE.model_dump(mode="json")}, self.sensitive, METRICS)
        threads = self.context.threads
        timed = do(TIMING, {**both, "float": weights_digest(self.model), "threads": threads}, self.time, SPEED)
        for source, target in (
            (attempt.path, self.run / MODEL),
            (checked.folder / VERIFIED, attempt.folders[-1] / VERIFIED),
            (noise.folder / TRACE, attempt.folders[-1] / TRACE),
            (noise.folder / TRACE, self.run / TRACE),
        ):
            write_bytes(target, source.read_bytes())
        programs = {COMPRESSED: attempt.program}
        answers = open_test_split(self.splits, self.model, programs, self.note)
        float_macs, float_bytes = cost_of(self.model).macs, FLOAT_BYTES * self.model.parameter_count()
        file_bytes = attempt.path.stat().st_size
        promise = None
        if self.context.promise is not None and attempt.expected is not None:
            kept = answers.against(COMPRESSED).loss <= self.settings.limits.max_drop + 1e-9
            promise = {**self.context.promise.to_json(), "expected": asdict(attempt.expected), "kept": kept}
        metrics = {
            "met": not attempt.missed,
            "promise": promise,
            "missed": list(attempt.missed),
            "plan": attempt.ram,
            "limits": {
                name: {"asked": getattr(self.settings.limits, name), "found": value}
                for name, value in attempt.values.items()
            },
            "float": {
                "test": answers.accuracy(),
                "calibration": accuracy(int(self.correct.sum()), len(self.correct)),
                "bytes": float_bytes,
                "macs": float_macs,
            },
            "compressed": {
                "test": answers.accuracy(COMPRESSED),
                "paired": answers.against(COMPRESSED),
                "file": MODEL,
                "file_bytes": file_bytes,
                "times_smaller": float_bytes / file_bytes,
                "macs_kept": attempt.values["macs"] / float_macs,
            },
            "choice": {
                **choice.to_json(),
                "curve": curves.curve,
                "widths": curves.widths,
                "pairs": [
                    asdict(pair.size) | {"macs_kept": pair.pruned.macs_kept, "bits": pair.width.bits, "drop": pair.drop}
                    for pair in choice.pairs
                ],
            },
            "attempts": [
                {"folder": found.folders[-1].name, "values": found.values, "missed": list(found.missed)}
                for found in tried
            ],
            "outlook": list(outlook([found.values for found in tried], self.settings.limits)),
            "verified": read_record(checked.folder / VERIFIED, VerifyRecord).engines,
            "speed": read_record(timed.folder / SPEED, SpeedMetrics),
            "stages": {
                name: {"folder": done.folder.name, "seconds": done.seconds, "skipped": done.skipped}
                for name, done in self.context.done.items()
            },
            "folders": [folder.name for folder in attempt.folders],
        }
        metrics = ship(self.run, self.splits, metrics, answers, programs, ram=attempt.ram)
        return CompressedModel(not attempt.missed, attempt.program, self.run, metrics)

    def export(self, folder: Path, resume: bool) -> None:
        """The stage that writes the firmware's sources."""
        if resume:  # begun, and only C text: written anew
            shutil.rmtree(folder)
        export = export_c(self.attempt.program, folder, EmitSettings(prefix="network", ram=self.attempt.ram))
        write_record(folder / MEMORY, export.plan.to_json())

    def browse(self, folder: Path, resume: bool) -> None:
        """The stage that writes the page which classifies in a browser."""
        if resume:
            shutil.rmtree(folder)
        export_c(self.attempt.program, folder, EmitSettings(prefix="network", to=WEB))

    def verify(self, folder: Path, resume: bool) -> None:
        """The stage that compares every engine's integers, on calibration images."""
        chosen, program = self.settings.verify, self.attempt.program
        images = self.splits.calibration.evenly_spaced(chosen.images).images.numpy()
        asked: list[tuple[tuple[Target, ...], int]] = [(("interpreter", "native"), len(images))]
        if self.settings.target == "cortex-m4":
            asked.append((("cortex-m4",), chosen.device_images))
        for targets, count in asked:
            try:
                found = verify_engines(program, images[:count], targets, ram=self.attempt.ram, note=self.note)
            except ToolMissing as error:
                self.note(f"{', '.join(targets)}: not verified: {error}")
                continue
            record_verified(folder, program, f"{self.splits.info['name']}, calibration", found)

    def noise(self, folder: Path, resume: bool) -> None:
        """The stage that compares every tensor with the float model's, on a few calibration images."""
        images = self.splits.calibration.evenly_spaced(TRACED).images.numpy()
        levels = (LevelName.FLOAT, LevelName.PROGRAM)
        model = placed(self.attempt.model, CPU)
        found = trace_levels(self.attempt.program, images, levels, model=model, plan=self.attempt.plan)
        record_trace(folder, self.attempt.program, found)

    def sensitive(self, folder: Path, resume: bool) -> None:
        """The stage that rounds one point at a time, on a few calibration images."""
        images = min(SENSITIVE_IMAGES, max(1, len(self.splits.calibration) // SENSITIVE.draws))
        settings = SENSITIVE.model_copy(update={"images": images})
        how: dict[str, Any] = {"progress": self.context.progress, "device": self.context.device}
        sensitivity(self.attempt.model, self.splits, folder, settings, resume=resume, **how)

    def time(self, folder: Path, resume: bool) -> None:
        """The stage that times the float model, the pruned one, and the integers, all on the CPU."""
        images = self.splits.calibration.evenly_spaced(self.settings.verify.timed).images
        pruned = None if self.attempt.model is self.model else placed(self.attempt.model, CPU)
        found = measure_speed(placed(self.model, CPU), pruned, self.attempt.program, images, self.context.threads)
        write_record(folder / SPEED, found)
