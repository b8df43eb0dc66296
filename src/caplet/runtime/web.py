"""A Program for browsers and node: a page, and an ES module, both around WebAssembly of the exported C.

Constants lie beside the code, packed to their bits, so that the two modules (with SIMD and without) share them; they
are unpacked into the module's memory when it is loaded.
"""

import base64
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ToolMissing
from caplet.fixed.packing import pack_bits
from caplet.program import interpreter
from caplet.program.c.emit import WASM, WEB, EmitSettings, Export, prepare, render, require_empty, write_files
from caplet.program.ops import Routing
from caplet.program.program import Program
from caplet.runtime.compiler import Compiler

_FLAGS = ("-target", "wasm32-freestanding", "-std=c99", "-O3", "-g0", "-s", "-nostdlib", "-fno-strict-aliasing")
_LINK = ("-fno-sanitize=all", "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,-z,stack-size=65536")
FEATURES = {"simd": "-mcpu=mvp+simd128+bulk_memory+sign_ext", "plain": "-mcpu=mvp+bulk_memory+sign_ext"}
"""Modules by name, and the compiler's option for the instructions that they may use."""


def emit_web(
    program: Program, folder: Path, settings: EmitSettings | None = None, images: NDArray[np.uint8] | None = None
) -> Export:
    """Write a Program as a folder for browsers; arguments and errors are those of :func:`caplet.program.c.emit.emit`.

    Raises ToolMissing when the compiler, the Python package ziglang, is absent.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise ToolMissing("export to web: the Python package ziglang, which compiles C to WebAssembly, was not found; "
                          "install it with 'pip install ziglang'")  # fmt: skip
    settings = settings or EmitSettings()
    export, context = prepare(program, folder, settings, images, loaded=True)
    require_empty(folder)
    context |= {"class_routing": _class_routing(program)}
    modules = _compile(render(context, WASM))
    layout, blob = _pack(context["constants"])
    texts = {name: base64.b64encode(code).decode() for name, code in modules.items()}
    context |= {
        "model": json.dumps(_model(program, context) | {"constants": layout}).replace("</", "<\\/"),
        "blob": base64.b64encode(blob).decode(),
        "wasm": texts,
        "sizes": {"constants": len(blob), **{name: len(code) for name, code in modules.items()}},
    }
    return write_files(export, render(context, WEB) | {f"wasm/{name}.wasm": code for name, code in modules.items()})


def _class_routing(program: Program) -> dict[str, int] | None:
    """Of the routing that writes the class capsules, if it is one with several iterations."""
    found = [op for op in program.ops if isinstance(op, Routing) and op.activation == program.output]
    if not found or found[0].logits is None:
        return None
    logits = program.tensors[found[0].logits]
    frac = logits.format.frac_bits
    counts = {"inputs": logits.shape[0], "logits": logits.elements}
    return counts | {"iterations": found[0].iterations, "logitsFracBits": frac}


def _compile(files: dict[str, str]) -> dict[str, bytes]:
    """The modules by name."""
    compiler = Compiler((sys.executable, "-m", "ziglang", "cc"), "zig")
    with tempfile.TemporaryDirectory(prefix="caplet-web-") as name:
        folder = Path(name)
        for file, text in files.items():
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for module, feature in FEATURES.items():
            compiler.build([*_FLAGS, feature, *_LINK, "module.c", "-o", f"{module}.wasm"], "export to web", folder)
        return {module: (folder / f"{module}.wasm").read_bytes() for module in FEATURES}


def _pack(arrays: dict[str, NDArray[Any]]) -> tuple[list[dict[str, Any]], bytes]:
    """Where each array of constants starts in the blob, its type and bits; and the blob."""
    layout, blob = [], b""
    for array in arrays.values():
        values = array.view(np.uint16) if array.dtype.itemsize == 4 else array
        signed = bool(values.min() < 0)
        bits = max(int(np.where(values < 0, ~values, values).max()).bit_length() + signed, 1)
        place = {"type": values.dtype.name, "count": values.size, "bits": bits, "signed": signed, "start": len(blob)}
        layout.append(place)
        blob += pack_bits(values, bits, signed).tobytes()
    return layout, blob


def _model(program: Program, context: dict[str, Any]) -> dict[str, Any]:
    """What JavaScript knows of the model, with its self-test."""
    images = context["vectors"]
    outcome = interpreter.run(program, images)
    output = program.tensors[program.output]
    tests = zip(images.transpose(0, 2, 3, 1), outcome.capsules, outcome.predictions, strict=True)
    return {
        "name": program.name,
        **{key: context[key] for key in ("digest", "rows", "columns", "channels", "preprocessing")},
        "classes": program.classes,
        "dim": output.shape[1],
        "fracBits": output.format.frac_bits,
        "labels": program.labels,
        "routing": context["class_routing"],
        "selfTest": [
            {
                "pixels": base64.b64encode(image.tobytes()).decode(),
                "codes": codes.reshape(-1).tolist(),
                "class": int(best),
            }
            for image, codes, best in tests
        ],
    }
