"""Plain CNNs of the size of a capsule network: their cost, what they compute, and what they refuse."""

import pytest
import torch

from caplet.errors import ModelError
from caplet.models.assemble import named_tensors, skeleton
from caplet.models.cost import cost_of
from caplet.models.plain import PlainCnn, cnn_like
from caplet.models.registry import NAMED, build


@pytest.mark.parametrize("name", NAMED)
def test_parameters_and_macs_are_those_of_the_model(name: str) -> None:
    named = NAMED.find(name)
    wanted = cost_of(skeleton(named.family, named.config))
    found = cost_of(skeleton("cnn", cnn_like(skeleton(named.family, named.config))))
    assert found.parameters == pytest.approx(wanted.parameters, rel=0.02)
    assert found.macs == pytest.approx(wanted.macs, rel=0.02)


def test_it_gives_class_probabilities() -> None:
    model = PlainCnn(cnn_like(build("shallow", NAMED.find("small-8").config))).eval()
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        found = model(images)
        x = model.input(images)
        for block in model.trunk:
            x = block(x)
    assert found.shape == (3, 10, 1)
    expected = torch.softmax(x.mean((2, 3)) @ model.scores.weight.T + model.scores.bias, 1)
    assert torch.allclose(found[:, :, 0], expected, atol=1e-6)
    assert sum(tensor.numel() for tensor in named_tensors(model).values()) >= model.parameter_count()


def test_a_size_that_no_cnn_has_is_refused() -> None:
    model = build("shallow", {"image": (1, 2, 2), "stem": [], "primary_kernel": 2, "iterations": 30})
    with pytest.raises(ModelError, match="no plain CNN has the"):
        cnn_like(model)
