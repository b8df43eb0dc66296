"""caplet: prune, quantize and ship capsule networks with exact integers.

The public functions live in :mod:`caplet.api` and are loaded on first use, so that ``import caplet`` stays light
(no torch).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from caplet.version import __version__

if TYPE_CHECKING:  # for type checkers; at run time __getattr__ loads a name when it is first used
    from caplet.api import *  # noqa: F403

__all__ = [  # noqa: F405
    "CompressSettings",
    "Limits",
    "PruneSettings",
    "QuantizeSettings",
    "SensitivitySettings",
    "WorkerSettings",
    "__version__",
    "adopt",
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
    "from_dataset",
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
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("caplet.api"), name)
    raise AttributeError(f"module 'caplet' has no attribute {name!r}")
