"""Refitting: the convolutions that read removed units take over what those gave, by linear least squares.

What a removed input added to a convolution can in part be said by the inputs that stay, as activations are correlated.
For every convolution that lost inputs, the change of its weights and bias is found that gives back most of its outputs
on training images; no gradient is computed.

Source: He, Zhang and Sun 2017, "Channel pruning for accelerating very deep neural networks" (section 3.1, feature map
reconstruction). Differs from the paper: all layers are fitted in one pass, to the original's own inputs and outputs,
and the change is penalised, so that inputs which say nothing keep their weights.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caplet.data.imageset import to_float
from caplet.models.base import CapsNet
from caplet.nn.caps import ConvCaps2d
from caplet.nn.conv import ConvNorm, ConvReLU
from caplet.nn.layer import Layer
from caplet.prune.structure import Selection, Structure, structure_of

Convolution = ConvReLU | ConvCaps2d | ConvNorm
RIDGE = 1e-2
"""Penalty on the change of weights, in mean variances of the inputs."""
POSITIONS = 16
"""Positions of an output map that are looked at in every image, drawn at random."""
LARGEST = 6144
"""Layers with more kept inputs (channels x kernel) than this are left as they are: their moments would fill 150 MB."""


def refitted(
    model: CapsNet,
    smaller: CapsNet,
    selection: Selection,
    images: Tensor,
    *,
    structure: Structure | None = None,
    seed: int = 0,
    batch_size: int = 50,
) -> tuple[CapsNet, tuple[str, ...]]:
    """A copy of ``smaller`` whose convolutions make up for the inputs that they lost.

    Args:
        model: the network before surgery.
        smaller: what :func:`caplet.prune.structure.cut` made of it with ``selection``.
        images: uint8 (N, C, H, W), of the training split.
        seed: of the positions that are looked at.

    Returns:
        The model, in evaluation mode, and the names of the layers that were refitted. Layers that lost no input, whose
        inputs are more than :data:`LARGEST`, and those with votes are as they were.
    """
    structure = structure or structure_of(model)
    selection = structure.close(selection)
    moments: dict[str, _Moments] = {}
    hooks = []
    draws = torch.Generator().manual_seed(seed)
    for layer in model.layers():
        found = _moments(layer, structure, selection, draws)
        if found is not None:
            moments[layer.name] = found
            hooks.append(layer.register_forward_pre_hook(found.see))
    result = copy.deepcopy(smaller).eval()
    if not moments:
        return result, ()
    model.eval()
    try:
        with torch.inference_mode():
            for batch in torch.split(images, batch_size):
                model(to_float(batch, model.device))
    finally:
        for hook in hooks:
            hook.remove()
    for layer in result.layers():
        if layer.name in moments:
            moments[layer.name].apply(layer)
    return result, tuple(moments)


def _moments(layer: Layer, structure: Structure, selection: Selection, draws: torch.Generator) -> "_Moments | None":
    """What has to be measured for ``layer``; None where there is nothing to refit."""
    if not isinstance(layer, ConvReLU | ConvCaps2d | ConvNorm) or (isinstance(layer, ConvNorm) and layer.depthwise):
        return None
    axes = structure.layers[layer.name].tensors["weight"]
    inputs = structure.kept(axes[1], selection)
    outputs = structure.kept(axes[0], selection)
    patch = layer.kernel**2
    if inputs.all() or int(inputs.sum()) * patch > LARGEST:
        return None
    weight = layer.weight.detach()
    kept, staying = (torch.from_numpy(each).to(weight.device) for each in (inputs.repeat(patch), outputs))
    return _Moments(layer, kept, weight[staying].flatten(1)[:, ~kept], draws)


class _Moments:
    """Sums over images and positions, of the kept inputs x of one convolution and of what the lost ones added, y.

    Attributes:
        kept: which elements of an input patch (channel by channel, row by row) stay, bool (inputs,).
        lost: the weights of the others, float (outputs that stay, inputs that go).
        shifts: whether the layer has a bias, or a batch norm's mean in its place.
        xx, xy, x, y: sums of their products and of themselves, less ``origin_x`` and ``origin_y``.
        origin_x, origin_y: means over the first images where the layer shifts, so that a large mean costs no digits of
            the variances; zero where it does not.
    """

    def __init__(self, layer: Convolution, kept: Tensor, lost: Tensor, draws: torch.Generator) -> None:
        self.layer, self.kept, self.lost, self.draws, self.count = layer, kept, lost, draws, 0
        self.shifts = isinstance(layer, ConvNorm) or layer.bias is not None
        x, y = (lost.new_zeros(size) for size in (int(kept.sum()), len(lost)))
        self.xx, self.xy, self.x, self.y = x.new_zeros(len(x), len(x)), x.new_zeros(len(x), len(y)), x, y
        self.origin_x, self.origin_y = torch.zeros_like(x), torch.zeros_like(y)

    def see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take in the layer's input, float (B, C, H, W)."""
        layer = self.layer
        patches = F.unfold(layer.extended(inputs[0]), layer.kernel, padding=layer.padding, stride=layer.stride)
        images, size, positions = patches.shape
        if positions > POSITIONS:
            chosen = torch.randint(positions, (images, 1, POSITIONS), generator=self.draws)
            patches = patches.gather(2, chosen.to(patches.device).expand(-1, size, -1))
        rows = patches.transpose(1, 2).reshape(-1, size)
        x = rows[:, self.kept]
        y = rows[:, ~self.kept] @ self.lost.T
        if self.shifts:
            if not self.count:
                self.origin_x, self.origin_y = x.mean(0), y.mean(0)
            x, y = x - self.origin_x, y - self.origin_y
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.count += len(x)

    def apply(self, layer: Layer) -> None:
        """Change weights and bias of ``layer``, the one after surgery; a batch norm's mean is its bias."""
        assert isinstance(layer, ConvReLU | ConvCaps2d | ConvNorm)
        xx, xy, x, y = (sums.cpu().double() / self.count for sums in (self.xx, self.xy, self.x, self.y))
        if self.shifts:
            xx, xy = xx - x[:, None] * x, xy - x[:, None] * y
        diagonal = xx.diagonal()
        diagonal += RIDGE * diagonal.mean().clamp_min(1e-12)
        change = torch.cholesky_solve(xy, torch.linalg.cholesky(xx)).T
        shift = (y + self.origin_y.cpu() - change @ (x + self.origin_x.cpu())).float().to(layer.weight.device)
        with torch.no_grad():
            layer.weight.add_(change.float().reshape(layer.weight.shape).to(layer.weight.device))
            if isinstance(layer, ConvNorm):
                assert layer.norm.running_mean is not None
                layer.norm.running_mean.sub_(shift)
            elif layer.bias is not None:
                layer.bias.add_(shift)
