"""What a model costs, against what PyTorch counts and by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from caplet.errors import ModelError
from caplet.models.base import State
from caplet.models.cost import cost_of, macs_of, stage_macs
from caplet.models.registry import build
from caplet.nn.layer import Layer
from layers import CASES
from tiny_networks import PRUNED, model_and_images


@pytest.mark.parametrize("case", CASES)
def test_macs_of_every_layer_are_those_that_torch_counts(case: str) -> None:
    make, shapes = CASES[case]
    layer = make().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(*(torch.rand(1, *shape) for shape in shapes))
    assert macs_of(layer).total == counter.get_total_flops() // 2


@pytest.mark.parametrize("name", PRUNED)
def test_the_cost_of_a_model_is_that_of_its_stages(name: str) -> None:
    model, _ = model_and_images(name)
    model.eval()
    state: State = (torch.zeros(1, *model.config.image),)
    counted = []
    for stage in model.stages():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            state = stage.run(state)
        counted.append(counter.get_total_flops() // 2)
    assert list(stage_macs(model)) == counted
    cost = cost_of(model)
    assert cost.macs == cost.to_json()["macs"] == sum(counted)
    assert cost.parameters == model.parameter_count()


def test_macs_of_the_published_network() -> None:
    model = build("shallow", {})
    cost = {layer.layer: layer for layer in cost_of(model).layers}
    assert cost["conv1"].macs.conv == 81 * 256 * 400
    assert cost["primary"].macs.conv == 81 * 256 * 256 * 36
    votes = 1152 * 160
    assert cost["digit"].macs.votes == 8 * votes
    assert cost["digit"].macs.routing == (2 * votes, 2 * votes, votes)
    assert cost["primary"].capsules == 1152
    # its preactivation and activation, and the 256 x 20 x 20 map that it reads
    assert cost["primary"].peak_bytes == 4 * (2 * 9216 + 102400)
    assert stage_macs(model) == (0, 81 * 256 * 400, 81 * 256 * 256 * 36, 13 * votes)


def test_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(ModelError, match="layer odd: the cost of layers of type Layer is not known"):
        macs_of(Layer("odd"))
