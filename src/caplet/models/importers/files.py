"""Checkpoint files read as data: what a file starts with, and a network's tensors in what a training script saved.

Tensors may be in wrappers, under prefixes, in parts, beside other things. Pickles are read by PyTorch's restricted
reader, which knows the instructions of protocol 2 only; later ones are translated, and nothing is run.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from caplet.errors import ModelError
from caplet.files import check_regular
from caplet.models.assemble import first_line, listed, shape_text

HEAD = 16
_MOST = 1 << 32
"""Bytes of a checkpoint; readers have all of it in memory."""
State = dict[str, Tensor]


def read_head(path: Path) -> bytes:
    """The first 16 bytes of a file. Raises ModelError: missing, a folder, unreadable, or empty."""
    try:
        if path.is_dir():
            raise ModelError(f"{path}: a folder, but a checkpoint is one file; give the path of the file")
        if path.exists():
            check_regular(path, kind=ModelError, most=_MOST)  # opening a pipe would wait for ever
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

    Raises ModelError: truncated, of another kind, a pickle that wants to run code, or content that is not a mapping of
    names to plain CPU tensors backed by the file's own bytes.
    """
    head, notes = read_head(path), list[str]()
    if is_torch_file(head):
        content = _load_torch(path, head.startswith(ZIP))
    elif is_safetensors_file(head):
        try:
            content = load_file(path)
        except (SafetensorError, OSError) as error:
            raise damaged(path, error) from None
    else:
        raise ModelError(f"{path}: not a PyTorch file, nor .safetensors; give a state dict that torch.save wrote")
    if isinstance(content, tuple | list) and any(isinstance(entry, Mapping) for entry in content):
        content = {str(place): entry for place, entry in enumerate(content)}
    found, keys = find_state_dict(content, set())
    if keys and len(content) > 1:
        others = [str(key) for key in content if key != keys[0]]
        notes.append(f"the weights are those under {'.'.join(keys)}; left out: {listed(others)}")
    return plain_state(_tensors(found, path, notes), str(path), notes), notes


