"""What a sweep and each of its networks leave on disk, beside what a quantization does."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from caplet.metrics import Accuracy
from caplet.runs.records import QuantizeMetrics, Real, Row


@dataclass(frozen=True)
class TrialMetrics:
    """One network of a sweep: what it is (``network``), and what it takes with weights of 4 bits.

    Attributes:
        state: rejected (too large), failed, stopped (early), made; full for one that was trained in full.
        accuracy, reference: of these integers and of the float network, on calibration images.
        loss: the float network's mean margin loss on them.
        folder: its run folder, from that of the sweep. about: what happened to it.
        value: what the search minimises.
    """

    number: int
    state: str
    network: str
    flash: int = 0
    ram: int = 0
    macs: int = 0
    accuracy: Accuracy | None = None
    reference: Accuracy | None = None
    loss: Real = 0
    folder: str = ""
    about: str = ""
    value: Real = 0
    seconds: Real = 0
    epoch: int = 0
    history: tuple[Row, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """By the names of limits."""
        return {"flash": self.flash, "ram": self.ram, "macs": self.macs}

    @property
    def percent(self) -> float:
        """Of calibration images, 0 where they were not measured."""
        return 0.0 if self.accuracy is None else self.accuracy.percent


@dataclass(frozen=True)
class SweepMetrics(QuantizeMetrics):
    """A sweep: the quantization of its ``winner``, and the networks; ``front`` are the best trials, by number."""

    limits: Mapping[str, Mapping[str, Real | None]] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    outlook: tuple[str, ...] = ()
    winner: int = -1
    front: tuple[int, ...] = ()
    networks: tuple[TrialMetrics, ...] = ()
