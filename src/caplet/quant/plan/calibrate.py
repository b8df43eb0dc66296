"""Calibration: what values every point takes on real images, and the formats that follow."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import ArtefactError, ConfigError, ModelError, PlanError
from caplet.files import read_arrays, write_atomic
from caplet.fixed import AnyFormat, Rounding
from caplet.models.base import CapsNet
from caplet.nn.points import PointSpec, Storage, Watch
from caplet.progress import Progress
from caplet.quant.plan.formats import HALF, FormatRule, Histogram, choose_format

DEFAULT_IMAGES = 1024
"""Images that are plenty for calibration."""
KIND, VERSION = "caplet-calibration", 1


@dataclass(frozen=True, eq=False)
class Calibration:
    """Histograms of every point of a model, and the formats chosen from them.

    Attributes:
        specs: the model's points by key.
        histograms: by key: of the parameters for flash points, of the calibration images for RAM points.
        images: number of calibration images.
    """

    specs: Mapping[str, PointSpec]
    histograms: Mapping[str, Histogram]
    images: int
    _formats: dict[tuple[str, int, FormatRule, Rounding], AnyFormat] = field(default_factory=dict, repr=False)

    def format(
        self, key: str, width: int, rule: FormatRule = FormatRule(), rounding: Rounding = Rounding.NEAREST
    ) -> AnyFormat:
        """The format of a point at a width (see :func:`caplet.quant.plan.formats.choose_format`); remembered.

        Raises:
            PlanError: unknown point, or a width outside 1..16.
        """
        if key not in self.specs:
            raise PlanError(f"calibration: unknown point {key!r}; it was made for another model")
        wanted = (key, width, rule, rounding)
        if wanted not in self._formats:
            self._formats[wanted] = choose_format(self.specs[key], self.histograms[key], width, rule, rounding)
        return self._formats[wanted]

    def save(self, path: str | Path, identity: Mapping[str, Any] | None = None) -> None:
        """Write the histograms (.npz, whole or not at all).

        Args:
            identity: what they depend on, plain JSON values, for :meth:`made_of`.

        Raises:
            ArtefactError: it cannot be written.
        """
        points = {key: (h.exponent, h.zeros, h.low, h.high) for key, h in self.histograms.items()}
        meta = {"kind": KIND, "version": VERSION, "images": self.images, "points": points, "identity": identity}
        counts = np.stack([histogram.counts for histogram in self.histograms.values()])
        text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        write_atomic(path, lambda stream: np.savez_compressed(stream, counts=counts, meta=text), "the calibration")

    @classmethod
    def load(cls, path: str | Path, model: CapsNet) -> "Calibration":
        """Read what :meth:`save` wrote for ``model``.

        Raises:
            ArtefactError: unreadable, damaged, or not a calibration.
            PlanError: made for a model with other points.
        """
        with _opened(path) as (counts, meta):
            histograms = {
                key: Histogram(row.astype(np.int64), exponent, zeros, low, high)
                for row, (key, (exponent, zeros, low, high)) in zip(counts, meta["points"].items(), strict=True)
            }
            images = int(meta["images"])
        specs = model.points()
        if set(specs) != set(histograms):
            raise PlanError(f"{path}: this calibration was made for a model with other points than {model.family}")
        return cls(specs, histograms, images)

    @staticmethod
    def made_of(path: str | Path) -> dict[str, Any] | None:
        """What the calibration at ``path`` depends on, as :meth:`save` was told. Raises as :meth:`load`."""
        with _opened(path) as (_, meta):
            found: dict[str, Any] | None = meta.get("identity")
            return found


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    """Counts and facts of a saved calibration; whatever is wrong with the file becomes one ArtefactError."""
    archive = read_arrays(path, "the calibration", "move it away")
    try:
        counts, meta = archive["counts"], json.loads(archive["meta"].tobytes())
        if (meta["kind"], meta["version"], counts.shape) != (KIND, VERSION, (len(meta["points"]), 2 * HALF)):
            raise ValueError("unexpected kind, version or shape")
        yield counts, meta
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactError(f"{path} is not a calibration of version {VERSION}: {error}; move it away") from error


def calibrate(model: CapsNet, images: Tensor, *, batch_size: int = 64, progress: Progress | None = None) -> Calibration:
    """Observe a float model on calibration images.

    Args:
        model: left as it was; run in eval mode.
        images: uint8 (N, C, H, W), e.g. the first :data:`DEFAULT_IMAGES` of the calibration split.

    Raises:
        ConfigError: no images. ModelError: images of another size; a NaN at a point (named).
    """
    if len(images) == 0:
        raise ConfigError("calibration needs at least one image, got none")
    model.check_images(images)
    histograms: dict[str, Histogram] = {}

    def count(key: str, spec: PointSpec, value: Tensor, iteration: int) -> None:
        if spec.storage is Storage.RAM or key not in histograms:  # constants once; every iteration of a routing
            try:
                histograms.setdefault(key, Histogram()).add(value)
            except ModelError as error:
                raise ModelError(f"point {key}: {error}") from None

    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), model.handle(Watch(count)):
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                model(to_float(batch, model.device))
                if progress is not None:
                    progress(start + len(batch), len(images))
    finally:
        model.train(training)
    specs = model.points()
    return Calibration(specs, {key: histograms[key] for key in specs}, len(images))
