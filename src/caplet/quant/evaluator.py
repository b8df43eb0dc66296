"""The one evaluator that all searches share: plans in, measured probes out, nothing computed twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import caplet
from caplet.data.imageset import to_float
from caplet.errors import ConfigError
from caplet.fixed import FixedFormat
from caplet.models.base import CapsNet, State
from caplet.nn.memory import keep_freed_memory
from caplet.quant.cost import stage_macs
from caplet.quant.fake import FakeQuant, WeightCache
from caplet.quant.plan import QuantPlan
from caplet.quant.probes import FLOAT, Probe, ProbeLog
from caplet.quant.states import StateCache, Stored, code_dtype, decode_state, encode_state
from caplet.quant.widths import describe

DEFAULT_CACHE_BYTES = 3 << 29
Progress = Callable[[int, int], None]
"""Called with (images done, images in all) after every batch of a measurement."""


def predict(capsules: Tensor) -> Tensor:
    """The class of the longest capsule, the first one on a tie: float (B, classes, D) -> int64 (B,).

    Compares exact squared lengths (float64), as the device does in integers.
    """
    return (capsules.double() ** 2).sum(-1).argmax(-1)


class Evaluator:
    """Measures plans on one model and one set of images.

    A plan is measured once; a second question is answered from memory or from the log. Only stages downstream of what
    changed are computed: the output of stage k depends on the plan at the points of stages 1..k alone, and such outputs
    are kept as integer codes, so the answer is the same, image by image, as a full evaluation's.

    The model must not change while the evaluator is in use.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        batch_size: images per forward pass.
        cache_bytes: limit of the kept stage outputs; 0 keeps none.
        log_path: JSON-lines log of all probes; if it exists, its probes are known from the start.
        integer: see :class:`caplet.quant.fake.FakeQuant`.
        progress: called after every batch.

    Attributes:
        spent: cost of everything computed by this object, in full passes of all images.

    Raises:
        ConfigError: no images, another number of labels, a batch size below 1, a negative limit.
        ModelError: images of another size.
        ArtefactError: the log is unreadable, or of other images or another model.
    """

    def __init__(
        self,
        model: CapsNet,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int = 50,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        log_path: str | Path | None = None,
        integer: bool = True,
        progress: Progress | None = None,
    ) -> None:
        if len(images) == 0 or len(images) != len(labels):
            raise ConfigError(
                f"evaluator: {len(images)} images and {len(labels)} labels; give as many of each, 1 or more"
            )
        if batch_size < 1 or cache_bytes < 0:
            raise ConfigError(
                f"evaluator: batch size {batch_size}, cache of {cache_bytes} bytes; the rule is >= 1, >= 0"
            )
        model.check_images(images)
        self.model = model.eval()
        self.images, self.labels = images, labels.numpy()
        self.spent = 0.0
        self._bounds = [(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
        self._integer = integer
        self._progress = progress
        self._stages = model.stages()
        self._specs = model.points()
        self._stage_keys = [[key for layer in stage.layers for key in layer.points()] for stage in self._stages]
        macs = np.array(stage_macs(model), dtype=np.float64)
        self._tail_cost = np.append(np.cumsum(macs[::-1])[::-1], 0.0) / macs.sum()  # of stages k and later
        self._weights = WeightCache()
        self._states = StateCache(cache_bytes)
        self._log = ProbeLog(log_path, self._identity())
        keep_freed_memory()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def probes(self) -> dict[str, Probe]:
        """All probes known so far, by plan digest, in the order in which they were measured."""
        return dict(self._log.probes)

    def float_result(self) -> Probe:
        """The float model's result on the same images; measured once."""
        if FLOAT in self._log.probes:
            return self._log.probes[FLOAT].known()
        began = time.perf_counter()
        hits = self._measure(None, 0, None, {})
        probe = Probe(FLOAT, hits, time.perf_counter() - began, 1.0)
        self.spent += probe.cost
        self._log.add(probe, {})
        return probe

    def evaluate(self, plan: QuantPlan) -> Probe:
        """The result of the model under ``plan``.

        Raises:
            PlanError: the plan does not fit the model.
            ArtefactError: the log cannot be written.
        """
        digest = plan.digest()
        if digest in self._log.probes:
            return self._log.probes[digest].known()
        plan.check(self.model)
        began = time.perf_counter()
        prefixes = self._prefix_keys(plan)
        first, start = self._start(prefixes)
        collected = self._to_collect(plan, first, prefixes)
        hits = self._measure(plan, first, start, collected)
        for stage, batches in collected.items():
            self._states.put(prefixes[stage], Stored(self._formats(stage, plan), tuple(batches)))
        probe = Probe(digest, hits, time.perf_counter() - began, float(self._tail_cost[first]))
        self.spent += probe.cost
        self._log.add(probe, {"widths": describe(self.model, plan), "plan": plan.to_json()})
        return probe

    def _measure(
        self, plan: QuantPlan | None, first: int, start: Stored | None, collected: dict[int, list[State]]
    ) -> NDArray[np.bool_]:
        """Run stages ``first`` and later on all images; ``collected`` receives the outputs of its stages as codes."""
        hits = np.zeros(len(self), dtype=bool)
        handler = None if plan is None else FakeQuant(plan, self._specs, integer=self._integer, weights=self._weights)
        with torch.inference_mode(), nullcontext() if handler is None else self.model.handle(handler):
            for index, (low, high) in enumerate(self._bounds):
                if start is None:
                    state: State = (to_float(self.images[low:high]),)
                else:
                    state = decode_state(start.batches[index], start.formats)
                for stage in range(first, len(self._stages)):
                    state = self._stages[stage].run(state)
                    if stage in collected:
                        assert plan is not None
                        collected[stage].append(encode_state(state, self._formats(stage, plan)))
                hits[low:high] = predict(state[0]).numpy() == self.labels[low:high]
                if self._progress is not None:
                    self._progress(high, len(self))
        return hits

    def _prefix_keys(self, plan: QuantPlan) -> list[str]:
        """For every stage, the digest of the plan at the points of this and all earlier stages."""
        keys: set[str] = set()
        digests = []
        for stage_keys in self._stage_keys:
            keys.update(stage_keys)
            digests.append(plan.restricted(keys).digest())
        return digests

    def _start(self, prefixes: list[str]) -> tuple[int, Stored | None]:
        """The first stage to compute, and the stored output of the one before it."""
        for stage in range(len(self._stages) - 2, -1, -1):
            stored = self._states.get(prefixes[stage])
            if stored is not None:
                return stage + 1, stored
        return 0, None

    def _to_collect(self, plan: QuantPlan, first: int, prefixes: list[str]) -> dict[int, list[State]]:
        """The stages whose outputs are worth keeping and fit, later ones (smaller, used more often) first."""
        chosen: list[int] = []
        size = 0
        for stage in range(len(self._stages) - 2, first - 1, -1):
            more = sum(
                self._specs[key].elements * code_dtype(fmt).itemsize * len(self)
                for key, fmt in zip(self._stages[stage].outputs, self._formats(stage, plan), strict=True)
            )
            spared = self._tail_cost[stage + 1] < 1.0  # nothing is gained by keeping the input image
            if spared and self._states.make_room(size + more, prefixes[first - 1] if first else None):
                chosen.append(stage)
                size += more
        return {stage: [] for stage in reversed(chosen)}  # the last one put is the last one dropped

    def _formats(self, stage: int, plan: QuantPlan) -> tuple[FixedFormat, ...]:
        formats = [plan.points[key] for key in self._stages[stage].outputs]
        return tuple(
            fmt for fmt in formats if isinstance(fmt, FixedFormat)
        )  # checked: computed tensors are fixed-point

    def _identity(self) -> dict[str, Any]:
        """What the answers depend on besides the plan."""
        weights = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            weights.update(name.encode())
            weights.update(tensor.detach().contiguous().numpy().tobytes())
        data = hashlib.sha256(self.images.numpy().tobytes() + self.labels.tobytes())
        return {
            "caplet": caplet.__version__,
            "family": self.model.family,
            "config": self.model.config.model_dump(mode="json"),
            "weights": weights.hexdigest(),
            "images": data.hexdigest(),
            "n": len(self),
            "integer": self._integer,
        }
