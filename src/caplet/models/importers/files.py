"""Checkpoint files read as data: what a file starts with, and state dicts by the restricted reader of PyTorch."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.files import check_regular
from caplet.models.assemble import first_line, listed

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
#: Names under which training scripts store the state dict beside other things.
WRAPPERS = ("state_dict", "model_state_dict", "model")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def is_torch_file(head: bytes) -> bool:
    """Whether a file starts as a PyTorch file does (a zip archive, or the older bare pickle)."""
    return head.startswith(ZIP) or (head.startswith(PICKLE) and len(head) > 1 and head[1] <= 5)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name; a ``module.`` prefix (from parallel training) is removed.

    Raises:
        ModelError: truncated, not a PyTorch file, a pickle that wants to run code, or content that is not a mapping
            of names to plain CPU tensors backed by the file's own bytes.
    """
    with path.open("rb") as stream:
        if stream.read(len(ZIP)) == ZIP:
            _check_archive(path)
    try:
        with path.open("rb") as stream:  # a stream, as torch.load also goes by the ending of a name
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _GLOBAL.search(str(error))
        if wanted or "Unsupported" in str(error) or "not allowed" in str(error):
            what = f"wants to use {wanted[1]}" if wanted else "wants to do more than store tensors"
            raise ModelError(
                f"{path}: its pickle {what}, which can run code, so it was not loaded and nothing was run;"
                " save the model's state_dict() alone and load that"
            ) from None
        raise ModelError(f"{path}: damaged or not a PyTorch checkpoint ({first_line(error)})") from None
    except Exception as error:  # a malformed pickle can fail in any way; nothing of it has been executed
        raise ModelError(
            f"{path}: damaged, truncated or not a PyTorch checkpoint ({first_line(error)}); download or save it again"
        ) from None
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    return _tensors(content, path)


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"{path}: truncated or damaged PyTorch file ({first_line(error)}); download or save it again"
        ) from None
    names = [entry.filename for entry in entries]
    if not any(name.rsplit("/", 1)[-1] == "data.pkl" for name in names):
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


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ModelError(f"{path}: holds {kind}, not a state dict (tensors by name); save the model's state_dict()")
    tensors: dict[str, Tensor] = {}
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
        tensors[name] = value
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors
