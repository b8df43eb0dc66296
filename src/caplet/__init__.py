"""caplet: prune, quantize and ship capsule networks with exact integers.

The public functions live in :mod:`caplet.api` and are loaded on first use, so that ``import caplet`` stays light
(no torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from caplet.version import __version__

if TYPE_CHECKING:  # what type checkers see; at run time __getattr__ loads it
    from caplet.api import (
        CompressSettings as CompressSettings,
    )
    from caplet.api import (
        Limits as Limits,
    )
    from caplet.api import (
        PruneSettings as PruneSettings,
    )
    from caplet.api import (
        QuantizeSettings as QuantizeSettings,
    )
    from caplet.api import (
        SensitivitySettings as SensitivitySettings,
    )
    from caplet.api import (
        backbone_caps as backbone_caps,
    )
    from caplet.api import (
        build as build,
    )
    from caplet.api import (
        calibrate as calibrate,
    )
    from caplet.api import (
        check_model as check_model,
    )
    from caplet.api import (
        check_onnx as check_onnx,
    )
    from caplet.api import (
        compress as compress,
    )
    from caplet.api import (
        diff_runs as diff_runs,
    )
    from caplet.api import (
        evaluate as evaluate,
    )
    from caplet.api import (
        export_c as export_c,
    )
    from caplet.api import (
        export_onnx as export_onnx,
    )
    from caplet.api import (
        finetune_model as finetune_model,
    )
    from caplet.api import (
        inspect as inspect,
    )
    from caplet.api import (
        list_models as list_models,
    )
    from caplet.api import (
        load as load,
    )
    from caplet.api import (
        load_data as load_data,
    )
    from caplet.api import (
        lower_model as lower_model,
    )
    from caplet.api import (
        prune_model as prune_model,
    )
    from caplet.api import (
        quantize as quantize,
    )
    from caplet.api import (
        recipes as recipes,
    )
    from caplet.api import (
        run as run,
    )
    from caplet.api import (
        save_model as save_model,
    )
    from caplet.api import (
        save_program as save_program,
    )
    from caplet.api import (
        search as search,
    )
    from caplet.api import (
        sensitivity as sensitivity,
    )
    from caplet.api import (
        train_model as train_model,
    )
    from caplet.api import (
        verify_engines as verify_engines,
    )
    from caplet.api import (
        write_report as write_report,
    )

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
