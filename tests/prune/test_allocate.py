"""Prices of removals: measured losses, and an order that takes the cheapest multiply-accumulates first."""

import copy

import numpy as np
import pytest
import torch

from caplet.prune.choices import Allocation, UnitKind
from caplet.prune.order import _slopes, macs_per_unit, measured_prices, removal_order
from caplet.prune.structure import prunable, structure_of
from caplet.train.loss import margin_loss
from tiny_networks import PRUNED, model_and_images


@pytest.mark.parametrize("name", PRUNED)
def test_every_space_has_prices_that_never_fall(name: str) -> None:
    model, images = model_and_images(name)
    structure = structure_of(model)
    groups = tuple(group for group in structure.groups.values() if group.kind is not UnitKind.DIM)
    scores = {name: np.arange(group.size, dtype=float) for name, group in structure.groups.items()}
    labels = torch.arange(len(images)) % model.config.classes
    calls: list[tuple[int, int]] = []
    prices = measured_prices(
        model, structure, scores, groups, images, labels, margin_loss, progress=lambda *call: calls.append(call)
    )
    assert {name: len(values) for name, values in prices.items()} == {group.name: group.size for group in groups}
    assert all((np.diff(values) >= -1e-12).all() for values in prices.values())
    assert calls[-1][0] == calls[-1][1] == len(calls)


def test_units_that_nobody_listens_to_cost_nothing_and_go_first() -> None:
    model, images = model_and_images("deep")
    model = copy.deepcopy(model)
    deaf = dict(model.named_parameters())["blocks.0.l1.weight"]
    with torch.no_grad():
        deaf.zero_()
    structure = structure_of(model)
    groups = prunable(structure, (UnitKind.CHANNELS, UnitKind.TYPES))
    scores = {name: np.arange(group.size, dtype=float) for name, group in structure.groups.items()}
    labels = torch.arange(len(images)) % model.config.classes
    prices = measured_prices(model, structure, scores, groups, images, labels, margin_loss)
    assert np.abs(prices["conv1.channels"]).max() < 1e-6
    assert max(prices["block4.types"]) > 1e-5
    unit_macs = macs_per_unit(model, structure, groups)
    order = removal_order(structure, scores, groups, Allocation.MEASURED, unit_macs, None, prices)
    cheap = [group for group, _ in order.removals if prices[group].max() < 1e-6 or group == "conv1.channels"]
    assert "conv1.channels" in cheap
    first = order.removals.index(("conv1.channels", 0))
    dear = [index for index, (group, unit) in enumerate(order.removals) if prices[group][unit] > 1e-5]
    assert all(first < index for index in dear)


def test_a_dip_does_not_empty_a_space() -> None:
    assert _slopes([(0, 0.0), (4, -1.0), (8, 3.0)], 10).tolist() == [-0.25] * 4 + [1.0] * 6
    assert _slopes([(0, 0.0), (1, 0.1), (2, 0.3), (3, 0.35)], 4).tolist() == pytest.approx([0.1, 0.125, 0.125, 0.125])
