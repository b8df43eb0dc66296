"""What is on disk in a run folder, as dataclasses: a field is a key of the file, which may have more of them.

Accuracies are in percent and losses in percentage points, both of images; ``macs`` are multiply-accumulates of one
image, ``seconds`` wall time. A number of type ``Real`` stays the integer or the fraction that the file has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from caplet.metrics import Accuracy, Paired
from caplet.runs.promised import PromiseMetrics
from caplet.runs.stages import Done

PREDICTIONS, FLIPS, DETAILS = "predictions.json", "flips.json", "details.json"
SEARCH, VERIFIED, TRACE, KEPT = "search.json", "verify.json", "trace.json", "kept.json"

Real = int | float
Row = Mapping[str, Any]
"""A row of a table, by column."""


@dataclass(frozen=True)
class SplitRecord:
    """``splits.json``: of each split ``count`` and ``sha256``."""

    name: str
    train: Row
    calibration: Row
    test: Row
    note: str | None = None


@dataclass(frozen=True)
class SearchRecord:
    """``search.json``: every evaluation, and the ``widths`` of the result.

    Attributes:
        reference: of the float model, ``correct`` and ``n`` images.
        needed: correct images that a plan needs.
        front: plans of which no other one is better in every respect.
    """

    reference: Mapping[str, int]
    needed: int
    steps: tuple[Row, ...]
    result: Row | None = None
    front: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """``predictions.json``: classes of the test images: true ones, the float model's, every shipped Program's by role.

    ``sha256`` is that of images and labels; ``ids`` are packed by :func:`caplet.data.splits.pack_ids`.
    """

    split: str
    data: str
    sha256: str
    classes: list[str]
    ids: str
    labels: list[int]
    models: dict[str, list[int]]
    float: list[int]


@dataclass(frozen=True)
class Flips:
    """``flips.json``: how many of ``n`` predictions of one Program differ from the float model's, and some of them.

    Kinds: ``lost`` (only float is right), ``won`` (only the Program), ``other``. A shown one has ``id``, ``kind``,
    classes (``label``, ``float``, ``integers``) and ``png``, a file in base64.
    """

    role: str
    n: int
    counts: dict[str, int]
    shown: tuple[Row, ...]


@dataclass(frozen=True)
class TensorRecord:
    """A tensor that the device stores: ``bytes`` is its count in bits over 8, as packed."""

    point: str
    role: str
    shape: tuple[int, ...]
    storage: str
    format: str
    bits: int
    elements: int
    shift_bits: int
    bytes: int


@dataclass(frozen=True)
class ModelDetails:
    """One Program in ``details.json``: digest, tensors, names of ops, memory plans (``fast``, ``small``, or bytes)."""

    sha256: str
    tensors: tuple[TensorRecord, ...]
    ops: tuple[str, ...]
    memory: Mapping[str, Row]
    times: Mapping[str, str] = field(default_factory=dict)  # estimates by device, in words; not in older runs


@dataclass(frozen=True)
class Verified:
    """What one engine did.

    Attributes:
        target: the engine.
        images, codes, differing: how many were compared; codes that differ from the reference interpreter's.
        first: the first difference in words, or None.
        seconds, device: wall time; flash, RAM and instructions of an emulated device, or None.
    """

    target: str
    images: int
    codes: int
    differing: int
    first: str | None
    seconds: float
    device: dict[str, Any] | None = None


@dataclass(frozen=True)
class EngineRecord(Verified):
    data: str = ""  # what the images were


@dataclass(frozen=True)
class VerifyRecord:
    """``verify.json``: engines that ran the Program with this digest."""

    sha256: str
    engines: list[EngineRecord]


@dataclass(frozen=True)
class TraceRecord:
    """``trace.json``: of the Program with this digest; see :class:`caplet.jobs.trace.Trace`."""

    sha256: str
    images: int
    noise: tuple[Row, ...]


@dataclass(frozen=True)
class KeptUnits:
    kind: str
    of: Annotated[int, Field(le=1 << 20)]
    kept: list[int]


@dataclass(frozen=True)
class Kept:
    """``kept.json``: units left, by dependency group; by layer, type and position 1 where a vote is left."""

    spaces: dict[str, KeptUnits]
    votes: dict[str, list[list[int]]]


@dataclass(frozen=True)
class TrainMetrics:
    """A training run; ``epoch`` is the one whose weights were kept, ``history`` has a row for each."""

    recipe: str
    data: str
    test: Accuracy
    epoch: int
    epochs: int
    seconds: float
    images_per_second: float
    parameters: int
    history: tuple[Row, ...]


@dataclass(frozen=True)
class ReferenceMetrics:
    """The float model: bytes of its weights, or of all its parameters."""

    test: Accuracy
    calibration: Accuracy
    weight_bytes: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class ShippedMetrics:
    """One Program of a run; the last of ``memory`` is the total."""

    role: str
    file: str
    file_bytes: int
    memory: tuple[Row, ...]
    weight_reduction: float
    activation_reduction: float
    calibration: Accuracy
    test: Accuracy
    paired: Paired


@dataclass(frozen=True)
class QuantizeMetrics:
    """A quantization; the first of ``models`` is the one to use."""

    method: str
    met: bool
    reason: str
    tolerance: Real
    relative: bool
    budget_bytes: Real | None
    rounding: str
    models: tuple[ShippedMetrics, ...]
    search: Mapping[str, Real]
    float: ReferenceMetrics
    promise: PromiseMetrics | None = None


@dataclass(frozen=True)
class SensitivityMetrics:
    """An error analysis: a row per point and width; see :func:`caplet.quant.measure.sensitivity.summarise`."""

    points: tuple[Row, ...]


@dataclass(frozen=True)
class RoundMetrics:
    """One round of pruning, or one trial of a search, with the units left by dependency group (not in metrics.json).

    Accuracies on calibration images: after surgery (``calibration_cut``, not in older runs), refitted, fine-tuned.
    ``pair``: a trial's last one against the unpruned network's."""

    cost: Row
    calibration_before: Accuracy
    calibration: Accuracy
    seconds: float
    round: int = 0
    folder: str = ""
    calibration_cut: Accuracy | None = None
    finetuning: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    images_trained: int = 0
    refitted: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    kept_units: dict[str, list[int]] = field(default_factory=dict)
    accepted: bool | None = None
    pair: Paired | None = None


@dataclass(frozen=True)
class ActivityMetrics:
    """Entropy of the couplings by layer; how many units are never active by dependency group."""

    entropy: Mapping[str, Row]
    dead: Mapping[str, int]


@dataclass(frozen=True)
class NetworkMetrics:
    test: Accuracy
    cost: Row = field(default_factory=dict)


@dataclass(frozen=True)
class PruneMetrics:
    """A pruning: ``activity`` before (``original``) and after (``pruned``); never active and gone: ``dead_removed``."""

    met: bool
    original: NetworkMetrics
    pruned: NetworkMetrics
    macs_kept: float
    parameters_kept: float
    paired: Paired
    rounds: tuple[RoundMetrics, ...]
    activity: Mapping[str, ActivityMetrics]
    dead_removed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TuningMetrics:
    steps: int
    history: tuple[Row, ...]
    epoch: int = 0


@dataclass(frozen=True)
class FinetuneMetrics:
    """A fine-tuning in float."""

    finetune: TuningMetrics
    test: Accuracy
    paired: Paired
    float: NetworkMetrics


@dataclass(frozen=True)
class QatMetrics:
    """A fine-tuning under a plan, with what looked wrong."""

    finetune: TuningMetrics
    models: tuple[ShippedMetrics, ...]
    float: NetworkMetrics
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pruned:
    """A point of the pruning curve: the float model with capsules removed.

    Attributes:
        macs_kept: fraction of the multiply-accumulates that remain, 0..1; 1 is the model as it was.
        macs, parameters: of the pruned model.
        drop: loss of accuracy in percentage points on ``images`` calibration images, after ``steps`` of fine-tuning.
    """

    macs_kept: float
    macs: int
    parameters: int
    drop: float
    images: int
    steps: int


@dataclass(frozen=True)
class Width:
    """A point of the width curve: a network with every tensor at ``bits``.

    Attributes:
        drop: loss of accuracy against the same network in float, in percentage points on ``images`` images.
        macs_kept: how far the network was pruned, as in :class:`Pruned`.
    """

    bits: int
    drop: float
    images: int
    macs_kept: float = 1.0


@dataclass(frozen=True)
class ChoiceMetrics:
    """What a compression chose between; a pair adds the losses of both."""

    curve: tuple[Pruned, ...]
    widths: tuple[Width, ...]
    pairs: tuple[Mapping[str, Real], ...]
    pruned: Pruned
    width: Width
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class SpeedMetrics:
    """Images per second by network, as ``median``, ``low``, ``high`` and ``times`` the float model's."""

    images: int
    threads: int
    turns: int
    torch_batch: int
    sides: Mapping[str, Mapping[str, Real]]


@dataclass(frozen=True)
class CompressedMetrics:
    """The Program of a compression, ``times_smaller`` than the float parameters."""

    file: str
    file_bytes: int
    times_smaller: float
    macs_kept: float
    test: Accuracy
    paired: Paired


@dataclass(frozen=True)
class CompressMetrics:
    """A compression, its limits by name (``asked``, ``found``); its result comes from the stages in ``folders``."""

    met: bool
    missed: tuple[str, ...]
    limits: Mapping[str, Mapping[str, Real | None]]
    compressed: CompressedMetrics
    choice: ChoiceMetrics
    attempts: tuple[Row, ...]
    outlook: tuple[str, ...]
    verified: tuple[EngineRecord, ...]
    speed: SpeedMetrics
    stages: Mapping[str, Done]
    folders: tuple[str, ...]
    float: ReferenceMetrics
    promise: PromiseMetrics | None = None
    plan: str | int = "small"  # memory plan of the firmware

    @property
    def accepted(self) -> Real:
        """The loss that is accepted, in percentage points."""
        return self.limits["max_drop"]["asked"] or 0
