"""How the routing couples capsules, and which units never do anything."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.models.base import CapsNet
from caplet.nn.caps import DenseCaps, RoutedConvCaps
from caplet.prune.choices import UnitKind
from caplet.prune.scores import Record, sites, voter_layers
from caplet.prune.structure import Keep, structure_of

DEAD = 1e-3
"""A capsule that is never longer than this, or a channel never larger, is dead. Squashed capsules reach up to 1."""


@dataclass(frozen=True)
class Activity:
    """What a model does on a set of images.

    Attributes:
        entropy: by layer that routes in several iterations, the mean entropy of each input capsule's last coupling,
            (inputs,), as a fraction of the largest (1: it votes for all outputs alike; 0: for one).
        peaks: by group (not of dimensions), the largest length or activation of each unit, (size,).
    """

    entropy: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    peaks: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def dead(self) -> dict[str, Keep]:
        """By group, what stays when dead units go; groups without any are left out, as are those with nothing else."""
        alive = {name: peak > DEAD for name, peak in self.peaks.items()}
        return {name: keep for name, keep in alive.items() if keep.any() and not keep.all()}

    def to_json(self) -> dict[str, Any]:
        """Summaries: entropy by layer, dead units by group."""
        return {
            "entropy": {
                name: {
                    "mean": float(values.mean()),
                    "low": float(values.min()),
                    "high": float(values.max()),
                    "deciles": np.quantile(values, np.linspace(0, 1, 11)).round(4).tolist(),
                }
                for name, values in self.entropy.items()
            },
            "dead": {name: int((peak <= DEAD).sum()) for name, peak in self.peaks.items()},
        }


def measure_activity(model: CapsNet, images: Tensor, batch_size: int = 50) -> Activity:
    """Watch ``model`` on images uint8 (N, C, H, W), of the calibration split, in one pass without gradients."""
    structure = structure_of(model)
    places, voters = sites(structure, model), voter_layers(model, structure)
    routed = [
        layer.name for layer in model.layers() if isinstance(layer, DenseCaps | RoutedConvCaps) and layer.iterations > 1
    ]
    found = Activity()

    def note_peaks(name: str, values: Tensor) -> None:
        new = values.cpu().double().numpy()
        found.peaks[name] = np.maximum(found.peaks.get(name, new), new)

    model.eval()
    for batch in torch.split(images, batch_size):
        record = Record(keep_gradients=False)
        with model.handle(record), torch.no_grad():
            model(to_float(batch, model.device))
        for site in places:
            if site.group.kind is not UnitKind.DIM:
                value = record.active(site)
                if site.dims:
                    value = value.square().sum(site.dims, keepdim=True).sqrt()
                note_peaks(site.group.name, value.abs().amax(site.others))
        for _, voting, sources in voters.values():
            note_peaks(voting.group, record.voting(voting, sources).amax(0))
        for name in routed:
            value = record.values[f"{name}.coupling"]
            outputs = value.shape[1]
            bits = -(value * value.clamp_min(1e-30).log()).sum(1) / math.log(max(outputs, 2))
            total = found.entropy.get(name, np.zeros(value.shape[2]))
            found.entropy[name] = total + bits.sum(0).cpu().double().numpy() / len(images)
    return found