def _load_torch(path: Path, archive: bool) -> Any:
    names: set[str] = set()
    try:
        entry = _check_archive(path) if archive else None
        with path.open("rb") as stream:  # a stream, as torch.load also goes by the ending of a name
            source = _protocol_2(stream, entry, names)
            known: list[Any] = [(UnreadObject, name) for name in names if _LEFT_OUT.fullmatch(name)]
            with torch.serialization.safe_globals(known), warnings.catch_warnings(action="ignore"):
                return torch.load(source, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # a malformed pickle can fail in any way; nothing of it has been executed
        if isinstance(error, UnpicklingError) and (wanted := _GLOBAL.search(str(error))):
            risk = f"its pickle wants to use {wanted[1]}, which can run code"
            raise ModelError(f"{path}: {risk}; nothing was run: save the model's state_dict() alone") from None
        raise ModelError(f"{path}: damaged, truncated or not a PyTorch checkpoint ({first_line(error)})") from None


def _check_archive(path: Path) -> str:
    """The place of the pickle in a PyTorch file that is an archive."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    found = [name for name in names if name.rsplit("/", 1)[-1] == "data.pkl"]
    if not found:
        held = listed(names) or "nothing"
        raise ModelError(f"{path}: a zip archive but not a PyTorch checkpoint (it holds {held}, no data.pkl)")
    if any(name.rsplit("/", 1)[-1] == "constants.pkl" for name in names):
        raise ModelError(f"{path}: a TorchScript program, not weights; save the model's state_dict() and load that")
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise ModelError(f"{path}: its entries unpack to {unpacked:,} bytes, more than the file's {size:,}; damaged")
    return found[0]


#: A file of tensors has some ten instructions for each. Beyond this many, or so many bytes, it is none.
_MOST_INSTRUCTIONS, _MOST_BYTES = 1_000_000, 1 << 26
#: With what a PyTorch file that is no archive begins: magic number, version, system, content, names of storages.
_PICKLES = 5
#: Sets become lists, and bytes None: no tensor is made of them.
_FIXED = {"PROTO": b"\x80\x02", "FRAME": b"", "EMPTY_SET": b"]", "ADDITEMS": b"e", "FROZENSET": b"t"}
_FIXED |= dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), b"N")


def _translated(stream: BinaryIO, names: set[str]) -> tuple[int, bytes]:
    """The protocol of the next pickle of a stream, and its translation."""
    out: list[bytes] = []
    memo: dict[int, str | None] = {}
    texts: list[tuple[str, int]] = []  # those on top of the stack, and where in ``out`` each stands
    protocol = size = 0
    arg: Any
    for op, arg, start in pickletools.genops(stream):
        raw, text, end = _FIXED.get(op.name), None, stream.tell()
        if op.name == "PROTO":
            protocol = arg
        elif op.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            place = len(memo) if op.name == "MEMOIZE" else arg
            memo[place] = texts[-1][0] if texts else None
            raw = b"" if texts else b"r" + place.to_bytes(4, "little")
        elif op.name in ("BINGET", "LONG_BINGET"):
            text = memo.get(arg)
        elif "UNICODE" in op.name:
            text = arg
        elif op.name == "GLOBAL":
            names.add(arg.replace(" ", "."))
        elif op.name == "STACK_GLOBAL":
            (module, place), (name, _) = texts[-2:]
            names.add(f"{module}.{name}")
            del out[place:]
            raw = f"c{module}\n{name}\n".encode()
        if text is not None:
            texts.append((text, len(out)))
            data = text.encode("utf-8", "surrogatepass")
            raw = b"X" + len(data).to_bytes(4, "little") + data
        elif raw != b"":
            texts.clear()
        if raw is None:
            raw = stream.read(end - stream.seek(start or 0))
        out.append(raw)
        size += len(raw)
        if len(out) > _MOST_INSTRUCTIONS or size > _MOST_BYTES:
            raise UnpicklingError("too long for a list of tensors")
    return protocol, b"".join(out)


def _protocol_2(stream: BinaryIO, entry: str | None, names: set[str]) -> BinaryIO:
    """A PyTorch file with its pickles in protocol 2: ``stream`` itself, from its beginning on, where they are.

    Args:
        entry: the pickle's place in the archive; None for a file that is none.
        names: receives the functions and classes that the pickles ask for, as ``module.name``.

    Raises:
        ValueError, UnpicklingError, and what zipfile raises: damaged, or longer than a list of tensors is.
    """
    if entry is None:
        pickles = [_translated(stream, names) for _ in range(_PICKLES)]
        if max(protocol for protocol, _ in pickles) > 2:
            return io.BytesIO(b"".join([*(text for _, text in pickles), stream.read()]))
    else:
        with zipfile.ZipFile(stream) as archive:
            protocol, text = _translated(io.BytesIO(archive.read(entry)), names)
            if protocol > 2:
                with zipfile.ZipFile(result := io.BytesIO(), "w") as copy:
                    for name in dict.fromkeys(archive.namelist()):
                        copy.writestr(name, text if name == entry else archive.read(name))
                stream = result
    stream.seek(0)
    return stream


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
            kind = "NumPy array, or another object" if isinstance(value, UnreadObject) else type(value).__name__
            raise ModelError(f"{where} is a {kind}, not a tensor; save the model's state_dict() alone")
        odd = value.is_quantized or value.is_complex() or (value.is_floating_point() and value.itemsize < 2)
        odd = odd or (name.endswith((".weight", ".bias")) and not value.is_floating_point())  # codes of another tool
        if value.layout is not torch.strided or value.device.type != "cpu" or odd:
            raise ModelError(f"{where} is a {value.layout} {value.dtype} tensor; a checkpoint has plain float tensors")
        stored = value.untyped_storage().nbytes()
        if value.numel() * value.element_size() > stored:
            count = stored // value.element_size()
            raise ModelError(f"{where} declares {value.numel():,} values but the file stores {count:,}; it is damaged")
    return dict(content)


_WRAPPERS = """state_dict model_state_dict model_state model net_state_dict net network capsnet module
    state weights params parameters ema_state_dict model_ema ema shadow"""
WRAPPERS = tuple(_WRAPPERS.split())
"""Names under which training scripts store the state dict, the likeliest first; any other name comes after these."""
#: What PyTorch adds to the names of a module that is wrapped or computes a tensor from parts.
_ADDED = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|parametrizations(?=\.\w+\.original))\."
)
#: Modules at the top that training needs and a prediction does not.
_BESIDE = re.compile(r"\w*decod|recon|(ema|teacher|loss|criterion|n_averaged)(_|$)", re.IGNORECASE)


def find_state_dict(content: Any, seen: set[int], depth: int = 4) -> tuple[Any, tuple[str, ...]]:
    """The first mapping with tensors of dotted names in nested ones, and the keys that lead to it; else ``content``."""
    if isinstance(content, Mapping) and depth and id(content) not in seen:
        seen.add(id(content))
        for key in dict.fromkeys((*(name for name in WRAPPERS if name in content), *content)):
            found, keys = find_state_dict(content[key], seen, depth - 1)
            if isinstance(found, Mapping) and any(isinstance(found[k], Tensor) and "." in str(k) for k in found):
                return found, (str(key), *keys)
    return content, ()


def _weight_norm(direction: Tensor, length: Tensor) -> Tensor:
    """Each slice of ``direction`` gets its ``length``; slices are along the axes where that has more than one."""
    squared = direction.double() ** 2
    for axis in range(squared.ndim):
        if not length.ndim or length.shape[axis] == 1:
            squared = squared.sum(axis, keepdim=True)
    return direction * (length / squared.sqrt())


#: Parts of a tensor NAME: NAME + the first, NAME + the second, and what makes one of them.
_PARTS = (
    ("_orig", "_mask", "pruning masks", torch.mul),
    ("_v", "_g", "weight norm", _weight_norm),
    (".original1", ".original0", "weight norm", _weight_norm),
)


def plain_state(state: State, where: str, notes: list[str]) -> State:
    """The tensors of the plain network: no prefix that all names share, one tensor for parts, nothing for training.

    Args:
        notes: receives a line on each thing applied or left out.

    Raises:
        ModelError: two tensors of one name, or parts whose shapes do not fit.
    """
    plain = {_ADDED.sub("", name): tensor for name, tensor in state.items()}
    if len(plain) < len(state):
        raise ModelError(f"{where}: it holds tensors of several networks; save the state_dict() of one")
    for one, two, what, join in _PARTS:
        names = {name: name.removesuffix(one) for name in plain if name.endswith(one)}
        names = {name: short for name, short in names.items() if short + two in plain}
        for name, short in names.items():
            a, b = plain[name], plain.pop(short + two)
            if b.ndim and (a.ndim != b.ndim or any(m not in (1, n) for m, n in zip(b.shape, a.shape, strict=True))):
                raise ModelError(f"{where}: {short}{two} has shape {shape_text(b.shape)}, {name} {shape_text(a.shape)}")
            plain[name] = join(a, b)
        if names:
            notes.append(f"{what} applied to {listed([*names.values()])}")
        plain = {names.get(name, name): tensor for name, tensor in plain.items()}
    while True:
        tops = dict.fromkeys(name.partition(".")[0] for name in plain)
        beside = [top for top in tops if _BESIDE.match(top)]
        if len(tops) == 1 and "features" not in tops and all("." in name for name in plain):
            plain = {name.partition(".")[2]: tensor for name, tensor in plain.items()}
        elif beside:
            notes.append(f"left out: {', '.join(beside)}")
            plain = {name: tensor for name, tensor in plain.items() if name.partition(".")[0] not in beside}
        else:
            return plain
