"""Results of single blocks on disk, so that an interrupted reconstruction goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from caplet.errors import ArtefactError
from caplet.files import digest, write_bytes
from caplet.models.assemble import named_tensors, tensor_parts
from caplet.models.base import CapsNet
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.reconstruct.settings import ReconstructSettings
from caplet.version import __version__

_KEY = "caplet-reconstruction"


def identity(model: CapsNet, images: Tensor, settings: ReconstructSettings) -> str:
    """A digest of all that a block's result depends on, apart from the plan."""
    made_by = json.dumps([__version__, settings.to_json()])
    return digest(made_by, *tensor_parts(named_tensors(model)), images.contiguous().numpy().data)


@dataclass(frozen=True)
class Block:
    """A block's result: its new parameters by name, and facts about it as JSON values."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class BlockStore:
    """Results of blocks, in memory and, the last one of each layer, in a folder.

    A result belongs to a layer and a plan up to that layer: plans that differ only further on share it.

    Args:
        folder: for ``reconstructed-<layer>.safetensors``; None keeps no files.
        identity: see :func:`identity`; files of another one are not read, and are replaced.
    """

    def __init__(self, folder: str | Path | None, identity: str) -> None:
        self._folder = None if folder is None else Path(folder)
        self._identity = identity
        self._known: dict[tuple[str, str], Block] = {}

    def save(self, layer: str, plan: QuantPlan, block: Block) -> None:
        """Keep the result of ``layer`` under ``plan`` (its points up to the layer). Raises ArtefactError."""
        self._known[layer, plan.digest()] = block
        if self._folder is None:
            return
        path = self._path(self._folder, layer)
        content = save(
            {name: tensor.detach().contiguous() for name, tensor in block.tensors.items()},
            {_KEY: json.dumps({"identity": self._identity, "plan": plan.digest(), "facts": block.facts})},
        )
        write_bytes(path, content)

    def load(self, layer: str, plan: QuantPlan) -> Block | None:
        """What :meth:`save` kept for the same layer and plan, or None. Raises ArtefactError for a damaged file."""
        found = self._known.get((layer, plan.digest()))
        if found is not None or self._folder is None or not self._path(self._folder, layer).exists():
            return found
        path = self._path(self._folder, layer)
        try:
            with safe_open(path, "pt") as stream:
                known = json.loads((stream.metadata() or {}).get(_KEY, "{}"))
                if (known.get("identity"), known.get("plan")) != (self._identity, plan.digest()):
                    return None
                return Block({name: stream.get_tensor(name) for name in stream.keys()}, known["facts"])  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ArtefactError(f"{path} is damaged ({error}); delete it and resume") from error

    @staticmethod
    def _path(folder: Path, layer: str) -> Path:
        return folder / f"reconstructed-{layer}.safetensors"
