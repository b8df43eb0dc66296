"""Capsules on a CNN: primary capsules over the trunk's last feature map, class capsules with dynamic routing.

Source: Renzulli and Grangetto 2022, "Towards efficient capsule networks" (backbones under capsule layers).
"""

from collections.abc import Mapping

import torch
from torch import nn

from caplet.errors import ModelError, choose, suggest
from caplet.models.architectures import ARCHITECTURES
from caplet.models.base import CapsNet, ModelConfig, Stage, layer_stage
from caplet.models.timm_trunk import PREFIX, timm_trunk
from caplet.models.trunk import ConvNode, TrunkModule, TrunkSettings, resized_blocks
from caplet.nn.caps import ConvCaps2d, DenseCaps, flatten_capsules
from caplet.nn.conv import InputLayer
from caplet.settings import Few, Side, Size

END = "@"
"""Between a trunk's name and its last block."""


class BackboneCapsConfig(ModelConfig):
    """Settings of :class:`BackboneCaps`; they say every channel count, also of a pruned network.

    Attributes:
        architecture: name of the trunk that this one is, or was before pruning; None for one of its own kind.
        trunk: the CNN, up to its last feature map.
        primary_types, primary_dim: primary capsules; their kernel is the whole feature map.
        class_dim, iterations: dimension of the class capsules, routing iterations.
    """

    image: tuple[Side, Side, Side] = (3, 64, 64)
    architecture: str | None = None
    trunk: TrunkSettings
    primary_types: Size
    primary_dim: Size = 8
    class_dim: Size = 16
    iterations: Few = 3


class BackboneCaps(CapsNet):
    """A CNN trunk, primary capsules whose kernel is its whole last map, class capsules.

    Raises ModelError: the image is too small for the trunk, or its last map is not square (the primary capsules' kernel
    is), or the trunk does not fit together; the message names the layer.
    """

    family, settings = "backbone", BackboneCapsConfig
    config: BackboneCapsConfig

    def __init__(self, config: BackboneCapsConfig) -> None:
        super().__init__(config)
        trunk = config.trunk
        self.input = InputLayer("input", config.image, trunk.mean, trunk.std)
        blocks: list[TrunkModule] = []
        shape, signed = config.image, self.input.specs["image"].signed
        for block in trunk.blocks:
            if block.name in ("input", "primary", "digit", *(other.block.name for other in blocks)):
                raise ModelError(f"model backbone: two parts are named {block.name!r}; names of blocks are unique")
            module = TrunkModule(block, shape, signed, trunk.eps)
            shape, signed = module.out_shape, module.signed
            blocks.append(module)
        self.trunk = nn.ModuleList(blocks)
        self._trunk = tuple(blocks)
        self.frozen = 0
        if shape[1] != shape[2]:
            size = f"{shape[1]}x{shape[2]}"
            raise ModelError(f"layer primary: its kernel is square, the trunk's last map is {size}: use square images")
        types, dim = config.primary_types, config.primary_dim
        self.primary = ConvCaps2d("primary", shape, types, dim, shape[1])
        self.digit = DenseCaps("digit", types, dim, config.classes, config.class_dim, config.iterations)
        self.to(memory_format=torch.channels_last)

    def stages(self) -> tuple[Stage, ...]:
        stages = [layer_stage(self.input)]
        for block in self._trunk:
            stages.append(block.stage(stages[-1].outputs[0]))
        stages.append(layer_stage(self.primary, stages[-1].outputs))
        return (*stages, layer_stage(self.digit, stages[-1].outputs, lambda state: flatten_capsules(state[0])))

    def blocks(self) -> tuple[TrunkModule, ...]:
        return self._trunk

    def resized(self, sizes: Mapping[str, int], places: Mapping[str, tuple[int, ...] | None]) -> BackboneCapsConfig:
        channels = {name.removesuffix(".channels"): size for name, size in sizes.items()}
        trunk = self.config.trunk
        changes = {
            "trunk": trunk.model_copy(update={"blocks": resized_blocks(trunk.blocks, channels)}),
            "primary_types": sizes["primary.types"],
            "primary_dim": sizes["primary.dim"],
            "class_dim": sizes["digit.dim"],
        }
        return self.config.model_copy(update=changes)

    def freeze_backbone(self, last: str | None = None) -> int:
        """From now on the trunk is not trained: no gradients, and batch norms that stay as they are, also in training.

        For good: ``train()`` leaves the frozen blocks, all or those up to ``last``, in evaluation mode.
        """
        names = [block.block.name for block in self._trunk]
        self.frozen = 1 + names.index(choose(last or names[-1], names, "block of the trunk", ModelError))
        for block in self._trunk[: self.frozen]:
            block.requires_grad_(False).eval()
        return 1 + self.frozen

    def train(self, mode: bool = True) -> "BackboneCaps":
        super().train(mode)
        for block in self._trunk[: self.frozen]:
            block.eval()
        return self


