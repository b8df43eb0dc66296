"""What a row of a paper's table does: a search for widths, one width everywhere, or pruning; by the jobs that exist."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from caplet.data import Splits
from caplet.jobs.prune.backbone import prune_backbone_model
from caplet.jobs.prune.job import prune
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.quantize.accept import program_footprint
from caplet.jobs.quantize.job import CALIBRATION_IMAGES, PAPER_ROUNDINGS, quantize
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.run import check, open_test_split
from caplet.lower import lower
from caplet.metrics import Accuracy, Paired
from caplet.models.base import CapsNet
from caplet.models.cost import Cost, cost_of
from caplet.program.file import save_program
from caplet.progress import Note
from caplet.prune.choices import BackbonePruneSettings
from caplet.quant.choices import Method
from caplet.quant.measure.tune import DEFAULT_IMAGES as TUNING_IMAGES
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.units import uniform_plan
from caplet.train.settings import FinetuneSettings

PASSES = {Method.QCAPSNETS: 11.0, Method.PROGRESSIVE: 10.0, Method.ILP: 8.0}
"""Float passes of the calibration images that take as long as a search: from the seconds of the rows of
benchmarks/records/2026-11-22-papers.json, that of 8 bits everywhere being the measure. Plans take longer than float."""
MODEL = "model.caplet"


@dataclass(frozen=True)
class RowResult:
    """What one row's work found. Accuracies are on the test split, opened once.

    Attributes:
        float_, compressed: the model as given, and the smaller one: a Program's integers, or float where it was pruned.
        against: the two on the same test images.
        weights, activations: how many times smaller than the given float model, elements x bits of all tensors.
        outputs: the same of the image and each block's output, as Q-CapsNets counts; None where nothing is quantized.
        bytes: of what ships: the ``.caplet`` file, or the parameters of a pruned model in float32.
        ram: bytes of RAM at the peak: the Program's arena with all votes stored, or a pruned model's float32 tensors.
        macs: multiply-accumulates of one image.
        passes: what the search cost in passes of the calibration images through the model; None without a search.
        met: whether the row's own target was met on the calibration split; ``reason`` says why.
    """

    float_: Accuracy
    compressed: Accuracy
    against: Paired
    weights: float
    activations: float
    outputs: float | None
    bytes: int
    ram: int
    macs: int
    passes: float | None
    met: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; ``float_`` is called ``float``."""
        values = asdict(self)
        return {"float": values.pop("float_"), **values}


@dataclass(frozen=True)
class Rates:
    """Images per second of one model on this machine: forward, and forward with backward."""

    forward: float
    training: float


class Work(Protocol):
    """How a row is made."""

    @property
    def method(self) -> str:
        """In a few words, for the table."""

    def to_json(self) -> dict[str, Any]:
        """Everything that the outcome depends on beside the model and the data, JSON values."""

    def seconds(self, rates: Rates, splits: Splits) -> float:
        """A rough estimate of the time that :meth:`run` takes."""

    def run(self, model: CapsNet, splits: Splits, folder: Path, resume: bool, note: Note) -> RowResult:
        """Do it in ``folder``; ``resume`` goes on with what an interrupted call left there."""


@dataclass(frozen=True)
class Searched:
    """A search for widths: ``caplet quantize``."""

    method: str
    settings: QuantizeSettings

    def to_json(self) -> dict[str, Any]:
        """See :class:`Work`."""
        return {"quantize": self.settings.model_dump(mode="json")}

    def seconds(self, rates: Rates, splits: Splits) -> float:
        """See :class:`Work`."""
        schemes = len(PAPER_ROUNDINGS) if self.settings.rounding == "all" else 1
        passes = schemes * PASSES[self.settings.method] + 1
        return (passes * len(splits.calibration) + 2 * len(splits.test)) / rates.forward

    def run(self, model: CapsNet, splits: Splits, folder: Path, resume: bool, note: Note) -> RowResult:
        """See :class:`Work`."""
        result = quantize(model, splits, folder, self.settings, resume=resume, note=note)
        best = result.models[0]
        return RowResult(
            result.float_test,
            best.test,
            best.against_float,
            best.record["weight_reduction"],
            best.record["activation_reduction"],
            best.record["output_reduction"],
            best.record["file_bytes"],
            program_footprint(best.program).ram_bytes,
            cost_of(model).macs,
            result.metrics["search"]["full_passes"],
            result.met,
            result.metrics["reason"] + ("" if result.met else f"; the row is model_{best.role}"),
        )


