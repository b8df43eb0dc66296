"""Q-CapsNets checkpoints: the PyTorch state dicts of its ShallowCapsNet and DeepCaps (Marchisio et al. 2020).

Both public classes have fixed strides and three routing iterations, which a state dict does not hold; everything else
is read off the shapes. Where they round, several image sizes give the same shapes: see
:func:`caplet.models.importers.import_model`.
"""

from pathlib import Path

from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import ImageSize, assemble, check_names, check_shape, listed, shape_text
from caplet.models.base import CapsNet, check_finite
from caplet.models.deep import BlockConfig, DeepCapsConfig
from caplet.models.importers.files import is_torch_file, read_state_dict
from caplet.models.importers.sizes import Conv, chain_size, pick_image
from caplet.models.shallow import ShallowCapsConfig, StemConv

ABOUT = "PyTorch .pt state dict of its ShallowCapsNet or DeepCaps"

State = dict[str, Tensor]

_SHALLOW = ("conv.conv.weight", "conv.conv.bias", "primary.conv3d.weight", "primary.bias", "digit.weight", "digit.bias")
_PRIMARY_STRIDE = 2
_BLOCK_STRIDE = 2
_BLOCKS = range(1, 5)


def _deep_names() -> tuple[str, ...]:
    norm = ("weight", "bias", "running_mean", "running_var")
    names = ["conv1.conv.weight", "conv1.conv.bias", *(f"conv1.batchnorm.{name}" for name in norm)]
    for block in _BLOCKS:
        for layer in ("l1", "l2", "l3", "l_skip"):
            names += [f"block{block}.{layer}.conv.weight", f"block{block}.{layer}.conv.bias"]
    return (*names, "block4.l_skip.bias", "capsLayer.weight", "capsLayer.bias")


_DEEP = _deep_names()
_COUNTER = "conv1.batchnorm.num_batches_tracked"

recognises = is_torch_file


def read(path: Path, image_size: ImageSize | None = None) -> CapsNet:
    """Read a Q-CapsNets state dict; see :func:`caplet.models.importers.import_model`."""
    state = read_state_dict(path)
    where = str(path)
    shallow, deep = (sum(name in state for name in names) for names in (_SHALLOW, _DEEP))
    if not shallow and not deep:
        raise ModelError(
            f"{where}: not a Q-CapsNets network: its tensors are {listed(list(state))}; expected those of"
            f" ShallowCapsNet ({listed(list(_SHALLOW), 2)}) or DeepCaps ({listed(list(_DEEP), 2)})"
        )
    if shallow / len(_SHALLOW) >= deep / len(_DEEP):
        check_names(state, _SHALLOW, where, "Q-CapsNets' ShallowCapsNet")
        check_finite(state, where)
        return _read_shallow(state, image_size, where)
    check_names([name for name in state if name != _COUNTER], _DEEP, where, "Q-CapsNets' DeepCaps")
    check_finite(state, where)
    return _read_deep(state, image_size, where)


def _read_shallow(state: State, image_size: ImageSize | None, where: str) -> CapsNet:
    for name, axes in zip(_SHALLOW, (4, 1, 4, 4, 3, 2), strict=True):
        _check_axes(state, name, axes, where)
    stem, primary = state["conv.conv.weight"], state["primary.conv3d.weight"]
    digit, class_bias = state["digit.weight"], state["digit.bias"]
    types, dim = state["primary.bias"].shape[:2]
    classes, class_dim = class_bias.shape
    channels, kernel, primary_kernel = stem.shape[1], stem.shape[2], primary.shape[2]
    check_shape("primary.bias", state["primary.bias"], (types, dim, 1, 1), where)
    check_shape("conv.conv.weight", stem, (stem.shape[0], channels, kernel, kernel), where)
    check_shape("primary.conv3d.weight", primary, (types * dim, stem.shape[0], primary_kernel, primary_kernel), where)
    check_shape("digit.weight", digit, (digit.shape[0], dim, classes * class_dim), where)
    chain = (Conv(kernel), Conv(primary_kernel, _PRIMARY_STRIDE))
    rows, columns = pick_image(
        digit.shape[0],
        lambda rows, columns: types * chain_size(rows, chain) * chain_size(columns, chain),
        channels,
        image_size,
        where,
    )
    config = ShallowCapsConfig(
        image=(channels, rows, columns),
        classes=classes,
        stem=(StemConv(kernel=kernel, channels=stem.shape[0]),),
        primary_types=types,
        primary_dim=dim,
        primary_kernel=primary_kernel,
        primary_stride=_PRIMARY_STRIDE,
        class_dim=class_dim,
    )
    tensors = {
        "conv1.weight": stem,
        "conv1.bias": state["conv.conv.bias"],
        # Their primary capsules pass a one-iteration routing whose softmax over the types is 1 / types everywhere.
        # Dividing the weights is the same network, exactly so where the number of types is a power of two.
        "primary.weight": primary.float() / types,
        "primary.bias": state["primary.bias"].flatten(),
        "digit.weight": digit,
        "digit.bias": class_bias,
    }
    return assemble("shallow", config, tensors, where)


