"""ShallowCaps: stem convolutions, primary capsules, class capsules (Sabour et al. 2017, section 4)."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field

from caplet.models.base import CapsNet, FrozenModel, Means, ModelConfig, Stage, check_image_size, layer_stage
from caplet.nn.caps import ConvCaps2d, DenseCaps, flatten_capsules
from caplet.nn.conv import ConvReLU, InputLayer
from caplet.settings import Few, Natural, Pixels, Positive, Side, Size


class StemConv(FrozenModel):
    """One stem convolution, followed by ReLU.

    Attributes:
        padding: zeros on every side, or ``"same"`` as TensorFlow has it (:class:`caplet.nn.layer.Window`).
        batch_norm: what a batch norm after the ReLU adds to the variance; None for no batch norm there.
        slope: of negative values, where it is no ReLU but a LeakyReLU.
    """

    kernel: Side = 9
    stride: Side = 1
    channels: Size = 256
    padding: Pixels | Literal["same"] = 0
    batch_norm: Positive | None = None
    slope: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ShallowCapsConfig(ModelConfig):
    """Settings of :class:`ShallowCaps`; the defaults are the network of Sabour et al. for 28x28 images.

    Attributes:
        stem: the convolutions before the capsules, in order.
        primary_types, primary_dim: capsule types and capsule dimension of the primary capsules.
        primary_kernel, primary_stride, primary_padding: their convolution.
        class_dim: dimension of the class capsules.
        iterations: routing iterations.
        primary_flat: whether a primary capsule's components are neighbours in the stored map, not channels.
        primary_bias, class_bias: whether those layers have a bias.
        mean, std: of every channel, which the input layer takes away and divides by; None for pixels as they are.
        kept: places of the primary capsules that vote, ``(type * rows + row) * columns + column``, ascending; None for
            all of them.
    """

    stem: tuple[StemConv, ...] = (StemConv(),)
    primary_types: Size = 32
    primary_dim: Size = 8
    primary_kernel: Side = 9
    primary_stride: Side = 2
    primary_padding: Pixels | Literal["same"] = 0
    class_dim: Size = 16
    iterations: Few = 3
    primary_flat: bool = False
    primary_bias: bool = True
    class_bias: bool = True
    mean: Means = None
    std: tuple[Positive, ...] | None = None
    kept: tuple[Natural, ...] | None = None


class ShallowCaps(CapsNet):
    """Stem convolutions + ReLU, primary capsules, class capsules with dynamic routing.

    Differs from Sabour et al. only by the optional bias of the class capsules, which the Q-CapsNets models have. The
    public Q-CapsNets code scales the primary preactivation by 1 / types; ours does not (imported weights carry it).

    Raises:
        ModelError: the image is too small for a layer; the message names the layer and the smallest size that works.
    """

    family, settings = "shallow", ShallowCapsConfig
    config: ShallowCapsConfig

    def __init__(self, config: ShallowCapsConfig | None = None) -> None:
        config = config or ShallowCapsConfig()
        super().__init__(config)
        convs = [(f"conv{i}", conv.kernel, conv.stride, conv.padding) for i, conv in enumerate(config.stem, start=1)]
        convs.append(("primary", config.primary_kernel, config.primary_stride, config.primary_padding))
        check_image_size(self.family, config.image, convs)
        self.input = InputLayer("input", config.image, config.mean, config.std)
        stem: list[ConvReLU] = []
        shape = config.image
        for index, conv in enumerate(config.stem, start=1):
            window = (conv.kernel, conv.stride, conv.padding)
            name, norm = f"conv{index}", conv.batch_norm
            layer = ConvReLU(name, shape, conv.channels, *window, batch_norm=norm, slope=conv.slope)
            shape = layer.out_shape
            stem.append(layer)
        self.stem = torch.nn.ModuleList(stem)
        self._stem = tuple(stem)
        sizes = (config.primary_types, config.primary_dim, *convs[-1][1:])
        self.primary = ConvCaps2d("primary", shape, *sizes, bias=config.primary_bias, flat=config.primary_flat)
        types, dim, rows, columns = self.primary.out_shape
        inputs, outputs = (types * rows * columns, dim), (config.classes, config.class_dim, config.iterations)
        self.digit = DenseCaps("digit", *inputs, *outputs, bias=config.class_bias, input_indices=config.kept)
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def folded(self) -> "ShallowCaps":
        """A copy that computes the same, up to rounding, without the batch norms that the next layer can do for them.

        ``w . (scale x + offset) + b`` is ``(w scale) . x + (w . offset + b)``. Not where that layer lays zeros around
        the map, which would have to be offsets, nor where it has no bias.
        """
        norms = [conv.batch_norm for conv in self.config.stem]
        tensors = {name: value.clone() for name, value in self.state_dict().items()}
        for index, (layer, reader) in enumerate(zip(self._stem, (*self._stem[1:], self.primary), strict=True)):
            if layer.batch_norm is None or reader.padding or any(reader.extra) or reader.bias is None:
                continue
            scale, offset = layer.affine()
            name = "primary" if reader is self.primary else f"stem.{index + 1}"
            tensors[f"{name}.bias"] += torch.einsum("oihw,i->o", reader.weight, offset)
            tensors[f"{name}.weight"] *= scale.view(-1, 1, 1)
            norms[index] = None
            tensors = {key: value for key, value in tensors.items() if not key.startswith(f"stem.{index}.batch_norm.")}
        stem = (c.model_copy(update={"batch_norm": n}) for c, n in zip(self.config.stem, norms, strict=True))
        with torch.random.fork_rng(devices=[]):
            model = ShallowCaps(self.config.model_copy(update={"stem": tuple(stem)}))
        model.load_state_dict(tensors)
        model.notes = dict(self.notes)  # which can be copied
        return model.train(self.training)

    def resized(self, sizes: Mapping[str, int], places: Mapping[str, tuple[int, ...] | None]) -> ShallowCapsConfig:
        counts = (sizes[f"{layer.name}.channels"] for layer in self._stem)
        stem = (conv.model_copy(update={"channels": n}) for conv, n in zip(self.config.stem, counts, strict=True))
        changes = {
            "stem": tuple(stem),
            "primary_types": sizes.get("primary.types", self.config.primary_types),  # flat capsules have no groups
            "primary_dim": sizes.get("primary.dim", self.config.primary_dim),
            "class_dim": sizes["digit.dim"],
            "kept": places.get("digit.capsules", self.config.kept),
        }
        return self.config.model_copy(update=changes)

    def stages(self) -> tuple[Stage, ...]:
        stages = [layer_stage(self.input)]
        for layer in (*self._stem, self.primary):
            stages.append(layer_stage(layer, stages[-1].outputs))
        return (*stages, layer_stage(self.digit, stages[-1].outputs, lambda state: flatten_capsules(state[0])))
