"""timm's CNNs as trunks: a network is traced once and written down as a trunk's settings, or refused part by part.

The trunk's layers are caplet's own, so that what is trained, pruned and lowered is the same as for every other trunk;
timm is needed only to make the settings and to read its state dicts.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NoReturn, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Tracer
from torch.fx import Node as GraphNode

from caplet.errors import ModelError, ToolMissing, suggest
from caplet.models.trunk import INPUT, ConvNode, GateNode, Node, PoolNode, SumNode, TrunkBlock, TrunkSettings, inputs_of
from caplet.nn.conv import Activation

PREFIX = "timm/"
"""A trunk's name is this and timm's own name of the network, e.g. ``timm/resnet34`` or ``timm/resnet18.a1_in1k``."""
_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation.RELU,
    nn.ReLU6: Activation.RELU6,
    nn.Hardswish: Activation.HARDSWISH,
    nn.Identity: Activation.NONE,
}
_FUNCTIONS: dict[Callable[..., Any], Activation] = {
    F.relu: Activation.RELU,
    torch.relu: Activation.RELU,
    F.relu6: Activation.RELU6,
    F.hardswish: Activation.HARDSWISH,
}
_ADDS = (operator.add, operator.iadd, torch.add)
_KNOWN = (
    "convolutions with batch norm (square, dense or depthwise, no dilation), ReLU, ReLU6, hardswish, max pooling, sums,"
    " squeeze-and-excite gates with ReLU and hardsigmoid"
)


@dataclass(frozen=True)
class TimmTrunk:
    """A timm network up to its last feature map.

    Attributes:
        settings: the trunk, with timm's normalisation of images.
        modules: by layer of the trunk (``block.node``), the timm modules that hold its tensors: convolution and batch
            norm, or a gate's two convolutions.
        repository: of its pretrained weights, on Hugging Face; None where timm has none.
    """

    settings: TrunkSettings
    modules: dict[str, tuple[str, str]]
    repository: str | None


def timm_trunk(name: str) -> TimmTrunk:
    """The trunk of timm's network ``name`` (without :data:`PREFIX`).

    Raises:
        ToolMissing: timm is not installed.
        ModelError: timm has no such network, or it has a part that trunks cannot have; the message names the part.
    """
    try:
        import timm
    except ImportError:
        raise ToolMissing("timm is not installed: pip install 'caplet[timm]', or choose another backbone") from None
    if not timm.is_model(name.partition(".")[0]):
        hint = suggest(name, timm.list_models())
        raise ModelError(f"backbone {PREFIX}{name}: timm {timm.__version__} has no network of that name{hint}")
    try:
        network: Any = timm.create_model(name, pretrained=False).eval()
    except RuntimeError as error:  # an unknown tag after the dot
        raise ModelError(f"backbone {PREFIX}{name}: timm cannot build it: {error}") from None
    try:
        graph = GraphModule(network, _Leaves().trace(network))
    except Exception as error:  # whatever a network's code does with a symbolic tensor
        why = str(error).splitlines()[0][:120]
        raise ModelError(f"backbone {PREFIX}{name}: its forward pass cannot be traced ({why})") from None
    walker = _Walker(name, graph)
    pretrained = network.pretrained_cfg
    mean, std = tuple(pretrained["mean"]), tuple(pretrained["std"])
    settings = TrunkSettings(blocks=walker.blocks(), eps=walker.eps or 1e-5, mean=mean, std=std)
    return TimmTrunk(settings, walker.modules, pretrained.get("hf_hub_id"))


class _Leaves(Tracer):
    """Traces up to the last map; does not look inside timm's own batch norm with activation, nor inside gates."""

    traced_func_name = "forward_features"

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, nn.BatchNorm2d) or _is_gate(module) or not list(module.children())


