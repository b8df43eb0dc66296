"""Simpler routing: folded couplings are exact where couplings are constant, and only the paired test accepts."""

from typing import Any

import pytest
import torch

from caplet.data.imageset import ImageSet, to_float
from caplet.lower import lower
from caplet.models.assemble import named_tensors
from caplet.models.registry import build
from caplet.program.interpreter import run
from caplet.program.ops import Routing
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.quant.search.simplify_routing import (
    Simplification,
    choices,
    mean_couplings,
    routed_layers,
    simplified,
    simplify_routing,
)


def image_set(case: Any) -> ImageSet:
    classes = tuple(map(str, range(10)))
    return ImageSet(case.images, case.labels, torch.arange(len(case.images)), classes, "tiny/calibration")


def test_what_can_be_tried(deep: Any) -> None:
    layers = routed_layers(deep.model)
    assert list(layers) == ["block4.skip", "digit"]
    assert list(choices(layers["digit"])) == [Simplification("digit", 1), Simplification("digit", 2)]


def test_mean_couplings_sum_to_one_over_the_outputs(case: Any) -> None:
    found = mean_couplings(case.model, case.images[:7], batch_size=3)
    assert set(found) == set(routed_layers(case.model))
    for name, couplings in found.items():
        assert couplings.shape == case.model.points()[f"{name}.coupling"].shape
        assert torch.allclose(couplings.sum(0), torch.ones(couplings.shape[1], dtype=couplings.dtype), atol=1e-5)


def test_the_couplings_of_one_image_are_exact_for_it(case: Any) -> None:
    for index in (0, 5):
        image = case.images[index : index + 1]
        constant = simplified(case.model, Simplification("digit", 1), image)
        with torch.no_grad():
            expected, found = case.model(to_float(image)), constant(to_float(image))
        assert torch.allclose(found, expected, atol=1e-6 + 1e-4 * float(expected.abs().max()))


def test_a_convolution_folds_the_mean_of_each_type(deep: Any) -> None:
    layer = routed_layers(deep.model)["block4.skip"]
    couplings = mean_couplings(deep.model, deep.images)["block4.skip"]
    outputs = couplings.shape[0]
    constant = simplified(deep.model, Simplification("block4.skip", 1), deep.images)
    tensors = named_tensors(constant)
    for kind in range(layer.types):
        factor = float(couplings[kind :: layer.types].mean()) * outputs
        rows = slice(kind * layer.dim, (kind + 1) * layer.dim)
        assert torch.allclose(tensors["block4.skip.weight"][rows], factor * layer.weight[rows], rtol=1e-4)
    assert torch.equal(tensors["digit.weight"], deep.model.digit.weight)
    assert list(routed_layers(constant)) == ["digit"]


def test_fewer_iterations_are_the_model_with_that_setting(digits: Any) -> None:
    fewer = simplified(digits.model, Simplification("digit", 2), digits.images[:1])
    other = build("shallow", {**digits.model.config.model_dump(), "iterations": 2}).eval()
    other.load_state_dict(digits.model.state_dict())
    images = to_float(digits.images[:9])
    with torch.no_grad():
        assert torch.equal(fewer(images), other(images))
    assert fewer.config == other.config


def test_a_simplified_model_is_an_ordinary_one_down_to_the_integers(digits: Any) -> None:
    constant = simplified(digits.model, Simplification("digit", 1), digits.images)
    plan = uniform_plan(constant, calibrate(constant, digits.images), 8)
    program = lower(constant, plan)
    (routing,) = (op for op in program.ops if isinstance(op, Routing))
    assert routing.logits is None
    assert "digit.logits" not in plan.points
    with torch.no_grad():
        expected = constant(to_float(digits.images)).square().sum(-1).argmax(1)
    assert (run(program, digits.images.numpy()).predictions == expected.numpy()).mean() > 0.97


def test_only_the_paired_test_accepts(digits: Any) -> None:
    images, told = image_set(digits), list[str]()
    nothing = simplify_routing(digits.model, images, 0.0, note=told.append)
    assert nothing.model is digits.model
    assert [accepted for *_, accepted in nothing.steps] == [False, False]
    assert nothing.loss == 0.0
    assert all("rejected" in line for line in told)
    anything = simplify_routing(digits.model, images, 100.0)
    assert [accepted for *_, accepted in anything.steps] == [True]
    assert routed_layers(anything.model) == {}
    _, result, _ = anything.steps[0]
    assert anything.loss == max(0.0, result.loss)
    edge = simplify_routing(digits.model, images, result.high)
    assert edge.steps[0][2]
    assert not simplify_routing(digits.model, images, result.high - 1e-6).steps[0][2]


@pytest.mark.parametrize("tolerance", [0.5, 2.0])
def test_a_relative_tolerance_is_a_part_of_the_accuracy(digits: Any, tolerance: float) -> None:
    images = image_set(digits)
    with torch.no_grad():
        right = (digits.model(to_float(digits.images)).square().sum(-1).argmax(1) == digits.labels).double().mean()
    assert simplify_routing(digits.model, images, tolerance, relative=True).tolerance == pytest.approx(
        tolerance * float(right)
    )
