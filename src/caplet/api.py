"""The public functions: load, load_data, train_model, evaluate, calibrate, search, lower_model, run, quantize, inspect.

None is named like a sub-package (``train``, ``lower``, ``models``): importing a sub-package would take its place.

Example: from a float checkpoint to bit-packed integers. ::

    import caplet

    model = caplet.load("shallow_fmnist.pt")
    data = caplet.load_data("fashion-mnist", root="~/data")
    result = caplet.quantize(model, data, "runs/fmnist", caplet.QuantizeSettings(tolerance=0.2))
    print(result.models[0].test, result.models[0].path)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caplet.data import from_dataset, load_data
from caplet.errors import ModelError, suggest
from caplet.fixed import Rounding
from caplet.jobs.compress.finish import CompressedModel
from caplet.jobs.compress.job import compress, estimate_compression, write_settings
from caplet.jobs.compress.settings import CompressSettings, Limits
from caplet.jobs.compress.settings import read_settings as compress_settings
from caplet.jobs.diff import Diff, diff_runs
from caplet.jobs.export import (
    OnnxCheck,
    check_onnx,
    export_c,
    export_onnx,
    find_program,
    parse_targets,
    verify_engines,
)
from caplet.jobs.finetune import FinetuneRun, finetune_model, finetune_settings, plan_of_widths
from caplet.jobs.inspect import Check, check_model, inspect_model
from caplet.jobs.prune.backbone import prune_backbone_model
from caplet.jobs.prune.curves import prune_curves
from caplet.jobs.prune.job import PruneResult
from caplet.jobs.prune.job import prune as prune_model
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.quantize.accept import QuantizeResult
from caplet.jobs.quantize.job import quantize
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.report import write_report
from caplet.jobs.run import Evaluation, evaluate
from caplet.jobs.sensitivity import SensitivityResult, sensitivity
from caplet.jobs.sweep.job import sweep
from caplet.jobs.sweep.settings import SweepSettings
from caplet.jobs.trace import Comparison, Trace, parse_levels, record_trace, trace_levels
from caplet.jobs.train import TrainRun, parse_changes
from caplet.jobs.train import train_by_recipe as train_model
from caplet.jobs.trained import PREFIX as TRAINED_PREFIX
from caplet.jobs.trained import ShippedNetwork, model_file, trained_networks
from caplet.lower import lower as lower_model
from caplet.models.assemble import skeleton
from caplet.models.backbone import backbone_caps
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.models.importers.adopt import adopt
from caplet.models.registry import NAMED, build, named_model
from caplet.program import Program
from caplet.program.c.emit import EmitSettings, Export
from caplet.program.cycles import DeviceTime, device_times
from caplet.program.file import load_program, save_program
from caplet.program.interpreter import run
from caplet.quant.choices import Granularity, Method, SensitivitySettings
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.reconstruct.reconstruct import Reconstruction, reconstruct
from caplet.quant.reconstruct.settings import ReconstructSettings, parse_parts
from caplet.quant.search.qcapsnets import search_qcapsnets as search
from caplet.runs.records import Verified
from caplet.runs.shipped import record_verified
from caplet.runtime.engine import Engine
from caplet.train.settings import recipe_names as recipes
from caplet.workers.settings import WorkerSettings

BACKBONE_RECIPE = "backbone-cifar10"
"""The recipe for a CNN with capsules where only the model is named."""

__all__ = [
    "BACKBONE_RECIPE",
    "CapsNet",
    "Check",
    "Comparison",
    "CompressSettings",
    "CompressedModel",
    "DeviceTime",
    "Diff",
    "EmitSettings",
    "Engine",
    "Evaluation",
    "Export",
    "FinetuneRun",
    "Granularity",
    "Limits",
    "Method",
    "OnnxCheck",
    "Program",
    "PruneResult",
    "PruneSettings",
    "QuantizeResult",
    "QuantizeSettings",
    "ReconstructSettings",
    "Reconstruction",
    "Rounding",
    "SensitivityResult",
    "SensitivitySettings",
    "ShippedNetwork",
    "SweepSettings",
    "Trace",
    "TrainRun",
    "Verified",
    "WorkerSettings",
    "adopt",
    "backbone_caps",
    "build",
    "calibrate",
    "check_model",
    "check_onnx",
    "compress",
    "compress_settings",
    "device_times",
    "diff_runs",
    "estimate_compression",
    "evaluate",
    "export_c",
    "export_onnx",
    "find_program",
    "finetune_model",
    "finetune_settings",
    "from_dataset",
    "inspect",
    "list_models",
    "load",
    "load_data",
    "load_float",
    "load_or_build",
    "load_plan",
    "load_program",
    "lower_model",
    "parse_changes",
    "parse_levels",
    "parse_parts",
    "parse_targets",
    "plan_of_widths",
    "prune_backbone_model",
    "prune_curves",
    "prune_model",
    "quantize",
    "read_plan",
    "recipes",
    "reconstruct",
    "record_trace",
    "record_verified",
    "run",
    "save_model",
    "save_program",
    "search",
    "sensitivity",
    "sweep",
    "trace_levels",
    "train_model",
    "trained_networks",
    "verify_engines",
    "write_report",
    "write_settings",
]


def load(path: str | Path, image_size: int | None = None, assume: Mapping[str, Any] | None = None) -> CapsNet | Program:
    """Load any model file: a ``.caplet`` Program, a native checkpoint, or a foreign checkpoint to import.

    Args:
        path: of the file; ``trained:NAME`` is the Program of a network of :func:`trained_networks`, which come with
            the package, and ``trained:NAME.safetensors`` the same in float.
        image_size: side of the images of an imported model, where its file leaves it open.
        assume: what such a file does not say, such as ``{"activation": "leaky_relu:0.3", "channels": "bgr"}``; its
            names are activation, iterations, padding, strides, channels and normalize (docs/runs.md). What was
            assumed and stated is in the model's ``notes``.

    Raises:
        ModelError, ArtefactError: missing, damaged, or of no known kind; an assumption that is unknown or not open.
    """
    return _load(model_file(path), image_size, assume)


def _load(path: Path, image_size: int | None, assume: Mapping[str, Any] | None) -> CapsNet | Program:
    if path.suffix != ".caplet":
        return load_model(path, image_size, assume)
    if assume:
        raise ModelError(f"{path}: holds integers, which say everything themselves; leave --assume out")
    return load_program(path)


def load_float(path: str | Path, image_size: int | None = None, assume: Mapping[str, Any] | None = None) -> CapsNet:
    """As :func:`load`, for what needs a float model. Raises ModelError for a ``.caplet`` file."""
    model = _load(model_file(path, ".safetensors"), image_size, assume)
    if isinstance(model, Program):
        raise ModelError(f"{path} holds integers already; give the float model that it was made from")
    return model


def load_or_build(model: str | Path, image_size: int | None = None, assume: Mapping[str, Any] | None = None) -> CapsNet:
    """A float model from its file, or a ready-made one, untrained, by its name. Raises ModelError."""
    return _ready_made(model) or load_float(model, image_size, assume)


def load_plan(program: str | Path) -> QuantPlan | None:
    """The plan beside a ``.caplet`` file of a run, None where there is none. Raises ArtefactError, PlanError."""
    program = Path(program)
    path = program.with_name(f"{program.stem.replace('model', 'plan', 1)}.json")
    return QuantPlan.load(path) if path.exists() else None


def read_plan(path: str | Path) -> QuantPlan:
    """Read a plan file, ``plan_*.json`` of a run folder. Raises ArtefactError or PlanError where it is none."""
    return QuantPlan.load(path)


def inspect(
    model: str | Path | CapsNet | Program, image_size: int | None = None, assume: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe a model, a model file, or a ready-made model by name; see :func:`caplet.jobs.inspect.inspect_model`.

    Raises:
        ModelError, ArtefactError: missing, damaged, or of no known kind.
    """
    if isinstance(model, CapsNet | Program):
        return inspect_model(model)
    named = _ready_made(model)
    return inspect_model(load(model, image_size, assume), model_file(model)) if named is None else inspect_model(named)


def _ready_made(name: str | Path) -> CapsNet | None:
    """The ready-made model of a name, untrained; None for a file, or where no name is like it. Raises ModelError."""
    if str(name).startswith(TRAINED_PREFIX) or Path(name).exists():
        return None
    if (known := str(name)) in NAMED:
        named = named_model(known)
        return build(named.family, named.config)
    if hint := suggest(known, NAMED):
        raise ModelError(f"{known}: neither a file nor a ready-made model{hint}")
    return None


def list_models() -> list[dict[str, Any]]:
    """The ready-made models: name, family, image, classes, parameters, about."""
    return [
        {
            "name": name,
            "family": entry.family,
            "image": list(entry.config.image),
            "classes": entry.config.classes,
            "parameters": skeleton(entry.family, entry.config).parameter_count(),
            "about": entry.about,
        }
        for name, entry in NAMED.items()
    ]