def trunk_settings(
    name: str, width: float = 1.0, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> TrunkSettings:
    """The trunk called ``name`` (``resnet18``, ``mobilenetv2``, ...); ``timm/NAME`` is timm's network of that name.

    ``NAME@BLOCK`` ends with that block: on small images the later ones see hardly more than one position.

    Args:
        width: factor on every channel count.
        mean, std: normalisation of the images per channel, as pretrained weights need it; None for none, or timm's own
            for its networks.

    Raises:
        ModelError: unknown name; the message suggests the nearest. A network of timm's that cannot be a trunk. A width
            that is not above 0.
        ToolMissing: a network of timm's where timm is not installed.
    """
    name, _, last = name.partition(END)
    if last:
        whole = trunk_settings(name, width, mean, std)
        blocks = [block.name for block in whole.blocks]
        end = blocks.index(choose(last, blocks, f"block of backbone {name}", ModelError))
        return whole.model_copy(update={"blocks": whole.blocks[: end + 1]})
    if not width > 0:
        raise ModelError(f"backbone {name}: width {width}; the rule is above 0")
    if name.startswith(PREFIX):
        trunk = timm_trunk(name.removeprefix(PREFIX)).settings
        if width != 1.0:
            raise ModelError(f"backbone {name}: width {width:g}; timm's networks have the widths that their names say")
        if mean is None and std is None:
            return trunk
    elif name in ARCHITECTURES:
        trunk = ARCHITECTURES[name].make(width)
    else:
        hint = suggest(name, ARCHITECTURES)
        raise ModelError(f"unknown backbone {name!r}{hint} (known: {', '.join(ARCHITECTURES)}, {PREFIX}NAME)")
    return trunk.model_copy(update={"mean": mean, "std": std})


def primary_types_for(trunk: TrunkSettings, primary_dim: int = 8) -> int:
    """Capsule types that hold the channels of a trunk's last map, at least 1."""
    last = [node for block in trunk.blocks for node in block.nodes if isinstance(node, ConvNode)][-1]
    return max(1, last.channels // primary_dim)


def backbone_caps(
    name: str,
    *,
    image: tuple[int, int, int] = (3, 64, 64),
    classes: int = 10,
    width: float = 1.0,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    primary_types: int | None = None,
    primary_dim: int = 8,
    class_dim: int = 16,
    iterations: int = 3,
) -> BackboneCaps:
    """Capsules on the trunk ``name``, with random weights: a CNN, primary capsules, class capsules.

    It takes float (B, *image) in [0, 1] and gives class capsules, float (B, classes, class_dim).

    Args:
        name, width, mean, std: as :func:`trunk_settings`.
        image: channels, rows, columns.
        primary_types: capsule types; as many as the last map's channels divided by ``primary_dim`` if None.
        primary_dim, class_dim, iterations: of the capsules and their routing.

    Raises:
        ModelError: unknown CNN, a width that is not above 0, an image that is too small.

    Source: Renzulli and Grangetto 2022.

    >>> model = backbone_caps("resnet18", image=(3, 32, 32), width=0.125)
    >>> model.config.primary_types, model.digit.weight.shape
    (8, torch.Size([8, 8, 160]))
    """
    trunk = trunk_settings(name, width, mean, std)
    config = BackboneCapsConfig(
        image=image,
        classes=classes,
        architecture=name,
        trunk=trunk,
        primary_types=primary_types or primary_types_for(trunk, primary_dim),
        primary_dim=primary_dim,
        class_dim=class_dim,
        iterations=iterations,
    )
    return BackboneCaps(config)
