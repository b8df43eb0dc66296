"""Checkpoint files read as data: what a file starts with, and state dicts; pickles by PyTorch's restricted reader."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from caplet.errors import ModelError
from caplet.files import check_regular
from caplet.models.assemble import first_line, listed
from caplet.models.importers.pickles import protocol_2
from caplet.models.importers.state import State, find_state_dict, plain_state

HEAD = 16


def read_head(path: Path) -> bytes:
    """The first 16 bytes of a file.

    Raises:
        ModelError: missing, a folder, unreadable, or empty.
    """
    try:
        if path.is_dir():
            raise ModelError(f"{path}: a folder, but a checkpoint is one file; give the path of the file")
        if path.exists():
            check_regular(path, kind=ModelError)  # opening a pipe would wait for ever
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; check the path of the checkpoint") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(f"{path}: cannot be read: {reason.lower()}; check the path and its permissions") from None
    if not head:
        raise ModelError(f"{path}: the file is empty (0 bytes); was its download or copy interrupted?")
    return head


def damaged(path: Path, error: Exception) -> ModelError:
    """The error for a safetensors file that cannot be read."""
    return ModelError(f"{path}: truncated or damaged safetensors file ({first_line(error)}); copy or save it again")


ZIP, PICKLE = b"PK\x03\x04", b"\x80"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
#: Whose objects stand beside the weights in checkpoints: numbers, paths, options. They are left out, not made.
_LEFT_OUT = re.compile(
    r"numpy[\w.]*\.(scalar|_reconstruct|_frombuffer|ndarray|dtype|\w+DType)|pathlib[\w.]*\.\w*Path|argparse\.Namespace"
    r"|types\.SimpleNamespace|datetime\.\w+|decimal\.Decimal|(omegaconf|pytorch_lightning|lightning)[\w.]*\.[A-Z]\w+"
)


class UnreadObject:
    """What takes the place of such an object; nothing of its own code is run."""

    def __init__(self, *_: Any) -> None:
        pass

    __setstate__ = __init__


def is_torch_file(head: bytes) -> bool:
    """Whether a file starts as a PyTorch file does (a zip archive, or the older bare pickle)."""
    return head.startswith(ZIP) or (head.startswith(PICKLE) and len(head) > 1 and head[1] <= 5)


def is_safetensors_file(head: bytes) -> bool:
    """Whether a file starts as safetensors: eight bytes of header length (at most 100 MB), then JSON."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27


def read_state_dict(path: Path) -> tuple[State, list[str]]:
    """A network's tensors in a PyTorch or safetensors file, and a line on each thing that was applied or left out.

    See :mod:`caplet.models.importers.state` for the forms that are understood.

    Raises:
        ModelError: truncated, of another kind, a pickle that wants to run code, or content that is not a mapping
            of names to plain CPU tensors backed by the file's own bytes.
    """
    head, notes = read_head(path), list[str]()
    if is_torch_file(head):
        content = _load_torch(path)
    elif is_safetensors_file(head):
        try:
            content = load_file(path)
        except (SafetensorError, OSError) as error:
            raise damaged(path, error) from None
    else:
        raise ModelError(f"{path}: not a PyTorch file, nor .safetensors; give a state dict that torch.save wrote")
    found, keys = find_state_dict(content, set())
    if keys and len(content) > 1:
        others = [str(key) for key in content if key != keys[0]]
        notes.append(f"the weights are those under {'.'.join(keys)}; left out: {listed(others)}")
    return plain_state(_tensors(found, path, notes), str(path), notes), notes


def _load_torch(path: Path) -> Any:
    names: set[str] = set()
    with path.open("rb") as stream:
        entry = _check_archive(path) if stream.read(len(ZIP)) == ZIP else None
    try:
        with path.open("rb") as stream:  # a stream, as torch.load also goes by the ending of a name
            source = protocol_2(stream, entry, names)
            known: list[Any] = [(UnreadObject, name) for name in names if _LEFT_OUT.fullmatch(name)]
            with torch.serialization.safe_globals(known), warnings.catch_warnings(action="ignore"):
                return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if wanted := _GLOBAL.search(str(error)):
            raise ModelError(
                f"{path}: its pickle wants to use {wanted[1]}, which can run code, so it was not loaded and nothing was"
                " run; save the model's state_dict() alone and load that"
            ) from None
        raise ModelError(f"{path}: damaged or not a PyTorch checkpoint ({first_line(error)})") from None
    except Exception as error:  # a malformed pickle can fail in any way; nothing of it has been executed
        raise ModelError(
            f"{path}: damaged, truncated or not a PyTorch checkpoint ({first_line(error)}); download or save it again"
        ) from None


def _check_archive(path: Path) -> str:
    """The place of the pickle in a PyTorch file that is an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"{path}: truncated or damaged PyTorch file ({first_line(error)}); download or save it again"
        ) from None
    names = [entry.filename for entry in entries]
    found = [name for name in names if name.rsplit("/", 1)[-1] == "data.pkl"]
    if not found:
        raise ModelError(
            f"{path}: a zip archive but not a PyTorch checkpoint (it holds {listed(names) or 'nothing'}, no data.pkl)"
        )
    if any(name.rsplit("/", 1)[-1] == "constants.pkl" for name in names):
        raise ModelError(f"{path}: a TorchScript program, not weights; save the model's state_dict() and load that")
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise ModelError(
            f"{path}: its entries unpack to {unpacked:,} bytes, more than the file's {size:,}; PyTorch writes"
            " uncompressed files, so this one was not written by it"
        )
    return found[0]


def _tensors(content: Any, path: Path, notes: list[str]) -> State:
    """The tensors of a state dict; other entries of plain names (``epoch``) are left out where there are tensors."""
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ModelError(f"{path}: holds {kind}, not a state dict (tensors by name); save the model's state_dict()")
    beside = [name for name in content if isinstance(name, str) and not isinstance(content[name], Tensor)]
    beside = [name for name in beside if "." not in name or name.endswith("._extra_state")]
    if 0 < len(beside) < len(content):
        notes.append(f"left out: {listed(beside)}")
        content = {name: value for name, value in content.items() if name not in beside}
    for name, value in content.items():
        where = f"{path}: entry {listed([str(name)])}"
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(f"{where} is a {type(value).__name__}, not a tensor; save the model's state_dict() alone")
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
            raise ModelError(
                f"{where} is a {value.layout} {value.dtype} tensor; a checkpoint holds plain float tensors"
            )
        stored = value.untyped_storage().nbytes()
        if value.numel() * value.element_size() > stored:
            raise ModelError(
                f"{where} declares {value.numel():,} values but the file stores {stored // value.element_size():,};"
                " the file is damaged or crafted"
            )
    return dict(content)
