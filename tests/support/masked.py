"""Masking: the removed units are still computed, and then as good as absent. The reference of surgery."""

import torch
from torch import Tensor

from caplet.models.base import CapsNet
from caplet.nn.points import Handler, PointSpec
from caplet.prune.rules import AxisGroups
from caplet.prune.structure import Selection, Structure


class Masked(Handler):
    """A point handler that masks what a selection removes: ``with model.handle(Masked(model, structure, kept)): ...``

    Channels, types and dimensions become zero; removed capsules take no part in a routing: as inputs their coupling is
    zero, as outputs the couplings of the others sum to 1.
    """

    def __init__(self, model: CapsNet, structure: Structure, selection: Selection) -> None:
        selection = structure.close(selection)
        self._zero: dict[str, list[Tensor]] = {}
        self._coupling: dict[str, dict[int, Tensor]] = {}

        def mask(key: str, axis: int, along: AxisGroups) -> Tensor:
            keep = torch.from_numpy(structure.kept(along, selection)).float()
            axes = len(specs[key].shape)
            return keep.view([-1 if index == axis else 1 for index in range(axes)])

        specs = model.points()
        for name, rule in structure.layers.items():
            if rule.masked is not None:
                key = f"{name}.{rule.masked}"
                self._zero[key] = [mask(key, axis, along) for axis, along in rule.units.items()]
            if rule.coupling:
                key = f"{name}.coupling"
                self._coupling[key] = {axis: mask(key, axis, along) for axis, along in rule.coupling.items()}

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        for mask in self._zero.get(key, ()):
            value = value * mask
        masks = self._coupling.get(key, {})
        if 0 in masks:
            value = value * masks[0]
            value = value / value.sum(1, keepdim=True)
        return value * masks[1] if 1 in masks else value
