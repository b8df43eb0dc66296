"""Error analysis: what every point does to the model at every width, one point at a time, on several draws of images.

A draw is a set of calibration images; no two draws share one. The exponents are chosen on the draw itself, then the
point is rounded on it with everything else in float. How far the draws disagree is how far the figures can be trusted.

Source: the one-at-a-time analysis is common ground of all bitwidth searches, e.g. Raji et al. 2025 for capsule
networks. Differs from a search's evaluations: softmax and squash are computed in float, and errors do not add up.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caplet.errors import ConfigError
from caplet.fixed import PlanFormat, Rounding, format_from_json
from caplet.models.base import CapsNet
from caplet.nn.points import PointSpec
from caplet.progress import Progress
from caplet.quant.choices import SensitivitySettings
from caplet.quant.measure.effects import Effect, Loss, Perturber
from caplet.quant.measure.log import MeasurementLog, images_digest, model_identity
from caplet.quant.plan.calibrate import Calibration, calibrate
from caplet.quant.plan.formats import FormatRule, bits_of
from caplet.workers.team import Team


@dataclass(frozen=True)
class SensitivityRow:
    """One point at one width on one draw.

    Attributes:
        key: of the point.
        bits: what the point got (see :func:`caplet.quant.plan.formats.bits_of`).
        draw: 0, 1, ...
        format: chosen on the draw.
        effect: measured on the draw.
    """

    key: str
    bits: int
    draw: int
    format: PlanFormat
    effect: Effect

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "point": self.key,
            "bits": self.bits,
            "draw": self.draw,
            "format": self.format.to_json(),
            "effect": self.effect.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SensitivityRow":
        """Read :meth:`to_json`. Raises KeyError, TypeError or PlanError when the data are not such an object."""
        effect = Effect.from_json(data["effect"])
        return cls(data["point"], data["bits"], data["draw"], format_from_json(data["format"]), effect)


def over_draws(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, smallest and largest of one or more values, infinite ones included; None stands for infinity (no noise).

    >>> over_draws([1.0, 2.0, 6.0]), over_draws([0.3, 0.3, 0.3])
    ({'mean': 3.0, 'low': 1.0, 'high': 6.0}, {'mean': 0.3, 'low': 0.3, 'high': 0.3})
    """
    mean = statistics.fmean(values) if all(map(math.isfinite, values)) else statistics.median(values)
    low, high = min(values), max(values)
    found = {"mean": min(max(mean, low), high), "low": low, "high": high}  # a mean of equals may be a neighbour
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def summarise(rows: Sequence[SensitivityRow]) -> list[dict[str, Any]]:
    """One record per point and width, JSON values, in the order in which they first appear.

    Returns:
        ``point``, ``bits``; over all draws ``n`` images, of which ``n10`` only the float model, ``n01`` only the
        rounded model classifies correctly; and :func:`over_draws` of every one of :meth:`Effect.figures`.
    """
    groups: dict[tuple[str, int], list[Effect]] = {}
    for row in rows:
        groups.setdefault((row.key, row.bits), []).append(row.effect)
    records = []
    for (key, bits), effects in groups.items():
        total = sum(effects, Effect())
        counts = {"point": key, "bits": bits, "n": total.n, "n10": total.n10, "n01": total.n01}
        figures = [effect.figures() for effect in effects]
        records.append(counts | {name: over_draws([each[name] for each in figures]) for name in figures[0]})
    return records


def draw_indices(n: int, settings: SensitivitySettings) -> list[Tensor]:
    """Positions of every draw's images among n, int64 (images,) each; no image is in two draws.

    Raises:
        ConfigError: n images are too few.
    """
    images = settings.within(n).images
    assert images is not None
    wanted = settings.draws * images
    if wanted > n:
        raise ConfigError(
            f"sensitivity: {settings.draws} draws of {images} images need {wanted:,} calibration images, there are"
            f" {n:,}; ask for at most {n // settings.draws} per draw, or for fewer draws"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(settings.seed))
    return list(torch.split(order[:wanted], images))


def measure_sensitivity(
    model: CapsNet,
    images: Tensor,
    labels: Tensor,
    settings: SensitivitySettings | None = None,
    *,
    loss: Loss | None = None,
    log_path: str | Path | None = None,
    progress: Progress | None = None,
    team: Team | None = None,
) -> list[SensitivityRow]:
    """Measure every point at every width on every draw.

    Args:
        images: uint8 (N, C, H, W), the calibration images; labels: int64 (N,).
        loss: see :class:`caplet.quant.measure.effects.Perturber`.
        log_path: JSON-lines file; rows that it holds already are not measured again.
        progress: called with (rows done, rows in all).
        team: measures; None for this process alone.

    Returns:
        Rows by draw, then point in order of execution, then descending bits. Widths that come to the same bits at a
        point are measured once.

    Raises:
        ConfigError: too few images. ModelError: images of another size, NaN at a point.
        ArtefactError: the log cannot be used, or is of another model, other images or other settings.
    """
    settings = (settings or SensitivitySettings()).within(len(images))
    draws = draw_indices(len(images), settings)
    identity = {
        **model_identity(model),
        "images": images_digest(images, labels),
        "settings": settings.model_dump(mode="json"),
    }
    log = MeasurementLog(log_path, "sensitivity log", identity)
    known = {(row.key, row.bits, row.draw): row for row in log.parsed(SensitivityRow.from_json, "a row")}
    rule = FormatRule(settings.exponents, settings.log2_weights)
    tasks = [(*task, draw) for draw in range(len(draws)) for task in _tasks(model.points(), settings.widths, rule)]
    team = team or Team()
    drawn = [(images[index], labels[index]) for index in draws]
    parcel = team.parcel(_Draws, model, drawn, settings, loss)
    missing = [(parcel, task) for task in tasks if task not in known]
    measured = team.map(_Draws.row, missing, lambda task: f"{task[0]} at {task[1]} bits, draw {task[2]}")
    rows: list[SensitivityRow] = []
    for task in tasks:
        row = known.get(task)
        if row is None:
            row = next(measured)
            log.add(row.to_json())
        rows.append(row)
        if progress is not None:
            progress(len(rows), len(tasks))
    return rows


class _Draws:
    """The model on every draw's images; what a draw needs is computed when its first row is asked for."""

    def __init__(
        self, model: CapsNet, drawn: Sequence[tuple[Tensor, Tensor]], settings: SensitivitySettings, loss: Loss | None
    ) -> None:
        self._model, self._drawn, self._settings, self._loss = model, drawn, settings, loss
        self._now: tuple[int, Calibration, Perturber] | None = None

    def row(self, task: tuple[str, int, int]) -> SensitivityRow:
        """One point at one width on one draw."""
        key, bits, draw = task
        if self._now is None or self._now[0] != draw:
            images, labels = self._drawn[draw]
            self._now = None  # before the next one is made
            perturber = Perturber(self._model, images, labels, loss=self._loss)
            self._now = draw, calibrate(self._model, images), perturber
        settings = self._settings
        rule, rounding = FormatRule(settings.exponents, settings.log2_weights), Rounding(settings.rounding)
        fmt = self._now[1].format(key, bits, rule, rounding)
        return SensitivityRow(key, bits, draw, fmt, self._now[2].effect({key: fmt}, rounding, settings.seed))


def _tasks(specs: Mapping[str, PointSpec], widths: Sequence[int], rule: FormatRule) -> Iterator[tuple[str, int]]:
    for key, spec in specs.items():
        bits = {bits_of(spec, width, rule) for width in widths}
        yield from ((key, width) for width in sorted(bits, reverse=True))