@dataclass(frozen=True)
class Uniform:
    """One width for every tensor, exponents calibrated and tuned; nothing is searched."""

    bits: int

    @property
    def method(self) -> str:
        """See :class:`Work`."""
        return f"{self.bits} bits everywhere"

    def to_json(self) -> dict[str, Any]:
        """See :class:`Work`."""
        return {"uniform": asdict(self)}

    def seconds(self, rates: Rates, splits: Splits) -> float:
        """See :class:`Work`."""
        return (2 * min(CALIBRATION_IMAGES, len(splits.calibration)) + 2 * len(splits.test)) / rates.forward

    def run(self, model: CapsNet, splits: Splits, folder: Path, resume: bool, note: Note) -> RowResult:
        """See :class:`Work`."""
        splits = check(splits, model, note=note)
        folder.mkdir(parents=True, exist_ok=True)
        calibration = calibrate(model, splits.calibration.evenly_spaced(CALIBRATION_IMAGES).images)
        tuner = Tuner(model, calibration, splits.calibration.evenly_spaced(TUNING_IMAGES).images)
        plan = uniform_plan(model, tuner, self.bits)
        program = lower(model, plan, labels=splits.test.classes, meta={"family": model.family})
        save_program(program, folder / MODEL)
        answers = open_test_split(splits, model, {MODEL: program}, note)
        memory = count_memory(model, plan).total
        return RowResult(
            answers.accuracy(),
            answers.accuracy(MODEL),
            answers.against(MODEL),
            memory.weight_reduction,
            memory.activation_reduction,
            memory.output_reduction,
            (folder / MODEL).stat().st_size,
            program_footprint(program).ram_bytes,
            cost_of(model).macs,
            None,
            True,
            "the paper sets no target",
        )


@dataclass(frozen=True)
class Prune:
    """Units removed, then fine-tuning: ``caplet prune``."""

    method: str
    settings: PruneSettings

    def to_json(self) -> dict[str, Any]:
        """See :class:`Work`."""
        return {"prune": self.settings.model_dump(mode="json")}

    def seconds(self, rates: Rates, splits: Splits) -> float:
        """See :class:`Work`."""
        kept = self.settings.macs or 1.0
        images = self.settings.epochs * len(splits.train)
        scored = self.settings.images / rates.training
        tested = (2 * len(splits.calibration) + 2 * len(splits.test)) / rates.forward
        taught = images / rates.forward if self.settings.teach else 0.0
        return scored + images * kept / rates.training + taught + tested

    def run(self, model: CapsNet, splits: Splits, folder: Path, resume: bool, note: Note) -> RowResult:
        """See :class:`Work`."""
        result = prune(model, splits, folder, self.settings, resume=resume, note=note)
        reason = f"{100 * result.metrics['macs_kept']:.1f} % of the multiply-accumulates are left"
        costs = cost_of(model), cost_of(result.model)
        return _pruned(result.original, result.test, result.against, *costs, result.met, reason)


@dataclass(frozen=True)
class PruneCnn:
    """The CNN under the capsules pruned, then fine-tuning: ``caplet prune-backbone``."""

    method: str
    settings: BackbonePruneSettings
    tuning: FinetuneSettings

    def to_json(self) -> dict[str, Any]:
        """See :class:`Work`."""
        return {
            "prune_backbone": self.settings.model_dump(mode="json"),
            "finetune": self.tuning.model_dump(mode="json"),
        }

    def seconds(self, rates: Rates, splits: Splits) -> float:
        """See :class:`Work`."""
        images = self.tuning.epochs * len(splits.train)
        candidates = self.settings.candidates * len(splits.calibration)
        return (candidates + images + 2 * len(splits.test)) / rates.forward + images / rates.training

    def run(self, model: CapsNet, splits: Splits, folder: Path, resume: bool, note: Note) -> RowResult:
        """See :class:`Work`."""
        result = prune_backbone_model(model, splits, folder, self.settings, self.tuning, resume=resume, note=note)
        reason = f"{100 * result.metrics['macs_kept']:.1f} % of the multiply-accumulates are left"
        costs = cost_of(model), cost_of(result.model)
        return _pruned(result.original, result.test, result.against, *costs, True, reason)


def _pruned(
    original: Accuracy, test: Accuracy, against: Paired, before: Cost, after: Cost, met: bool, reason: str
) -> RowResult:
    """Of a model that was pruned from cost ``before`` to ``after``; both are in float32."""
    activations = [sum(layer.activation_bytes for layer in cost.layers) for cost in (before, after)]
    return RowResult(
        original,
        test,
        against,
        before.parameters / after.parameters,
        activations[0] / activations[1],
        None,
        after.bytes,
        after.peak_bytes,
        after.macs,
        None,
        met,
        reason,
    )
