"""Model families: shapes, odd settings, points, stages, copies, and the registry."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet, Stage, check_finite
from caplet.models.deep import DeepCaps
from caplet.models.registry import FAMILIES, NAMED, build, named_model
from caplet.models.shallow import ShallowCaps
from caplet.nn.points import Handler, PointSpec

STEM = {"kernel": 3, "channels": 4}
BLOCKS = [{"types": 3, "dim": 2}, {"types": 2, "dim": 4}, {"types": 3, "dim": 3}, {"types": 2, "dim": 3}]

SHALLOW: dict[str, dict[str, Any]] = {
    "odd image": {"image": (1, 13, 17), "stem": [STEM]},
    "two channels, two stems": {"image": (2, 12, 12), "stem": [STEM, {"kernel": 2, "stride": 2, "channels": 5}]},
    "no stem": {"image": (3, 9, 9), "stem": []},
    "no biases": {"image": (1, 9, 9), "stem": [STEM], "primary_bias": False, "class_bias": False},
    "one iteration": {"image": (1, 9, 9), "stem": [STEM], "iterations": 1},
    "just fits": {"image": (1, 5, 5), "stem": [STEM]},
}
DEEP: dict[str, dict[str, Any]] = {
    str(size): {"image": (channels, size, size)} for size, channels in ((28, 1), (32, 3), (64, 3), (36, 2), (1, 1))
} | {"not square": {"image": (1, 20, 33), "skip_iterations": 1}}


def shallow(case: str) -> CapsNet:
    return build("shallow", {"primary_types": 3, "primary_dim": 2, "primary_kernel": 3, "class_dim": 5} | SHALLOW[case])


def deep(case: str) -> CapsNet:
    return build("deep", {"channels": 4, "blocks": BLOCKS, "class_dim": 5, "classes": 4} | DEEP[case])


class Keys(Handler):
    """A handler that checks every tensor against its declaration and collects the keys."""

    def __init__(self, model: CapsNet) -> None:
        self.points = model.points()
        self.seen: list[str] = []

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        assert self.points[key] is spec
        assert value.shape == spec.shape or value.shape[1:] == spec.shape, key
        self.seen.append(key)
        return value


def examine(model: CapsNet) -> None:
    model.eval()
    images = torch.rand(2, *model.config.image)
    with torch.no_grad():
        out = model(images)
        keys = Keys(model)
        with model.handle(keys):
            watched = model(images)
    assert torch.equal(out, watched)
    assert set(keys.seen) == set(model.points())
    assert len(model.points()) == sum(len(layer.specs) for layer in model.layers())
    assert all(layer.handler is None for layer in model.layers())
    assert out.shape == (2, model.config.classes, 5)
    assert float(out.norm(dim=-1).max()) < 1
    names = [stage.name for stage in model.stages()]
    assert len(set(names)) == len(names)
    assert tuple(names[1:]) == model.groups()
    for stage in model.stages():
        assert set(stage.outputs) <= set(model.points())
        for layer in stage.layers:
            assert layer.name.split(".")[0] == stage.name


@pytest.mark.parametrize("case", SHALLOW)
def test_shallow(case: str) -> None:
    examine(shallow(case))


@pytest.mark.parametrize("case", DEEP)
def test_deep(case: str) -> None:
    examine(deep(case))


@pytest.mark.parametrize("name", NAMED)
def test_named_models_build(name: str) -> None:
    named = named_model(name)
    model = build(named.family, named.config).eval()
    with torch.no_grad():
        assert model(torch.rand(1, *named.config.image)).shape[:2] == (1, named.config.classes)


def test_published_sizes() -> None:
    """Parameter counts of the published networks (Sabour et al.: 6.8 M without decoder, plus our biases)."""
    assert ShallowCaps().parameter_count() == 256 * 82 + 256 * 256 * 81 + 256 + 1152 * 8 * 160 + 160
    assert DeepCaps().parameter_count() == 8_447_808


def test_stages_chain_to_the_whole() -> None:
    model = deep("36").eval()
    images = torch.rand(2, 2, 36, 36)
    with torch.no_grad():
        state: tuple[Tensor, ...] = (images,)
        for stage in model.stages():
            state = stage.run(state)
            assert len(state) == len(stage.outputs)
        assert torch.equal(state[0], model(images))


@pytest.mark.parametrize("make", [lambda: shallow("odd image"), lambda: deep("28")], ids=["shallow", "deep"])
def test_a_copy_uses_its_own_layers(make: Any) -> None:
    model = make().eval()
    twin = copy.deepcopy(model)
    own = {id(module) for module in twin.modules()}
    assert all(id(layer) in own for stage in twin.stages() for layer in stage.layers)
    images = torch.rand(2, *model.config.image)
    with torch.no_grad():
        before = model(images)
        assert torch.equal(twin(images), before)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(images), before)
        assert not torch.equal(twin(images), before)
        keys = Keys(twin)
        with twin.handle(keys):
            model(images)
            assert not keys.seen
            twin(images)
            assert keys.seen


def test_nested_handlers_are_restored() -> None:
    model = shallow("odd image")
    first, second = Keys(model), Keys(model)
    with model.handle(first):
        with model.handle(second):
            assert {layer.handler for layer in model.layers()} == {second}
        assert {layer.handler for layer in model.layers()} == {first}
    assert {layer.handler for layer in model.layers()} == {None}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((1, 8, 8), "layer conv1: its 9x9 kernel does not fit its 8x8 input; .* image .* is 17x17"),
        ((1, 16, 28), "layer primary: its 9x9 kernel does not fit its 8x20 input; .* image .* is 17x17"),
    ],
)
def test_too_small_images_name_layer_and_smallest_size(image: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build("shallow", {"image": image})
    build("shallow", {"image": (1, 17, 17), "stem": [{"channels": 2}], "primary_types": 1})


def test_the_smallest_size_is_exact() -> None:
    stem = [{"kernel": 5, "stride": 3, "channels": 2}, {"kernel": 2, "stride": 2, "channels": 2}]
    config = {"stem": stem, "primary_types": 1, "primary_kernel": 3}
    with pytest.raises(ModelError, match="is 20x20: resize"):
        build("shallow", config | {"image": (1, 19, 19)})
    assert build("shallow", config | {"image": (1, 20, 20)}).stages()[-2].layers[0].out_shape[2:] == (1, 1)  # type: ignore[attr-defined]


def test_deep_blocks_must_agree_on_the_dimension() -> None:
    blocks = [{"dim": 4}, {}, {"dim": 4}, {"dim": 8}]
    with pytest.raises(ModelError, match="blocks 3 and 4 have 4 and 8 dimensions"):
        build("deep", {"blocks": blocks, "channels": 4})


def test_images_are_checked() -> None:
    model = shallow("odd image")
    model.check_images(torch.zeros(3, 1, 13, 17))
    for wrong in (torch.zeros(3, 1, 17, 13), torch.zeros(1, 13, 17)):
        with pytest.raises(ModelError, match="takes 1x13x17 images"):
            model.check_images(wrong)


def test_non_finite_values_are_named() -> None:
    model = shallow("odd image")
    model.get_parameter("digit.weight").data[0, 0, :2] = float("nan")
    with pytest.raises(ModelError, match=r"here: 2 of \d+ values of digit.weight are not finite"):
        check_finite(named_tensors(model), "here")


def test_registry_errors() -> None:
    with pytest.raises(ModelError, match="unknown model family 'shalow'; did you mean 'shallow'"):
        build("shalow", {})
    with pytest.raises(ModelError, match=r"unknown model 'deep-82'; did you mean 'deep-28'\? \(known: "):
        named_model("deep-82")
    with pytest.raises(ModelError, match=r"setting 'stem.0.kernel': .* \(found 0\)"):
        build("shallow", {"stem": [{"kernel": 0}]})
    with pytest.raises(ModelError, match="setting 'colour'"):
        build("deep", {"colour": True})
    with pytest.raises(ValueError, match="shallow is registered already"):
        FAMILIES.add("shallow", FAMILIES["deep"])
    with pytest.raises(ValueError, match="deep is registered already"):
        NAMED.add("deep", NAMED["shallow"])
    assert {named.family for named in NAMED.values()} <= set(FAMILIES)


def test_stage_is_immutable() -> None:
    stage = shallow("odd image").stages()[0]
    assert isinstance(stage, Stage)
    with pytest.raises(AttributeError):
        stage.name = "other"  # type: ignore[misc]


def with_norms(**changes: Any) -> ShallowCaps:
    """A small network whose batch norms have statistics, scales (some negative) and offsets."""
    convs = [{"kernel": 3, "channels": channels, "batch_norm": 1e-3} for channels in (5, 6)]
    sizes = {"image": (2, 11, 12), "primary_types": 3, "primary_dim": 2, "primary_kernel": 3, "class_dim": 5}
    torch.manual_seed(0)
    model = build("shallow", {**sizes, "stem": convs, **changes})
    assert isinstance(model, ShallowCaps)
    for layer in model.stem:
        norm = layer.batch_norm
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.normal_(tensor)
        torch.nn.init.uniform_(norm.running_var, 0.1, 3.0)
    return model.eval()


def test_folded_batch_norms_compute_the_same() -> None:
    model = with_norms()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    folded = model.folded()
    assert torch.equal(state, torch.get_rng_state())
    assert [conv.batch_norm for conv in folded.config.stem] == [None, None]
    images = torch.rand(8, 2, 11, 12)
    with torch.no_grad():
        assert torch.allclose(folded(images), model(images), atol=1e-5)
        assert model(images).norm(dim=-1).max() > 0.01
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not folded.training


def test_batch_norms_stay_where_the_next_layer_cannot_do_for_them() -> None:
    padded = [{"kernel": 3, "channels": 5, "batch_norm": 1e-3, "padding": padding} for padding in (0, 1, "same")]
    model = with_norms(stem=padded, primary_bias=False).folded()
    assert [conv.batch_norm for conv in model.config.stem] == [1e-3] * 3
    without = build("shallow", SHALLOW["odd image"] | {"primary_types": 3, "primary_dim": 2, "primary_kernel": 3})
    assert without.folded().config == without.config
