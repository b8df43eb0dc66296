"""Q-CapsNets checkpoints: the PyTorch state dicts of its ShallowCapsNet and DeepCaps (Marchisio et al. 2020).

Both public classes have fixed strides, ReLU and three routing iterations, which a state dict does not hold (the last
can be stated otherwise); everything else is read off the shapes. Where they round, several image sizes give the same
shapes: see :func:`caplet.models.importers.import_model`.
"""

from pathlib import Path

from caplet.errors import ModelError
from caplet.models.assemble import assemble, check_names, listed
from caplet.models.base import CapsNet, check_finite
from caplet.models.deep import BlockConfig, DeepCapsConfig
from caplet.models.importers.assume import Assumptions
from caplet.models.importers.files import State, read_state_dict
from caplet.models.importers.sizes import Conv, match_shapes, pick_image
from caplet.models.shallow import ShallowCapsConfig, StemConv

#: What the axes of each tensor hold, for :func:`caplet.models.importers.sizes.match_shapes`.
_SHALLOW = {
    "conv.conv.weight": "maps channels kernel kernel",
    "conv.conv.bias": "maps",
    "primary.bias": "types dim 1 1",
    "primary.conv3d.weight": "types*dim maps primary_kernel primary_kernel",
    "digit.bias": "classes class_dim",
    "digit.weight": "capsules dim classes*class_dim",
}
_PRIMARY_STRIDE = 2
_BLOCK_STRIDE = 2
_BLOCKS = range(1, 5)
#: Their name of each layer of a block, and ours.
_LAYERS = {"l1": "l1", "l2": "l2", "l3": "l3", "l_skip": "skip"}
_NORM = ("weight", "bias", "running_mean", "running_var")


def _deep_shapes() -> dict[str, str]:
    """As in the public class, all blocks have as many types: a block's weights hold only types x dimension."""
    shapes = {"block4.l_skip.bias": "types dim4 1 1", "conv1.conv.weight": "maps channels 3 3"}
    shapes |= {f"conv1.{name}": "maps" for name in ("conv.bias", *(f"batchnorm.{part}" for part in _NORM))}
    before = "maps"
    for block in _BLOCKS:
        out = f"types*dim{block}"
        for layer in _LAYERS:
            shapes[f"block{block}.{layer}.conv.weight"] = f"{out} {before if layer == 'l1' else out} 3 3"
            shapes[f"block{block}.{layer}.conv.bias"] = out
        before = out
    shapes["block4.l_skip.conv.weight"] = "types*dim4 1 dim4 3 3"
    return shapes | {"capsLayer.bias": "classes class_dim", "capsLayer.weight": "capsules dim4 classes*class_dim"}


_DEEP = _deep_shapes()
_COUNTER = "conv1.batchnorm.num_batches_tracked"


def read(path: Path, open_: Assumptions) -> CapsNet:
    """Read a Q-CapsNets state dict; see :func:`caplet.models.importers.import_model`."""
    state, open_.read = read_state_dict(path)
    where = str(path)
    shallow, deep = (sum(name in state for name in names) for names in (_SHALLOW, _DEEP))
    if not shallow and not deep:
        raise ModelError(
            f"{where}: not a caplet model and not a Q-CapsNets network: its tensors are {listed(list(state))};"
            f" expected those of ShallowCapsNet ({listed(list(_SHALLOW), 2)}) or DeepCaps ({listed(list(_DEEP), 2)});"
            " a network with code of its own becomes one in Python (caplet.adopt, docs/networks.md)"
        )
    is_shallow = shallow / len(_SHALLOW) >= deep / len(_DEEP)
    name, shapes = ("ShallowCapsNet", _SHALLOW) if is_shallow else ("DeepCaps", _DEEP)
    check_names([key for key in state if is_shallow or key != _COUNTER], shapes, where, f"Q-CapsNets' {name}")
    check_finite(state, where)
    sizes = match_shapes(state, shapes, where)
    return (_read_shallow if is_shallow else _read_deep)(state, sizes, open_)


def _read_shallow(state: State, sizes: dict[str, int], open_: Assumptions) -> CapsNet:
    where = open_.where
    types, channels, kernel, primary_kernel = (sizes[k] for k in ("types", "channels", "kernel", "primary_kernel"))
    chain = (Conv(kernel), Conv(primary_kernel, _PRIMARY_STRIDE))
    config = ShallowCapsConfig(
        image=(channels, *pick_image(sizes["capsules"], types, [chain], channels, open_)),
        classes=sizes["classes"],
        stem=(StemConv(kernel=kernel, channels=sizes["maps"]),),
        primary_types=types,
        primary_dim=sizes["dim"],
        primary_kernel=primary_kernel,
        primary_stride=_PRIMARY_STRIDE,
        class_dim=sizes["class_dim"],
        iterations=open_.take("iterations"),
    )
    tensors = {
        "conv1.weight": state["conv.conv.weight"],
        "conv1.bias": state["conv.conv.bias"],
        # Their primary capsules pass a one-iteration routing whose softmax over the types is 1 / types everywhere.
        # Dividing the weights is the same network, exactly so where the number of types is a power of two.
        "primary.weight": state["primary.conv3d.weight"].float() / types,
        "primary.bias": state["primary.bias"].flatten(),
        "digit.weight": state["digit.weight"],
        "digit.bias": state["digit.bias"],
    }
    open_.fold(tensors, "conv1")
    return assemble("shallow", config, tensors, where)


def _read_deep(state: State, sizes: dict[str, int], open_: Assumptions) -> CapsNet:
    where, iterations = open_.where, open_.take("iterations")
    types, channels = sizes["types"], sizes["channels"]
    chains = [(Conv(3, _BLOCK_STRIDE, 1),) * depth for depth in _BLOCKS[2:]]
    dims = (sizes[f"dim{block}"] for block in _BLOCKS)
    first, second, third, fourth = (BlockConfig(types=types, dim=dim, stride=_BLOCK_STRIDE) for dim in dims)
    config = DeepCapsConfig(
        image=(channels, *pick_image(sizes["capsules"], types, chains, channels, open_)),
        classes=sizes["classes"],
        channels=sizes["maps"],
        blocks=(first, second, third, fourth),
        class_dim=sizes["class_dim"],
        skip_iterations=iterations,
        iterations=iterations,
    )
    tensors = {"conv1.weight": state["conv1.conv.weight"], "conv1.bias": state["conv1.conv.bias"]}
    for name in state:
        if name.startswith("conv1.batchnorm."):
            tensors[name.replace("batchnorm", "batch_norm")] = state[name]
    for block in _BLOCKS:
        for theirs, ours in _LAYERS.items():
            for part in ("weight", "bias"):
                tensors[f"block{block}.{ours}.{part}"] = state[f"block{block}.{theirs}.conv.{part}"]
    # One 3-D kernel (K, 3, 3) with stride K in depth sees one input type at a time: a 2-D kernel over K channels.
    tensors["block4.skip.weight"] = state["block4.l_skip.conv.weight"].squeeze(1)
    tensors["block4.skip.vote_bias"] = state["block4.l_skip.conv.bias"]
    tensors["block4.skip.bias"] = state["block4.l_skip.bias"].flatten(1)
    tensors["digit.weight"], tensors["digit.bias"] = state["capsLayer.weight"], state["capsLayer.bias"]
    unfolded = open_.fold(tensors, "conv1", padded=True)
    return assemble("deep", config.model_copy(update=unfolded), tensors, where)
