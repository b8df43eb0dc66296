"""Scores against slow definitions, their registry, and what they refuse."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from caplet.data.imageset import to_float
from caplet.errors import CapletError, ConfigError
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.nn.points import Handler, PointSpec
from caplet.prune.coupling import measure_activity
from caplet.prune.scores import SCORES, Score, measure_scores
from caplet.prune.structure import cut, structure_of
from caplet.train.loss import margin_loss
from tiny_networks import PRUNED, model_and_images


def labels_for(model: CapsNet, images: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(images)) % model.config.classes


@dataclass
class Scaled(Handler):
    """Multiplies one unit of a point's tensor by a factor."""

    key: str
    axis: int
    unit: int
    factor: float

    def tap(self, key: str, spec: PointSpec, value: torch.Tensor, iteration: int) -> torch.Tensor:
        if key != self.key:
            return value
        factors = torch.ones(value.shape[self.axis])
        factors[self.unit] = self.factor
        return value * factors.view([-1 if axis == self.axis else 1 for axis in range(value.ndim)])


def slope(model: CapsNet, images: torch.Tensor, labels: torch.Tensor, key: str, axis: int, unit: int) -> float:
    """Sum over images of the magnitude of the loss's slope as one unit is scaled, by central differences."""
    total = 0.0
    for image, label in zip(images, labels, strict=True):
        ends = []
        for factor in (1.02, 0.98):
            with model.handle(Scaled(key, axis, unit, factor)), torch.no_grad():
                ends.append(float(margin_loss(lengths(model(to_float(image[None]))), label[None])))
        total += abs(ends[0] - ends[1]) / 0.04
    return total


@pytest.mark.parametrize(
    ("name", "group", "key", "axis"),
    [
        ("shallow", "conv1.channels", "conv1.activation", 1),
        ("deep", "conv1.channels", "conv1.activation", 1),
        ("shallow", "digit.capsules", "digit.votes", 2),
        ("deep", "digit.capsules", "digit.votes", 2),
    ],
)
def test_taylor_is_the_slope_of_the_loss(name: str, group: str, key: str, axis: int) -> None:
    model, images = model_and_images(name)
    labels = labels_for(model, images)
    found = measure_scores(model, images, labels, ["taylor"], margin_loss)["taylor"][group]
    for unit in range(3):
        assert found[unit] == pytest.approx(slope(model, images, labels, key, axis, unit), rel=0.05, abs=3e-4)


def test_taylor_of_a_shallow_type_is_the_sum_over_its_capsules() -> None:
    model, images = model_and_images("shallow")  # a primary capsule acts through its votes alone
    found = measure_scores(model, images, labels_for(model, images), ["taylor"], margin_loss)["taylor"]
    by_type = found["digit.capsules"].reshape(len(found["primary.types"]), -1).sum(1)
    np.testing.assert_allclose(found["primary.types"], by_type, rtol=1e-4)


@pytest.mark.parametrize("name", PRUNED)
def test_every_score_covers_every_space(name: str) -> None:
    model, images = model_and_images(name)
    found = measure_scores(model, images, labels_for(model, images), list(SCORES), margin_loss)
    halves = [measure_scores(model, images, labels_for(model, images), list(SCORES), margin_loss, batch_size=5)]
    for score in SCORES:
        for group in structure_of(model).groups.values():
            values = found[score][group.name]
            assert values.shape == (group.size,)
            assert (values >= 0).all()
            assert values.max() > 0, (score, group.name)
            np.testing.assert_allclose(halves[0][score][group.name], values, rtol=1e-3, atol=1e-5)


def test_length_is_that_of_the_capsules() -> None:
    model, images = model_and_images("shallow")
    found = measure_scores(model, images, None, ["length"], margin_loss)["length"]
    with torch.no_grad():
        capsules = model.primary(model.stem[0](to_float(images)))  # type: ignore[operator, index, union-attr]
    expected = capsules.norm(dim=2).sum((0, 2, 3))
    np.testing.assert_allclose(found["primary.types"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["digit.capsules"].reshape(3, -1).sum(1), expected, rtol=1e-4)


def test_random_depends_on_the_seed_alone() -> None:
    model, images = model_and_images("deep")
    a, b, c = (measure_scores(model, images, None, ["random"], margin_loss, seed=s)["random"] for s in (0, 0, 1))
    for group in a:
        assert (a[group] == b[group]).all()
    assert any((a[group] != c[group]).any() for group in a)


def test_scores_leave_the_model_as_it_was() -> None:
    model, images = model_and_images("shallow")
    before = [p.detach().clone() for p in model.parameters()]
    measure_scores(model, images, labels_for(model, images), ["taylor"], margin_loss)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_what_is_refused() -> None:
    model, images = model_and_images("shallow")
    labels = labels_for(model, images)
    with pytest.raises(ConfigError, match=r"unknown score 'tailor'; did you mean 'taylor'\? \(known: taylor, length"):
        measure_scores(model, images, labels, ["tailor"], margin_loss)
    with pytest.raises(ConfigError, match=r"score taylor: it needs a label for every calibration image, found none"):
        measure_scores(model, images, None, ["taylor"], margin_loss)
    with pytest.raises(ConfigError, match=r"7 calibration images are too few to score 4 classes; .* at least 8"):
        measure_scores(model, images[:7], labels[:7], ["length"], margin_loss)
    with pytest.raises(ValueError, match="score taylor is registered already"):
        SCORES.add("taylor", Score("taylor", "again"))


def test_gradients_that_are_not_finite_are_refused() -> None:
    model, images = model_and_images("shallow")
    broken = cut(model, {})
    with torch.no_grad():
        broken.digit.weight[0] = 3e38  # type: ignore[operator, index, union-attr]
    with pytest.raises(CapletError, match=r"gradient of the loss is not finite"):
        measure_scores(broken, images, labels_for(model, images), ["taylor"], margin_loss)


def test_dead_units_are_found_and_go_for_free() -> None:
    model, images = model_and_images("shallow")
    broken = cut(model, {})
    with torch.no_grad():
        broken.stem[0].bias[2] = -100.0  # type: ignore[index, union-attr]
        broken.primary.weight[5:10] = 0.0  # type: ignore[index, union-attr]
        broken.primary.bias[5:10] = 0.0  # type: ignore[index, union-attr]
    dead = measure_activity(broken, images).dead()
    assert not dead["conv1.channels"][2]
    assert (dead["primary.types"] == [True, False, True]).all()
    smaller = cut(broken, dead)
    with torch.no_grad():
        torch.testing.assert_close(smaller(to_float(images)), broken(to_float(images)), atol=1e-5, rtol=0)


def test_coupling_entropy_is_between_none_and_all() -> None:
    model, images = model_and_images("deep")
    activity = measure_activity(model, images, batch_size=11)
    assert set(activity.entropy) == {"block4.skip", "digit"}
    for values in activity.entropy.values():
        assert (values > 0).all()
        assert (values <= 1 + 1e-6).all()
    assert set(activity.to_json()["dead"]) == set(activity.peaks)
