"""What a measurement depends on, as short digests: results on disk are taken up for the same model and images only."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from caplet.models.base import CapsNet
from caplet.version import __version__


def model_identity(model: CapsNet) -> dict[str, Any]:
    """Version of caplet, family, settings and a digest of all tensors of a model: plain JSON values."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().contiguous().numpy().tobytes())
    return {
        "caplet": __version__,
        "family": model.family,
        "config": model.config.model_dump(mode="json"),
        "weights": weights.hexdigest(),
    }


def images_digest(*tensors: Tensor) -> str:
    """SHA-256 of images, and of labels where they matter: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
