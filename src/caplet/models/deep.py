"""DeepCaps in the Q-CapsNets variant (Rajasegaran et al. 2019; Marchisio et al. 2020)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.models.base import CapsNet, FrozenModel, Means, ModelConfig, Stage, State, layer_stage
from caplet.nn.caps import ConvCaps2d, DenseCaps, ResidualAdd, RoutedConvCaps, flatten_capsules
from caplet.nn.conv import ConvReLU, InputLayer
from caplet.nn.layer import Layer
from caplet.settings import Few, Natural, Positive, Side, Size


class BlockConfig(FrozenModel):
    """One block of conv capsules: its capsule types, their dimension, and the first layer's stride."""

    types: Size = 32
    dim: Size = 8
    stride: Side = 2


class DeepCapsConfig(ModelConfig):
    """Settings of :class:`DeepCaps`; the defaults are the published network for 32x32 colour images.

    Attributes:
        channels: output channels of the first convolution.
        blocks: the blocks in order; the last one's skip branch is routed.
        class_dim: dimension of the class capsules.
        skip_iterations, iterations: routing iterations of the routed skip and of the class capsules.
        mean, std: of every channel, which the input layer takes away and divides by; None for pixels as they are.
        kept: places of the capsules of blocks 3 and 4, one block after the other, that vote for the class capsules,
            ascending, at least one of each block; None for all of them.
    """

    image: tuple[Side, Side, Side] = (3, 32, 32)
    channels: Size = 128
    blocks: tuple[BlockConfig, BlockConfig, BlockConfig, BlockConfig] = (
        BlockConfig(dim=4),
        BlockConfig(),
        BlockConfig(),
        BlockConfig(),
    )
    class_dim: Size = 32
    skip_iterations: Few = 3
    iterations: Few = 3
    mean: Means = None
    std: tuple[Positive, ...] | None = None
    kept: tuple[Natural, ...] | None = None


class CapsBlock(nn.Module):
    """Three serial layers of conv capsules and a skip branch from the first to the sum.

    ``l1`` (strided) feeds both ``l2`` -> ``l3`` and ``skip``; the block's output is ``l3 + skip``.
    """

    def __init__(
        self, name: str, in_shape: tuple[int, int, int], block: BlockConfig, skip_iterations: int | None
    ) -> None:
        super().__init__()

        def conv(layer: str, shape: tuple[int, int, int], stride: int = 1) -> ConvCaps2d:
            return ConvCaps2d(f"{name}.{layer}", shape, block.types, block.dim, 3, stride, 1)

        self.l1 = conv("l1", in_shape, block.stride)
        types, dim, rows, columns = self.out_shape = self.l1.out_shape
        inner = (types * dim, rows, columns)
        self.l2, self.l3 = conv("l2", inner), conv("l3", inner)
        self.skip: ConvCaps2d | RoutedConvCaps
        if skip_iterations is None:
            self.skip = conv("skip", inner)
        else:
            self.skip = RoutedConvCaps(f"{name}.skip", self.out_shape, types, dim, 3, 1, 1, iterations=skip_iterations)
        self.add = ResidualAdd(name, self.out_shape)

    def layers(self) -> tuple[Layer, ...]:
        return (self.l1, self.skip, self.l2, self.l3, self.add)

    def forward(self, x: Tensor) -> Tensor:
        first = self.l1(x)
        skip = self.skip(first if isinstance(self.skip, RoutedConvCaps) else first.flatten(1, 2))
        second = self.l2(first.flatten(1, 2))
        total: Tensor = self.add(self.l3(second.flatten(1, 2)), skip)
        return total


class DeepCaps(CapsNet):
    """Conv + ReLU + batch norm, four capsule blocks, class capsules over the last two blocks' capsules.

    Differs from Rajasegaran et al. as the Q-CapsNets code does: batch norm follows the ReLU, the serial layers have no
    batch norm, the class capsules have a bias.

    Raises:
        ModelError: blocks 3 and 4 differ in capsule dimension. Every image size works: all convolutions are padded.
    """

    family, settings = "deep", DeepCapsConfig
    config: DeepCapsConfig

    def __init__(self, config: DeepCapsConfig | None = None) -> None:
        config = config or DeepCapsConfig()
        super().__init__(config)
        self.input = InputLayer("input", config.image, config.mean, config.std)
        self.conv1 = ConvReLU("conv1", config.image, config.channels, 3, 1, 1, batch_norm=1e-3)
        blocks: list[CapsBlock] = []
        shape = self.conv1.out_shape
        for index, block in enumerate(config.blocks, start=1):
            last = index == len(config.blocks)
            module = CapsBlock(f"block{index}", shape, block, config.skip_iterations if last else None)
            types, dim, rows, columns = module.out_shape
            shape = (types * dim, rows, columns)
            blocks.append(module)
        self.blocks = nn.ModuleList(blocks)
        self._blocks = tuple(blocks)
        third, fourth = config.blocks[-2], config.blocks[-1]
        if third.dim != fourth.dim:
            dims = f"{third.dim} and {fourth.dim} dimensions"
            raise ModelError(f"model deep: capsules of blocks 3 and 4 have {dims}; make them equal")
        capsules = sum(t * r * c for t, _, r, c in (blocks[i].out_shape for i in (-2, -1)))
        outputs = (config.classes, config.class_dim, config.iterations)
        self.digit = DenseCaps("digit", capsules, fourth.dim, *outputs, input_indices=config.kept)
        self.to(memory_format=torch.channels_last)

    def resized(self, sizes: Mapping[str, int], places: Mapping[str, tuple[int, ...] | None]) -> DeepCapsConfig:
        def resize(index: int, block: BlockConfig) -> BlockConfig:
            dim = sizes[f"block{min(index, 3)}.dim"]  # blocks 3 and 4 share theirs: both feed the class capsules
            return block.model_copy(update={"types": sizes[f"block{index}.types"], "dim": dim})

        changes = {
            "channels": sizes["conv1.channels"],
            "blocks": tuple(resize(index, block) for index, block in enumerate(self.config.blocks, start=1)),
            "class_dim": sizes["digit.dim"],
            "kept": places["digit.capsules"],
        }
        return self.config.model_copy(update=changes)

    def stages(self) -> tuple[Stage, ...]:
        def run_block(index: int) -> Stage:
            block = self._blocks[index]
            name, last = f"block{index + 1}", index == len(self._blocks) - 1

            def run(state: State) -> State:
                x = state[0]
                out = block(x if x.ndim == 4 else x.flatten(1, 2))
                return (x, out) if last else (out,)

            source = f"block{index}.sum" if index else "conv1.activation"
            outputs = (source, f"{name}.sum") if last else (f"{name}.sum",)
            first, second = f"{name}.l1.activation", f"{name}.l2.activation"
            wiring = {
                f"{name}.l1": (source,),
                f"{name}.skip": (first,),
                f"{name}.l2": (first,),
                f"{name}.l3": (second,),
                name: (f"{name}.l3.activation", f"{name}.skip.activation"),
            }
            return Stage(name, run, block.layers(), outputs, wiring)

        first = layer_stage(self.input)
        conv = layer_stage(self.conv1, first.outputs)
        blocks = [run_block(i) for i in range(len(self._blocks))]
        last = blocks[-1].outputs
        classes = layer_stage(self.digit, last, lambda state: torch.cat([flatten_capsules(x) for x in state], 1))
        return (first, conv, *blocks, classes)
