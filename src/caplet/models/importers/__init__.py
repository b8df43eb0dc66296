"""Checkpoints of other projects, read as data: one file per foreign format, found by content.

Nothing in a file is ever run: pickles are read by PyTorch's restricted reader (tensors only), HDF5 files dataset by
dataset. Architectures are inferred from names and shapes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from caplet.errors import ModelError
from caplet.models.assemble import ImageSize
from caplet.models.base import CapsNet
from caplet.models.importers import q7_keras, qcapsnets
from caplet.models.importers.assume import Assumptions
from caplet.models.importers.files import is_safetensors_file, is_torch_file, read_head
from caplet.models.importers.keras import is_keras_file
from caplet.registry import Registry


class ForeignFormat(NamedTuple):
    """A checkpoint format of another project.

    Attributes:
        name: as shown to users.
        about: one line on what such files hold.
        recognises: whether a file, of which the first 16 bytes are given, is of this format.
        read: path, assumptions -> model; raises :class:`ModelError`.
    """

    name: str
    about: str
    recognises: Callable[[bytes, Path], bool]
    read: Callable[[Path, Assumptions], CapsNet]


FORMATS: Registry[str, ForeignFormat] = Registry("foreign format", ModelError)


def detect(path: str | Path) -> ForeignFormat:
    """The format of a file, by its content (the file's name does not matter).

    Raises ModelError: the file cannot be read, is empty, or is of no known format.
    """
    head = read_head(Path(path))
    for foreign in FORMATS.values():
        if foreign.recognises(head, Path(path)):
            return foreign
    known = "; ".join(f"{foreign.name}: {foreign.about}" for foreign in FORMATS.values())
    raise ModelError(f"{path}: not a checkpoint of a known format (it starts with {head[:8]!r}); known: {known}")


def import_model(
    path: str | Path, image_size: ImageSize | None = None, assume: Mapping[str, Any] | None = None
) -> CapsNet:
    """Read a checkpoint of another project.

    Args:
        path: the file.
        image_size: the side of the square images, or (rows, columns), where the file leaves it open (convolutions
            round, so that several sizes give the same weights); the default takes the first of 28, 32, 64 that fits,
            else the smallest.
        assume: what the file does not say, by the names of :data:`caplet.models.importers.assume.RULES`.

    Returns:
        The model, float32, in evaluation mode; its ``notes`` say what was ``assumed`` and what was ``stated``.

    Raises:
        ModelError: unreadable, truncated or unknown file; content that wants to run code; tensors of another network,
            of wrong shape, or not finite; an image size that does not fit; an assumption that is unknown, out of its
            rule, or on what the file says itself. One line, starting with the path.
    """
    assumptions = Assumptions(assume or {}, str(path), image_size)
    model = detect(path).read(Path(path), assumptions)
    model.notes = assumptions.notes()
    return model


for _format in (
    ForeignFormat(
        "Q7-CapsNets",
        "Keras .h5 or .keras model or weights: convolutions, primary capsules, class capsules",
        is_keras_file,
        q7_keras.read,
    ),
    ForeignFormat(
        "Q-CapsNets",
        "state dict of its ShallowCapsNet or DeepCaps, a PyTorch .pt or a .safetensors",
        lambda head, path: is_torch_file(head) or is_safetensors_file(head),
        qcapsnets.read,
    ),
):
    FORMATS.add(_format.name, _format)
