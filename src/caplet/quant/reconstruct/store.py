"""Results of single blocks on disk, so that an interrupted reconstruction goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import caplet
from caplet.errors import ArtefactError
from caplet.files import why, write_atomic
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet
from caplet.quant.plan import QuantPlan
from caplet.quant.reconstruct.settings import ReconstructSettings

_KEY = "caplet-reconstruction"


def identity(model: CapsNet, plan: QuantPlan, images: Tensor, settings: ReconstructSettings) -> str:
    """A digest of all that a reconstruction's results depend on."""
    digest = hashlib.sha256(json.dumps([caplet.__version__, plan.digest(), settings.to_json()]).encode())
    for name, tensor in named_tensors(model).items():
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    digest.update(images.contiguous().numpy().tobytes())
    return digest.hexdigest()


class BlockStore:
    """Results of blocks in a folder, one file each: ``reconstructed-<layer>.safetensors``.

    Args:
        folder: None keeps nothing.
        identity: see :func:`identity`; files of another one are not read, and are replaced.
    """

    def __init__(self, folder: str | Path | None, identity: str) -> None:
        self._folder = None if folder is None else Path(folder)
        self._identity = identity

    def save(self, layer: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Keep a block's result; JSON values ``facts`` with it. Raises ArtefactError when it cannot be written."""
        if self._folder is None:
            return
        path = self._path(self._folder, layer)
        content = save(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            {_KEY: json.dumps({"identity": self._identity, "facts": facts})},
        )
        try:
            write_atomic(path, lambda stream: stream.write(content))
        except OSError as error:
            raise ArtefactError(f"cannot write {path}: {why(error)}") from error

    def load(self, layer: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What :meth:`save` kept for the same reconstruction, or None. Raises ArtefactError for a damaged file."""
        if self._folder is None or not self._path(self._folder, layer).exists():
            return None
        path = self._path(self._folder, layer)
        try:
            with safe_open(path, "pt") as stream:
                known = json.loads((stream.metadata() or {}).get(_KEY, "{}"))
                if known.get("identity") != self._identity:
                    return None
                return {name: stream.get_tensor(name) for name in stream.keys()}, known["facts"]  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ArtefactError(f"{path} is damaged ({error}); delete it and resume") from error

    @staticmethod
    def _path(folder: Path, layer: str) -> Path:
        return folder / f"reconstructed-{layer}.safetensors"
