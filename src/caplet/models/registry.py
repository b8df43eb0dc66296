"""The registry of model families and of named, ready-made configurations."""

from typing import Any, NamedTuple

from caplet.errors import ModelError
from caplet.models.architectures import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD
from caplet.models.backbone import BackboneCaps, BackboneCapsConfig, primary_types_for, trunk_settings
from caplet.models.base import CapsNet, ModelConfig
from caplet.models.deep import DeepCaps, DeepCapsConfig
from caplet.models.plain import PlainCnn
from caplet.models.shallow import ShallowCaps, ShallowCapsConfig, StemConv
from caplet.models.timm_trunk import PREFIX
from caplet.registry import Registry


class NamedModel(NamedTuple):
    """A ready-made configuration with one line about it."""

    family: str
    config: ModelConfig
    about: str


FAMILIES: Registry[str, type[CapsNet]] = Registry("model family", ModelError)
NAMED: Registry[str, NamedModel] = Registry("model", ModelError)


def build(family: str, config: ModelConfig | dict[str, Any]) -> CapsNet:
    """Build a model of ``family`` from its settings (a settings object or a JSON-like dict).

    Raises ModelError: unknown family, unknown or invalid setting, image too small.
    """
    model = FAMILIES.find(family)
    if isinstance(config, dict):
        config = model.settings.model_validate(config)
    return model(config)


def named_model(name: str) -> NamedModel:
    """The ready-made configuration ``name``; ``timm/NAME`` is capsules on timm's network of that name.

    Raises:
        ModelError: unknown name; the message suggests the nearest. A network of timm's that cannot be a trunk.
        ToolMissing: a network of timm's where timm is not installed.
    """
    if name.startswith(PREFIX):
        return _on_trunk(name, f"timm's {name.removeprefix(PREFIX)}")
    return NAMED.find(name)


def _on_trunk(
    name: str, about: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> NamedModel:
    trunk = trunk_settings(name, mean=mean, std=std)
    config = BackboneCapsConfig(architecture=name, trunk=trunk, primary_types=primary_types_for(trunk))
    return NamedModel("backbone", config, f"capsules on {about}, 3x64x64")


for _model in (ShallowCaps, DeepCaps, BackboneCaps, PlainCnn):
    FAMILIES.add(_model.family, _model)

_DIGITS = ShallowCapsConfig(
    image=(1, 8, 8), stem=(StemConv(kernel=3, channels=32),), primary_types=8, primary_kernel=3, class_dim=8
)
_Q7 = ShallowCapsConfig(
    stem=(StemConv(kernel=7, channels=16),),
    primary_types=16,
    primary_dim=4,
    primary_kernel=7,
    class_dim=6,
    class_bias=False,
)


def _small(image: tuple[int, int, int], stem: tuple[tuple[int, int, int], ...], types: int, stride: int) -> NamedModel:
    """Small kernels, batch norms and narrow capsules.

    Args:
        stem: kernel, channels and stride of each convolution.
        types, stride: of the primary capsules.
    """
    config = ShallowCapsConfig(
        image=image,
        stem=tuple(StemConv(kernel=k, channels=c, stride=s, batch_norm=1e-3) for k, c, s in stem),
        primary_types=types,
        primary_dim=4,
        primary_kernel=3,
        primary_stride=stride,
        class_dim=5,
    )
    return NamedModel("shallow", config, f"small, with batch norms, {'x'.join(map(str, image))}")


for _name, _named in {
    "shallow": NamedModel("shallow", ShallowCapsConfig(), "ShallowCaps of Sabour et al. 2017, 1x28x28"),
    "shallow-digits": NamedModel("shallow", _DIGITS, "small ShallowCaps for scikit-learn's 8x8 digits"),
    "q7-mnist": NamedModel("shallow", _Q7, "the public Q7-CapsNets network for MNIST, 1x28x28"),
    "small-8": _small((1, 8, 8), ((3, 16, 1),), types=4, stride=2),
    "small-28": _small((1, 28, 28), ((5, 32, 2), (3, 32, 1), (3, 64, 2)), types=8, stride=1),
    "small-32": _small((3, 32, 32), ((3, 32, 1), (3, 32, 1), (3, 64, 2), (3, 64, 2)), types=16, stride=2),
    "deep": NamedModel("deep", DeepCapsConfig(), "DeepCaps of the Q-CapsNets code, 3x32x32"),
    "deep-28": NamedModel("deep", DeepCapsConfig(image=(1, 28, 28)), "DeepCaps for MNIST-like images, 1x28x28"),
    "deep-64": NamedModel("deep", DeepCapsConfig(image=(3, 64, 64)), "DeepCaps for 64x64 colour images"),
}.items():
    NAMED.add(_name, _named)
for _name, _architecture in ARCHITECTURES.items():
    NAMED.add(f"{_name}-caps", _on_trunk(_name, _architecture.about, IMAGENET_MEAN, IMAGENET_STD))
