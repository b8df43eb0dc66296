"""Data-dependent initialisation reaches its targets, in every layer, deterministically."""

import pytest
import torch

from caplet.errors import ConfigError, ModelError
from caplet.models.base import CapsNet
from caplet.models.deep import BlockConfig, DeepCaps, DeepCapsConfig
from caplet.models.shallow import ShallowCaps, ShallowCapsConfig, StemConv
from caplet.nn.points import Handler, PointSpec
from caplet.train.initialise import TOLERANCE, capsule_layers, initialise


def shallow() -> CapsNet:
    config = ShallowCapsConfig(
        image=(1, 8, 8), stem=(StemConv(kernel=3, channels=8),), primary_types=4, primary_kernel=3
    )
    return ShallowCaps(config)


def deep() -> CapsNet:
    blocks = (BlockConfig(types=4, dim=4), BlockConfig(types=4), BlockConfig(types=4), BlockConfig(types=8))
    return DeepCaps(DeepCapsConfig(image=(2, 16, 16), channels=8, blocks=blocks, class_dim=8))


def images(model: CapsNet) -> torch.Tensor:
    return torch.rand(24, *model.config.image, generator=torch.Generator().manual_seed(3))


class AllNorms(Handler):
    """Records the norm of every layer, not of one."""

    def __init__(self) -> None:
        self.norms: dict[str, float] = {}

    def tap(self, key: str, spec: PointSpec, value: torch.Tensor, iteration: int) -> torch.Tensor:
        if spec.name == "preactivation" and "dim" in spec.dims:
            norm = torch.linalg.vector_norm(value.float(), dim=1 + spec.dims.index("dim")).mean()
            self.norms[key.rsplit(".", 1)[0]] = float(norm)
        return value


@pytest.fixture(params=[shallow, deep], ids=["shallow", "deep"])
def model(request: pytest.FixtureRequest) -> CapsNet:
    torch.manual_seed(0)
    return request.param()


def test_every_layer_reaches_the_target(model: CapsNet) -> None:
    reached = initialise(model, images(model), 0.8)
    names = [layer.name for stage in model.stages() for layer in capsule_layers(stage)]
    assert list(reached) == names
    assert all(abs(norm / 0.8 - 1) <= TOLERANCE for norm in reached.values()), reached


def test_the_norms_hold_in_one_forward_pass() -> None:
    torch.manual_seed(0)
    model, probe = shallow(), AllNorms()  # no batch norm: the handler's pass is the training pass
    reached = initialise(model, images(model), 1.0, {"digit": 0.3})
    with model.handle(probe), torch.no_grad():
        model(images(model))
    assert probe.norms == pytest.approx(reached)
    assert probe.norms["primary"] == pytest.approx(1.0, rel=TOLERANCE)
    assert probe.norms["digit"] == pytest.approx(0.3, rel=TOLERANCE)


def test_it_is_deterministic_and_leaves_modes_and_statistics(model: CapsNet) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    initialise(model, images(model))
    first = {name: value.clone() for name, value in model.state_dict().items()}
    assert not model.training
    model.load_state_dict(before)
    initialise(model, images(model))
    assert all(torch.equal(first[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(before[name], first[name]) for name in before if "running" in name or "bias" in name)


def test_unknown_layers_are_refused(model: CapsNet) -> None:
    with pytest.raises(ConfigError, match="'conv1'"):
        initialise(model, images(model), 1.0, {"conv1": 1.0})


def test_a_dead_layer_is_named() -> None:
    model = shallow()
    torch.nn.init.zeros_(model.get_parameter("stem.0.weight"))
    with pytest.raises(ModelError, match=r"layer primary: .* is 0\.0"):
        initialise(model, images(model))
