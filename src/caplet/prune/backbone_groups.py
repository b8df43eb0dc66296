"""torch-pruning behind an adapter: its dependency groups and group importance, for the groups of a backbone model.

torch-pruning traces plain PyTorch modules, so the trunk and its primary capsules are handed to it as such. What it says
comes back by group; whether its groups are those of :mod:`caplet.prune.rules` is checked, not assumed.

Source: Fang et al. 2023, "DepGraph: Towards any structural pruning" (groups, and the magnitude averaged over a group).
"""

from importlib import import_module
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caplet.errors import ModelError, ToolMissing
from caplet.models.backbone import BackboneCaps
from caplet.models.trunk import INPUT, inputs_of
from caplet.nn.conv import FUNCTIONS, ConvNorm, MapSum, MaxPool, SqueezeExcite
from caplet.nn.layer import Layer
from caplet.prune.scores import Values
from caplet.prune.structure import Structure

PRIMARY = "primary"


def torch_pruning() -> ModuleType:
    """The package ``torch_pruning``. Raises ToolMissing where it is not installed."""
    try:
        return import_module("torch_pruning")
    except ImportError:
        raise ToolMissing(
            "torch-pruning is not installed: pip install 'caplet[pruning]', or choose another importance (--score)"
        ) from None


class PlainTrunk(nn.Module):
    """Trunk and primary convolution of a backbone model as plain PyTorch modules: images -> primary preactivations.

    Convolutions are found by their layer's name in ``convs``. Weights are shared with the model, not copied.
    """

    def __init__(self, model: BackboneCaps) -> None:
        super().__init__()
        self.model_input = model.input
        self.blocks = tuple(model.blocks())
        self.convs: dict[str, nn.Conv2d] = {}
        self.gates: dict[str, tuple[nn.Conv2d, nn.Conv2d]] = {}
        self.norms: dict[str, nn.BatchNorm2d] = {}
        for layer in model.layers():
            if isinstance(layer, ConvNorm):
                self.convs[layer.name] = _conv(layer.weight, None, layer.stride, layer.padding, layer.groups)
                self.norms[layer.name] = layer.norm
            elif isinstance(layer, SqueezeExcite):
                reduce, expand = (
                    _conv(matrix[:, :, None, None], bias, 1, 0, 1)
                    for matrix, bias in ((layer.reduce, layer.reduce_bias), (layer.expand, layer.expand_bias))
                )
                self.gates[layer.name] = (reduce, expand)
        primary = model.primary
        self.convs[PRIMARY] = _conv(primary.weight, primary.bias, primary.stride, primary.padding, 1)
        pairs = [conv for pair in self.gates.values() for conv in pair]
        self.modules_in_order = nn.ModuleList([*self.convs.values(), *self.norms.values(), *pairs])

    def forward(self, images: Tensor) -> Tensor:
        x = self.model_input(images)
        for block in self.blocks:
            values = {INPUT: x}
            for node, layer in block.nodes_and_layers():
                x = values[node.name] = self._run(layer, *(values[name] for name in inputs_of(node)))
        preactivation: Tensor = self.convs[PRIMARY](x)
        return preactivation

    def _run(self, layer: Layer, *inputs: Tensor) -> Tensor:
        if isinstance(layer, ConvNorm):
            return FUNCTIONS[layer.activation](
                self.norms[layer.name](self.convs[layer.name](layer.extended(inputs[0])))
            )
        if isinstance(layer, MaxPool):
            return F.max_pool2d(inputs[0], layer.kernel, layer.stride, layer.padding)
        if isinstance(layer, MapSum):
            return F.relu(inputs[0] + inputs[1]) if layer.relu else inputs[0] + inputs[1]
        if isinstance(layer, SqueezeExcite):
            reduce, expand = self.gates[layer.name]
            return inputs[0] * F.hardsigmoid(expand(F.relu(reduce(inputs[0].mean((2, 3), keepdim=True)))))
        raise ModelError(f"layer {layer.name}: type {type(layer).__name__} is not known to torch-pruning's adapter")


def _conv(weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int) -> nn.Conv2d:
    out, depth, rows, columns = weight.shape
    with torch.device("meta"):
        conv = nn.Conv2d(depth * groups, out, (rows, columns), stride, padding, groups=groups, bias=bias is not None)
    conv.weight = nn.Parameter(weight.detach())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach())
    return conv


def group_importance(model: BackboneCaps, structure: Structure) -> dict[str, Values]:
    """torch-pruning's group importance (mean magnitude, normalised within a group) of every channel and primary type.

    Returns:
        By group, float64 (size,): the groups of the trunk's channels, and ``primary.types``.

    Raises:
        ToolMissing: torch-pruning is not installed.
        ModelError: its groups are not the groups of the pruning rules.
    """
    package = torch_pruning()
    plain = PlainTrunk(model).eval()
    names = {id(conv): name for name, conv in plain.convs.items()}
    image = torch.zeros(1, *model.config.image, device=model.device)
    graph = package.DependencyGraph().build_dependency(plain, example_inputs=image)
    measure = package.importance.GroupMagnitudeImportance(p=2)
    result: dict[str, Values] = {}
    for found in graph.get_all_groups(root_module_types=[nn.Conv2d]):
        made = [id(dep.target.module) for dep, _ in found if graph.is_out_channel_pruning_fn(dep.handler)]
        weights = [structure.layers[names[key]].tensors["weight"] for key in made if key in names]
        groups = {str(axes[0][0]) for axes in weights}  # of the output channels that go together
        values = np.asarray(measure(found).cpu().double().numpy())
        if not groups:
            continue  # the hidden channels of a gate, which stay
        if len(groups) > 1:
            raise ModelError(f"torch-pruning's group of {sorted(groups)} is not one group of the pruning rules")
        (group,) = groups
        if group == f"{PRIMARY}.types":
            values = values.reshape(model.primary.types, model.primary.dim).sum(1)
        if group in result or len(values) != structure.groups[group].size:
            raise ModelError(f"torch-pruning's groups differ from the pruning rules at group {group}")
        result[group] = values
    expected = {name for name in structure.groups if name.endswith(".channels")} | {f"{PRIMARY}.types"}
    if set(result) != expected:
        raise ModelError(f"torch-pruning sees no group for {sorted(expected - set(result))}")
    return result
