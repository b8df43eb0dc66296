"""What single blocks are fitted on, and their results on disk, so that an interrupted reconstruction goes on."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import ArtefactError
from caplet.files import check_regular, digest, write_bytes
from caplet.models.assemble import named_tensors, tensor_parts
from caplet.models.base import CapsNet, Stage, State
from caplet.models.staged import StagedModel
from caplet.nn.layer import Layer
from caplet.nn.points import Handler
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.reconstruct.settings import ReconstructSettings
from caplet.version import __version__

_KEY = "caplet-reconstruction"
_BATCH = 64
KNOWN_BYTES = 1 << 30
"""Most memory for what would otherwise be computed again."""


class Chain:
    """A model at one stage: the stage's inputs for all images, from which the next stage's are computed.

    Args:
        model: in evaluation mode; its parameters may change between calls.
        images: uint8 (N, C, H, W).
        handler: attached while the model runs, None for float.
        known: the inputs of the first stages, filled by the first of several chains of one model, as far as they take
            at most :data:`KNOWN_BYTES`.
    """

    def __init__(
        self,
        model: CapsNet,
        images: Tensor,
        handler: Handler | None = None,
        known: list[list[State]] | None = None,
    ) -> None:
        self._staged, self._handler, self._known = StagedModel(model), handler, known
        self._number = 0
        self._states: list[State] = [(to_float(batch, model.device),) for batch in torch.split(images, _BATCH)]

    @property
    def stage(self) -> Stage:
        """The stage whose inputs are held."""
        return self._staged.stages[self._number]

    def input_of(self, layer: Layer) -> Tensor:
        """What ``layer``, one of the present stage's, reads for all images: float (N, ...)."""
        caught: list[Tensor] = []

        def catch(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            caught.append(args[0])
            raise _Caught

        hook = layer.register_forward_pre_hook(catch)
        try:
            for state in self._states:
                with suppress(_Caught):
                    self._run(state)
        finally:
            hook.remove()
        return torch.cat(caught)

    def advance(self) -> None:
        """Run the present stage; its outputs take the place of its inputs."""
        if self._known is not None and self._number < len(self._known):
            self._states = list(self._known[self._number])
        else:
            for index, state in enumerate(self._states):
                self._states[index] = self._run(state)
            known = self._known
            if known is not None and len(known) == self._number and _bytes([*known, self._states]) <= KNOWN_BYTES:
                known.append(list(self._states))
        self._number += 1

    def _run(self, state: State) -> State:
        with torch.no_grad():
            return self._staged.run_from(self._number, state, self._handler, stop=self._number + 1)


def _bytes(stages: list[list[State]]) -> int:
    return sum(tensor.nbytes for states in stages for state in states for tensor in state)


class _Caught(Exception):
    """Ends a stage's run once the wanted layer's input is known."""


def identity(model: CapsNet, images: Tensor, settings: ReconstructSettings) -> str:
    """A digest of all that a block's result depends on, apart from the plan."""
    made_by = json.dumps([__version__, settings.model_dump(mode="json", by_alias=True)])
    return digest(made_by, *tensor_parts(named_tensors(model)), images.contiguous().numpy().data)


@dataclass(frozen=True)
class FittedBlock:
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
        self.identity = identity
        self._known: dict[tuple[str, str], FittedBlock] = {}

    def _path(self, layer: str) -> Path | None:
        return None if self._folder is None else self._folder / f"reconstructed-{layer}.safetensors"

    def save(self, layer: str, plan: QuantPlan, block: FittedBlock) -> None:
        """Keep the result of ``layer`` under ``plan`` (its points up to the layer). Raises ArtefactError."""
        self._known[layer, plan.digest()] = block
        if (path := self._path(layer)) is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in block.tensors.items()}
            facts = {"identity": self.identity, "plan": plan.digest(), "facts": block.facts}
            write_bytes(path, save(tensors, {_KEY: json.dumps(facts)}))

    def load(self, layer: str, plan: QuantPlan) -> FittedBlock | None:
        """What :meth:`save` kept for the same layer and plan, or None. Raises ArtefactError for a damaged file."""
        found, path = self._known.get((layer, plan.digest())), self._path(layer)
        if found is not None or path is None or not path.exists():
            return found
        check_regular(path, "the fitted block")
        try:
            with safe_open(path, "pt") as stream:
                known = json.loads((stream.metadata() or {}).get(_KEY, "{}"))
                if (known.get("identity"), known.get("plan")) != (self.identity, plan.digest()):
                    return None
                return FittedBlock({name: stream.get_tensor(name) for name in list(stream.keys())}, known["facts"])
        except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ArtefactError(f"{path} is damaged ({error}); delete it and resume") from error
