"""Class capsules as linear maps: what the votes add up to through a routing's couplings."""

from __future__ import annotations

import torch
from torch import Tensor

from caplet.nn.caps import DenseCaps
from caplet.nn.points import Handler, PointSpec

_BLOCK = 256
_BATCH = 64


class CapsuleLinear:
    """The map from input capsules to preactivations, one per output capsule, with the float routing's couplings.

    A preactivation is ``sum over i of c_i W_i x_i``: linear in the weights for given couplings. Each image gives a row
    for every routing iteration. The row's error is weighted by how much the squash passes of it: rows in which a
    capsule is short or saturated count less.

    Args:
        layer: the float layer.
        quantized, exact: float (N, I, K): the layer's input as quantized and in float, capsules that do not vote too.
    """

    def __init__(self, layer: DenseCaps, quantized: Tensor, exact: Tensor) -> None:
        self.unit = layer.in_dim
        voters = slice(None) if layer.input_indices is None else torch.tensor(layer.input_indices)
        self._quantized, self._exact = quantized[:, voters], exact[:, voters]
        self._out = (layer.out_capsules, layer.dim)
        coupling, preactivation = _routing(layer, exact)  # (T, N, G, I), (T, N, G, D)
        self._coupling = coupling.permute(2, 0, 1, 3).flatten(1, 2)  # G, T * N, I
        per_block = max(1, _BLOCK // layer.in_dim)
        self._ranges = [
            slice(start, min(start + per_block, layer.in_capsules)) for start in range(0, layer.in_capsules, per_block)
        ]
        self.blocks = len(self._ranges)
        self.scale = passed(preactivation).permute(2, 0, 1).flatten(1).unsqueeze(-1)

    def columns(self, block: int) -> Tensor:
        return self._weighted(self._quantized[:, self._ranges[block]], block)

    def difference(self, block: int) -> Tensor:
        chosen = self._ranges[block]
        return self._weighted(self._quantized[:, chosen] - self._exact[:, chosen], block)

    def _weighted(self, capsules: Tensor, block: int) -> Tensor:
        """Capsules (N, i, K) times coupling and row weight: (G, T * N, i * K)."""
        factor = self._coupling[:, :, self._ranges[block]] * self.scale  # G, T * N, i
        iterations = factor.shape[1] // len(capsules)
        return (factor.unflatten(1, (iterations, -1)).unsqueeze(-1) * capsules).flatten(3).flatten(1, 2)

    def split(self, weight: Tensor) -> list[Tensor]:
        out_capsules, dim = self._out
        by_capsule = weight.unflatten(2, (out_capsules, dim)).permute(2, 0, 1, 3)  # G, I, K, D
        return [by_capsule[:, chosen].flatten(1, 2).contiguous() for chosen in self._ranges]

    def join(self, matrices: list[Tensor]) -> Tensor:
        by_capsule = torch.cat(matrices, 1).unflatten(1, (-1, self.unit))
        return by_capsule.permute(1, 2, 0, 3).flatten(2).contiguous()


class _Recorder(Handler):
    """A :class:`~caplet.nn.points.Handler` that keeps the couplings and preactivations of every iteration."""

    def __init__(self) -> None:
        self.coupling: list[Tensor] = []
        self.preactivation: list[Tensor] = []

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        if spec.name == "coupling":
            self.coupling.append(value)
        elif spec.name == "preactivation":
            self.preactivation.append(value)
        return value


def _routing(layer: DenseCaps, capsules: Tensor) -> tuple[Tensor, Tensor]:
    """Couplings (T, N, G, I) and preactivations (T, N, G, D) of all iterations in float."""
    couplings, preactivations = [], []
    previous = layer.handler
    try:
        with torch.inference_mode():
            for batch in capsules.split(_BATCH):
                layer.handler = recorder = _Recorder()
                layer(batch)
                couplings.append(torch.stack([c.expand(len(batch), -1, -1) for c in recorder.coupling]))
                preactivations.append(torch.stack(recorder.preactivation))
    finally:
        layer.handler = previous
    return torch.cat(couplings, 1).clone(), torch.cat(preactivations, 1).clone()


def passed(preactivation: Tensor) -> Tensor:
    """Root mean square of the squash's Jacobian over the directions of a capsule: (..., D) -> (...).

    Across s the squash multiplies by f = |s| / (1 + |s|^2), along s by 2 |s| / (1 + |s|^2)^2.
    """
    dim = preactivation.shape[-1]
    size = torch.linalg.vector_norm(preactivation, dim=-1)
    across = size / (1 + size**2)
    along = 2 * size / (1 + size**2) ** 2
    return torch.sqrt(((dim - 1) * across**2 + along**2) / dim)