def _is_same(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is timm's convolution that pads its input as TensorFlow does, by the input's size."""
    return isinstance(module, nn.Conv2d) and type(module).__name__ == "Conv2dSame"


def _is_gate(module: nn.Module) -> bool:
    return type(module).__name__ in ("SqueezeExcite", "SEModule")


@dataclass
class _Walker:
    """Reads a traced network node by node; what it does not know it refuses by name."""

    name: str
    graph: GraphModule
    eps: float | None = None
    modules: dict[str, tuple[str, str]] = field(default_factory=dict)
    _nodes: dict[str, Node] = field(default_factory=dict)  # by path, in order; sources are paths until blocks are made
    _tensors: dict[str, tuple[str, str]] = field(default_factory=dict)  # by path of a node, the modules of its tensors
    _outputs: dict[GraphNode, str] = field(default_factory=dict)  # graph node -> path of the trunk's node
    _pending: dict[GraphNode, tuple[nn.Conv2d, str, str]] = field(default_factory=dict)
    """Convolutions whose batch norm is still to come: module, its path, the path of what it reads."""

    def __post_init__(self) -> None:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self._outputs[node] = INPUT
            elif node.op == "call_module":
                self._module(node, self.graph.get_submodule(node.target), node.target)
            elif node.op == "call_function" and node.target in _ADDS:
                self._sum(node)
            elif node.op == "call_function" and node.target in _FUNCTIONS:
                self._activation(node, _FUNCTIONS[node.target], node.name)
            elif node.op == "output":
                if self._source(node, node.args[0]) != next(reversed(self._nodes), None):
                    self._refuse(node.name, "an output that is not its last layer's")
            else:
                self._refuse(node.name, f"the operation {getattr(node.target, '__name__', node.target)}")

    def _refuse(self, path: str, what: str) -> NoReturn:
        raise ModelError(f"backbone {PREFIX}{self.name}: its part {path} is {what}; the rule for trunks is {_KNOWN}")

    def _source(self, node: GraphNode, read: Any) -> str:
        """The path of the trunk's node that ``node`` reads."""
        if read in self._pending:
            self._refuse(self._pending[read][1], "a convolution without batch norm")
        if read not in self._outputs:
            self._refuse(node.name, f"a layer that reads {read}")
        return self._outputs[read]

    def _module(self, node: GraphNode, module: nn.Module, path: str) -> None:
        read = _read(node)
        if type(module) in (nn.Dropout, nn.Dropout2d) or type(module).__name__ == "DropPath":
            self._outputs[node] = self._source(node, read)
        elif type(module) is nn.Identity and read in self._pending:
            self._pending[node] = self._pending[read]
        elif type(module) is nn.Conv2d or _is_same(module):
            self._pending[node] = (self._checked(module, path), path, self._source(node, read))
        elif isinstance(module, nn.BatchNorm2d):
            self._norm(node, module, path)
        elif type(module) in _ACTIVATIONS:
            self._activation(node, _ACTIVATIONS[type(module)], path)
        elif type(module) is nn.MaxPool2d:
            self._pool(node, module, path)
        elif _is_gate(module):
            self._gate(node, module, path)
        else:
            self._refuse(path, f"of type {type(module).__name__}")

    def _checked(self, conv: nn.Conv2d, path: str) -> nn.Conv2d:
        square = len(set(conv.kernel_size)) == len(set(conv.stride)) == len(set(conv.padding)) == 1
        window = f"of {conv.kernel_size}, stride {conv.stride}, padding {conv.padding}"
        for bad, what in (
            (not square or conv.padding_mode != "zeros", window),
            (set(conv.dilation) != {1}, f"with dilation {conv.dilation[0]}"),
            (conv.groups > 1 and not conv.groups == conv.in_channels == conv.out_channels, f"in {conv.groups} groups"),
            (conv.bias is not None, "with a bias"),
        ):
            if bad:
                self._refuse(path, f"a convolution {what}")
        return conv

    def _norm(self, node: GraphNode, norm: nn.BatchNorm2d, path: str) -> None:
        read = _read(node)
        if read not in self._pending:
            self._refuse(path, "a batch norm that follows no convolution")
        if not norm.affine or not norm.track_running_stats:
            self._refuse(path, "a batch norm without factors or statistics of its own")
        if self.eps not in (None, norm.eps):
            self._refuse(path, f"a batch norm with eps {norm.eps:g} where others have {self.eps:g}")
        self.eps = norm.eps
        conv, conv_path, source = self._pending[read]
        made = ConvNode(
            name="x",
            channels=conv.out_channels,
            kernel=conv.kernel_size[0],
            stride=conv.stride[0],
            padding="same" if _is_same(conv) else int(conv.padding[0]),
            depthwise=conv.groups > 1,
            activation=Activation.NONE,
        )
        self._add(node, conv_path, made, source)
        self._tensors[conv_path] = (conv_path, path)
        for part, act in norm.named_children():  # timm's batch norm holds the activation that follows
            if type(act) not in _ACTIVATIONS:
                self._refuse(f"{path}.{part}", f"of type {type(act).__name__}")
            self._activation(node, _ACTIVATIONS[type(act)], f"{path}.{part}", node)

    def _activation(self, node: GraphNode, kind: Activation, path: str, read: GraphNode | None = None) -> None:
        """Make ``kind`` part of the layer that is read; it must be read by nothing else before."""
        before = read or _read(node)
        source = self._source(node, before)
        if kind is not Activation.NONE:
            found = self._nodes.get(source)
            alone = read is not None or len(before.users) == 1
            if isinstance(found, ConvNode) and found.activation is Activation.NONE and alone:
                self._nodes[source] = found.model_copy(update={"activation": kind})
            elif isinstance(found, SumNode) and not found.relu and kind is Activation.RELU and alone:
                self._nodes[source] = found.model_copy(update={"relu": True})
            else:
                self._refuse(path, f"a {kind} that follows neither a batch norm nor (as ReLU) a sum")
        self._outputs[node] = source

    def _sum(self, node: GraphNode) -> None:
        if len(node.args) != 2 or node.kwargs:
            self._refuse(node.name, "a sum with factors")
        sources = tuple(self._source(node, read) for read in node.args)
        parent = sources[0].rpartition(".")[0]
        self._add(node, f"{parent}.{node.name}", SumNode(name="x", relu=False), *sources)

    def _pool(self, node: GraphNode, pool: nn.MaxPool2d, path: str) -> None:
        sizes = (pool.kernel_size, pool.stride, pool.padding)
        if not all(isinstance(size, int) for size in sizes) or pool.dilation != 1 or pool.ceil_mode:
            self._refuse(path, "a max pooling of other than square windows")
        kernel, stride, padding = sizes
        made = PoolNode(name="x", kernel=kernel, stride=stride, padding=padding)  # type: ignore[arg-type]
        self._add(node, path, made, self._source(node, node.args[0]))

    def _gate(self, node: GraphNode, gate: Any, path: str) -> None:
        names = ("conv_reduce", "conv_expand") if hasattr(gate, "conv_reduce") else ("fc1", "fc2")
        reduce, expand = (getattr(gate, name) for name in names)
        inner, gating = getattr(gate, "act1", None) or getattr(gate, "act", None), gate.gate
        hard = type(gating) is nn.Hardsigmoid or type(gating).__name__ == "HardSigmoid"
        plain = all(c.kernel_size == (1, 1) and c.groups == 1 and c.bias is not None for c in (reduce, expand))
        plain = plain and type(getattr(gate, "bn", None)) in (nn.Identity, type(None))
        if type(inner) is not nn.ReLU or not hard or not plain or getattr(gate, "add_maxpool", False):
            self._refuse(path, f"a gate with {type(inner).__name__} and {type(gating).__name__}")
        made = GateNode(name="x", hidden=reduce.out_channels)
        self._add(node, path, made, self._source(node, node.args[0]))
        self._tensors[path] = (f"{path}.{names[0]}", f"{path}.{names[1]}")

    def _add(self, node: GraphNode, path: str, made: Node, source: str, *others: str) -> None:
        self._nodes[path] = made.model_copy(update={"source": source} | dict(zip(["other"], others, strict=False)))
        self._outputs[node] = path

    def blocks(self) -> tuple[TrunkBlock, ...]:
        """The nodes in blocks: cut where one map alone is read later, then joined where timm has one block."""
        paths = list(self._nodes)
        last_read = {path: index for index, path in enumerate([*paths, INPUT])}
        for index, node in enumerate(self._nodes.values()):
            last_read |= dict.fromkeys(inputs_of(node), index)
        joined: list[tuple[str, list[str]]] = []
        first = 0
        for index in range(len(paths)):
            if all(last_read[path] <= index for path in (INPUT, *paths[:index])):
                group, first = paths[first : index + 1], index + 1
                parent = _parent(group)
                if joined and joined[-1][0] == parent:
                    joined[-1][1].extend(group)
                else:
                    joined.append((parent, group))
        result: list[TrunkBlock] = []
        for parent, group in joined:
            taken = {block.name for block in result}
            name = _unique(_identifier(parent) or ("stem" if not result else "last"), taken)
            result.append(self._block(name, parent, group))
        return tuple(result)

    def _block(self, name: str, parent: str, group: list[str]) -> TrunkBlock:
        names: dict[str, str] = {}
        nodes: list[Node] = []
        for path in group:
            node = self._nodes[path]
            own = "sum" if isinstance(node, SumNode) else _identifier(path.removeprefix(parent)) or "layer"
            names[path] = _unique(own, set(names.values()) | {INPUT})
            update = {"name": names[path], "source": names.get(node.source, INPUT)}
            if isinstance(node, SumNode):
                update["other"] = names.get(node.other, INPUT)
            nodes.append(node.model_copy(update=update))
            if path in self._tensors:
                self.modules[f"{name}.{names[path]}"] = self._tensors[path]
        return TrunkBlock(name=name, nodes=tuple(nodes))


def _parent(group: list[str]) -> str:
    """The timm module that holds all of a group's nodes."""
    parents = [path.split(".")[:-1] for path in group]
    common = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return ".".join(parts[0] for parts in common)


def _read(node: GraphNode) -> GraphNode:
    """What a module or an activation reads."""
    read = node.args[0]
    assert isinstance(read, GraphNode)
    return read


def _identifier(path: str) -> str:
    """A path as a name of blocks and layers."""
    name = path.strip(".").replace(".", "_")
    return name if not name or name[0].isalpha() else f"b{name}"


def _unique(name: str, taken: set[str]) -> str:
    number, result = 2, name
    while result in taken:
        result, number = f"{name}_{number}", number + 1
    return result
