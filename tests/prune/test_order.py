"""Removal sequences, targets and costs."""

import numpy as np
import pytest

from caplet.errors import ConfigError
from caplet.models.assemble import skeleton
from caplet.models.cost import cost_of
from caplet.prune.choices import Allocation, UnitKind
from caplet.prune.order import fewest_removals, macs_per_unit, removal_order, resized_cost
from caplet.prune.scores import measure_scores
from caplet.prune.structure import cut, prunable, structure_of
from caplet.train.loss import margin_loss
from tiny_networks import PRUNED, model_and_images

names = pytest.mark.parametrize("name", PRUNED)
UNITS = (UnitKind.CHANNELS, UnitKind.TYPES)


@names
@pytest.mark.parametrize("allocation", list(Allocation))
def test_orders_shrink_to_any_target(name: str, allocation: Allocation) -> None:
    model, images = model_and_images(name)
    structure = structure_of(model)
    groups = prunable(structure, UNITS)
    scores = measure_scores(model, images, None, ["length"], margin_loss)["length"]
    prices = {name: np.linspace(0.1, 1.0, len(values)) for name, values in scores.items()}
    unit_macs = macs_per_unit(model, structure, groups)
    order = removal_order(structure, scores, groups, allocation, unit_macs, prices=prices)
    macs = [resized_cost(model, structure, order.selection(count)).macs for count in range(len(order.removals) + 1)]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] == cost_of(model).macs
    goal = 0.6 * macs[0]
    count = fewest_removals(order, lambda keep: resized_cost(model, structure, keep).macs <= goal)
    assert count is not None
    assert macs[count] <= goal < macs[count - 1]
    assert cost_of(cut(model, order.selection(count))).macs == macs[count]
    assert fewest_removals(order, lambda keep: False) is None
    for keep in order.selection(len(order.removals)).values():
        assert keep.any()


def test_uniform_keeps_the_same_fraction_and_the_best() -> None:
    model, images = model_and_images("shallow-two-stems")
    structure = structure_of(model)
    scores = measure_scores(model, images, None, ["length"], margin_loss)["length"]
    groups = prunable(structure, UNITS)
    order = removal_order(structure, scores, groups, Allocation.UNIFORM, {}, {"primary.types": 2})
    half = order.selection(len(order.removals) // 2)
    assert half["primary.types"].sum() == 2
    assert 2 <= half["conv1.channels"].sum() <= 4
    assert half["conv1.channels"][scores["conv1.channels"].argmax()]
    worst = np.argsort(scores["primary.types"])[:2]
    assert not half["primary.types"][worst].any()


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"primary.type": 0.5}, "there is no group 'primary.type'"),
        ({"primary.types": 0.0}, r"primary\.types: 0 to keep; the rule is a fraction in \(0, 1\]"),
        ({"primary.types": -0.5}, "the rule is a fraction"),
        ({"primary.types": 1.5}, "or a number of units up to 3"),
        ({"primary.types": 4}, "or a number of units up to 3"),
        ({"primary.types": 0.1}, r"0\.1 of 3 types would leave none; the smallest size is 1 \(keep 0\.33\)"),
    ],
)
def test_fixed_sizes_out_of_range_are_refused(fixed: dict[str, float], message: str) -> None:
    model, _ = model_and_images("shallow")
    structure = structure_of(model)
    scores = {name: np.ones(group.size) for name, group in structure.groups.items()}
    with pytest.raises(ConfigError, match=message):
        removal_order(structure, scores, (), Allocation.UNIFORM, {}, fixed)


def test_costs_of_skeletons_need_no_memory() -> None:
    model, _ = model_and_images("deep")
    structure = structure_of(model)
    assert resized_cost(model, structure, structure.close({})).to_json() == cost_of(model).to_json()
    assert all(p.is_meta for p in skeleton(model.family, model.config).parameters())
