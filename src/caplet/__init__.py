"""caplet: prune, quantize and ship capsule networks with exact integers.

The public functions live in :mod:`caplet.api` and are loaded on first use, so that ``import caplet`` stays light
(no torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from caplet.version import __version__

_API = (
    "CompressSettings",
    "Limits",
    "PruneSettings",
    "QuantizeSettings",
    "SensitivitySettings",
    "backbone_caps",
    "build",
    "calibrate",
    "check_model",
    "check_onnx",
    "compress",
    "diff_runs",
    "evaluate",
    "export_c",
    "export_onnx",
    "finetune_model",
    "inspect",
    "list_models",
    "load",
    "load_data",
    "lower_model",
    "prune_model",
    "quantize",
    "recipes",
    "run",
    "save_model",
    "save_program",
    "search",
    "sensitivity",
    "train_model",
    "verify_engines",
    "write_report",
)

__all__ = ["__version__", *_API]


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(import_module("caplet.api"), name)
    raise AttributeError(f"module 'caplet' has no attribute {name!r}")
