"""Export to ONNX: a float model as it is, or a Program as a graph of the same integers; and a check of the file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caplet.data.imageset import to_float
from caplet.errors import ToolMissing
from caplet.files import write_bytes
from caplet.models.base import CapsNet
from caplet.program import Program
from caplet.program.interpreter import run
from caplet.program.onnx.graph import INSTALL, OPSET, require_onnx
from caplet.program.onnx.translate import CAPSULES, IMAGES, PREDICTION, to_onnx
from caplet.quant.measure.evaluator import predict

_BATCH = 50
_FLOAT_TOLERANCE = 1e-4
"""Float sums depend on their order; beyond this two values are called different."""


@dataclass(frozen=True)
class OnnxCheck:
    """What onnxruntime computed, against caplet.

    Attributes:
        images: how many were run.
        equal_predictions: images for which both predict the same class.
        values: class-capsule values compared: codes of a Program, floats of a float model.
        differing: codes that differ; of a float model, values that differ by more than 1e-4.
        largest: the largest difference: in codes, or in the float model's units.
    """

    images: int
    equal_predictions: int
    values: int
    differing: int
    largest: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def export_onnx(model: CapsNet | Program, out: str | Path) -> Path:
    """Write ``model`` as an ONNX file.

    A Program becomes a graph of exact integers (see :mod:`caplet.program.onnx`); a float model is exported by torch
    with its routing unrolled: input ``images`` float32 (N, C, H, W) in [0, 1], output ``capsules`` float32.

    Raises:
        ToolMissing: onnx, or for a float model onnxscript, is not installed.
        ArtefactError: the file cannot be written.
    """
    require_onnx()
    data = to_onnx(model).SerializeToString() if isinstance(model, Program) else _float_bytes(model)
    path = Path(out)
    write_bytes(path, data, todo="choose another --out")
    return path


def _float_bytes(model: CapsNet) -> bytes:
    if find_spec("onnxscript") is None:
        raise ToolMissing(
            f"the ONNX export of a float model needs the Python package onnxscript; install it with {INSTALL}"
        )
    model.eval()
    example = torch.rand(2, *model.config.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exported = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[IMAGES],
            output_names=[CAPSULES],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    assert exported is not None  # torch returns a program where it is given no file
    return bytes(exported.model_proto.SerializeToString())


def check_onnx(path: str | Path, model: CapsNet | Program, images: NDArray[np.uint8]) -> OnnxCheck:
    """Run ``images`` through an exported file in onnxruntime, and compare with the model it was made from.

    Args:
        images: uint8 (N, C, H, W), N >= 1.

    Raises:
        ToolMissing: onnxruntime is not installed.
    """
    if find_spec("onnxruntime") is None:
        raise ToolMissing(f"checking an ONNX file needs the Python package onnxruntime; install it with {INSTALL}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    equal = values = differing = 0
    largest = 0.0
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        if isinstance(model, Program):
            found, predicted = session.run([CAPSULES, PREDICTION], {IMAGES: part})
            expected = run(model, part)
            gap = np.abs(found.astype(np.int64) - expected.capsules)
            equal += int((predicted == expected.predictions).sum())
            differing += int((gap > 0).sum())
        else:
            pixels = to_float(torch.from_numpy(part)).contiguous()
            [found] = session.run([CAPSULES], {IMAGES: pixels.numpy()})
            with torch.no_grad():
                capsules = model.eval()(pixels)
            gap = np.abs(found - capsules.numpy())
            equal += int((predict(torch.from_numpy(found)) == predict(capsules)).sum())
            differing += int((gap > _FLOAT_TOLERANCE).sum())
        values += gap.size
        largest = max(largest, float(gap.max()))
    return OnnxCheck(len(images), equal, values, differing, largest)