def _read_deep(state: State, image_size: ImageSize | None, where: str) -> CapsNet:
    for name in _DEEP:
        axes = 4 if name.endswith(".conv.weight") or name == "block4.l_skip.bias" else 1
        axes = {"block4.l_skip.conv.weight": 5, "capsLayer.weight": 3, "capsLayer.bias": 2}.get(name, axes)
        _check_axes(state, name, axes, where)
    stem, digit, class_bias = state["conv1.conv.weight"], state["capsLayer.weight"], state["capsLayer.bias"]
    skip = state["block4.l_skip.conv.weight"]
    types = state["block4.l_skip.bias"].shape[0]
    classes, class_dim = class_bias.shape
    first, second, third, fourth = (_block(state, block, types, where) for block in _BLOCKS)
    dim = fourth.dim
    check_shape("block4.l_skip.bias", state["block4.l_skip.bias"], (types, dim, 1, 1), where)
    check_shape("block4.l_skip.conv.weight", skip, (types * dim, 1, dim, 3, 3), where)
    check_shape("capsLayer.weight", digit, (digit.shape[0], dim, classes * class_dim), where)
    channels = stem.shape[1]
    conv = Conv(3, _BLOCK_STRIDE, 1)

    def capsules(rows: int, columns: int) -> int:
        maps = (chain_size(rows, (conv,) * depth) * chain_size(columns, (conv,) * depth) for depth in _BLOCKS[2:])
        return types * sum(maps)

    rows, columns = pick_image(digit.shape[0], capsules, channels, image_size, where)
    config = DeepCapsConfig(
        image=(channels, rows, columns),
        classes=classes,
        channels=stem.shape[0],
        blocks=(first, second, third, fourth),
        class_dim=class_dim,
    )
    tensors = {"conv1.weight": stem, "conv1.bias": state["conv1.conv.bias"]}
    for name in state:
        if name.startswith("conv1.batchnorm."):
            tensors[name.replace("batchnorm", "batch_norm")] = state[name]
    for block in _BLOCKS:
        for theirs, ours in (("l1", "l1"), ("l2", "l2"), ("l3", "l3"), ("l_skip", "skip")):
            for part in ("weight", "bias"):
                tensors[f"block{block}.{ours}.{part}"] = state[f"block{block}.{theirs}.conv.{part}"]
    # One 3-D kernel (K, 3, 3) with stride K in depth sees one input type at a time: a 2-D kernel over K channels.
    tensors["block4.skip.weight"] = skip.squeeze(1)
    tensors["block4.skip.vote_bias"] = state["block4.l_skip.conv.bias"]
    tensors["block4.skip.bias"] = state["block4.l_skip.bias"].flatten(1)
    tensors["digit.weight"], tensors["digit.bias"] = digit, class_bias
    return assemble("deep", config, tensors, where)


def _block(state: State, block: int, types: int, where: str) -> BlockConfig:
    """A block's shape. Its file holds only types x dimension; as in the public class, all blocks have as many types."""
    name = f"block{block}.l1.conv.weight"
    channels = state[name].shape[0]
    if types == 0 or channels == 0 or channels % types:
        raise ModelError(
            f"{where}: tensor {name} has {channels} output channels, not a multiple of the network's {types} capsule"
            " types (from block4.l_skip.bias); is it another network?"
        )
    return BlockConfig(types=types, dim=channels // types, stride=_BLOCK_STRIDE)


def _check_axes(state: State, name: str, axes: int, where: str) -> None:
    shape = state[name].shape
    if len(shape) != axes or 0 in shape:
        raise ModelError(
            f"{where}: tensor {name} has shape {shape_text(shape)}, expected {axes} axes, none empty;"
            " is it another network?"
        )
