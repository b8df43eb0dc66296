"""An exported model: a folder of C99 that computes, to the last integer, what the Program says.

A folder for a place where firmware is made has the same C in its sub-folder ``src`` and the files that the place asks
for: templates in a folder of its own, and nothing in Python but its line in :data:`PLACES`.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from caplet.errors import ArtefactError, ConfigError, DataError, PlanError, choose
from caplet.files import access, whole_folder
from caplet.program import interpreter
from caplet.program.arena import MemoryMap, plan_memory
from caplet.program.bands import ALIGNMENT
from caplet.program.c.calls import CallWriter, stages
from caplet.program.c.describe import Descriptions
from caplet.program.c.structure import Identifiers, c_string, identifier, rows_of_numbers, runtime_files
from caplet.program.file import program_digest
from caplet.program.ops import DenseVotes, InputQuantize
from caplet.program.program import Program
from caplet.program.verify import Proof, verify

RUNTIME_FOLDER = "caplet"
"""The runtime's files lie in a sub-folder of this name, so that several exported models can share one copy."""
PLACES = {
    "c": "C99 with a Makefile, CMake files and emulated boards",
    "cmake": "a package to install, for find_package",
    "arduino": "a library package with an example sketch",
    "zephyr": "a module package with a sample",
    "esp-idf": "a component package with an example",
    "platformio": "a library package with an example",
    "micropython": "a native module",
}
"""Places where firmware is made -> what is written for them; packages have their C in a sub-folder ``src``."""
PACKAGE, WASM, WEB = "package", "wasm", "web"
"""Folders of templates: what all packages have, the C around a model that becomes WebAssembly, the pages about it."""


@dataclass(frozen=True)
class EmitSettings:
    """How to export.

    prefix: of every C name; made of the Program's name if None. ram: as for :func:`caplet.program.arena.plan_memory`.
    in_place: False keeps every tensor in a buffer of its own, for debugging. vectors: images of the self-test.
    preprocessing: sentences for the README on how images were prepared; that of the Program's ``meta`` if empty.
    to: one of :data:`PLACES`, or "web" for :func:`caplet.runtime.web.emit_web`.
    """

    prefix: str | None = None
    ram: str | int = "fast"
    in_place: bool = True
    vectors: int = 3
    preprocessing: str = ""
    to: str = "c"


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: where it is.
        prefix: of every C name in it.
        plan: where each tensor lies in the arena, in bytes.
        proof: the overflow proof.
        files: names of the files in the folder.
    """

    folder: Path
    prefix: str
    plan: MemoryMap
    proof: Proof
    files: tuple[str, ...] = ()


def emit(
    program: Program, folder: Path, settings: EmitSettings | None = None, images: NDArray[np.uint8] | None = None
) -> Export:
    """Write a Program as C99 into ``folder``, absent or empty but for hidden files; it is there whole or not at all.

    images: uint8 (N, channels, rows, columns) from which the self-test's vectors are taken; noise if None.
    Raises PlanError when the Program does not verify, does not fit the RAM asked for, or has class capsules that int16
    cannot hold; ConfigError when the prefix is no C identifier; DataError when the images do not fit; ArtefactError
    when the folder cannot be written.
    """
    settings = settings or EmitSettings()
    choose(settings.to, PLACES, "place to export to")
    export, context = prepare(program, folder, settings, images)
    files: dict[str, str | bytes] = {**render(context, settings.to)}
    files[PROOF] = (
        json.dumps({"accumulators": export.proof.to_json(), "memory": export.plan.to_json()}, indent=1) + "\n"
    )
    return write_files(export, files)


def write_files(export: Export, files: Mapping[str, str | bytes]) -> Export:
    """Write files to the export's folder, all or none. Raises ArtefactError where that is neither absent nor empty."""
    require_empty(export.folder)
    with access("write the export to", export.folder), whole_folder(export.folder) as part:
        for name, content in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return replace(export, files=tuple(files))


def require_empty(folder: Path) -> None:
    """Raise ArtefactError unless ``folder`` is absent, or empty but for hidden files."""
    with access("write the export to", folder):
        if folder.exists() and (not folder.is_dir() or any(name[0] != "." for name in os.listdir(folder))):
            raise ArtefactError(f"export: {folder} exists and is not an empty folder; choose another, or remove it")


def prepare(
    program: Program, folder: Path, settings: EmitSettings, images: NDArray[np.uint8] | None, loaded: bool = False
) -> tuple[Export, dict[str, Any]]:
    """What :func:`emit` is about to write, and the names that its templates use. Raises what it raises.

    loaded: arrays of constants start empty and unpacked, to be filled at run time; ``constants`` are their values.
    """
    proof = verify(program)
    plan = plan_memory(program, settings.ram, proof=proof, in_place=settings.in_place)
    output = program.tensors[program.output]
    if output.format.max_code > 32767:  # type: ignore[union-attr]
        raise PlanError(f"output {output.name}: {output.format}; class capsules fit int16 in C: use at most 15 bits")
    prefix = _prefix(program, settings)
    context = _context(program, proof, plan, settings, prefix, loaded) | _vectors(program, settings, images)
    return Export(folder, prefix, plan, proof), context


def render(context: Mapping[str, Any], place: str) -> dict[str, str]:
    """The files of an export: name -> text. place: one of :data:`PLACES`, or another folder of templates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("caplet.program.c", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"c_string": c_string, "json": json.dumps}
    sources = "src/" if place in PLACES and place != "c" else ""
    files = (
        {} if place == WEB else {f"{sources}{RUNTIME_FOLDER}/{name}": text for name, text in runtime_files().items()}
    )
    for template in environment.list_templates(["j2"]):
        folder, _, rest = template.removesuffix(".j2").partition("/")
        if folder == place:
            name = rest
        elif folder == PACKAGE and sources:
            name = sources + rest
        elif (
            folder not in (*PLACES, PACKAGE, WASM, WEB)
            and place != WEB
            and (place == "c" or folder.startswith("model"))
        ):
            name = sources + template.removesuffix(".j2")
        else:
            continue
        if not Path(name).name.startswith("_"):  # a part of other templates
            name = re.sub("(^|/)model", rf"\1{context['prefix']}", name)  # the model's own files have its prefix
            files[name] = environment.get_template(template).render(context)
    return files


PROOF = "proof.json"
"""File of the export: the largest value of every accumulator and the memory plan, as plain data."""


def _prefix(program: Program, settings: EmitSettings) -> str:
    """The prefix of every public C name; never one of the runtime's or of the file's own tables.

    A Program's name is made to fit; a prefix that was asked for is taken as it is, or refused with ConfigError.
    """
    word = identifier(program.name if settings.prefix is None else settings.prefix)
    word = f"m_{word}" if word in ("op", "table") or word.lower().startswith("caplet") else word
    if settings.prefix not in (None, word):
        raise ConfigError(
            f"export: prefix {settings.prefix!r}; the rule is a C identifier: letters, digits and single underscores, "
            "a letter first, no underscore at the end, no keyword of C or C++, not 'op' or 'table', and not starting "
            f"with 'caplet'; {word!r} would do"
        )
    return word


def _context(
    program: Program, proof: Proof, plan: MemoryMap, settings: EmitSettings, prefix: str, loaded: bool
) -> dict[str, Any]:
    names = Identifiers()
    descriptions = Descriptions(program, proof, loaded, plan.rooms, plan.stored, plan.behind, names=names)
    symbols = {op.name: names.of(f"op {op.name}") for op in program.ops}
    structs = {op.name: descriptions.of(op) for op in program.ops}
    chains = {bands.ops[0]: names.of(f"stages {bands.ops[0]}") for bands in plan.bands}
    calls = CallWriter(program, plan, symbols, chains)
    text = settings.preprocessing or program.meta.get("preprocessing", "")

    def bytes_in_arena(name: str) -> int:
        spec = program.tensors[name]
        return spec.bytes // spec.shape[0] * plan.stored.get(name, spec.shape[0])

    return {
        "program": program,
        "prefix": prefix,
        "upper": prefix.upper(),
        "digest": program_digest(program),
        "loaded": loaded,
        "constants": descriptions.arrays,
        "runtime": RUNTIME_FOLDER,
        "runtime_sources": [name for name in runtime_files() if name.endswith(".c")],
        "arrays": [
            (name, f"{values.dtype}_t", values.size, rows_of_numbers(values, "    "), _comment(program, name, names))
            for name, values in descriptions.arrays.items()
        ],
        "struct_arrays": descriptions.structs,
        "symbols": symbols,
        "structs": structs,
        "stages": {chains[bands.ops[0]]: stages(program, plan, bands, symbols) for bands in plan.bands},
        "bounds": proof.accumulators,
        "calls": calls.calls(),
        "place": calls.place,
        "bytes_in_arena": bytes_in_arena,
        "plan": plan,
        "alignment": ALIGNMENT,
        **dict(zip(("rows", "columns", "channels"), program.tensors[program.input].shape, strict=True)),
        "output": program.tensors[program.output],
        "lengths": program.tensors[program.lengths],
        # On one line, and nothing that ends the C comment in which it stands.
        "preprocessing": " ".join(text.split()).replace("*/", "* /").replace("/*", "/ *"),
        "pixel_table": next((op for op in program.ops if isinstance(op, InputQuantize)), None),
    }


def _comment(program: Program, name: str, names: Identifiers) -> str:
    """A comment on an array: the constant that it holds."""
    for constant in program.constants():
        if names.of(f"table {constant.key}") == name:
            return f"{constant.key}: {' x '.join(map(str, constant.shape))}, {constant.format}"
    if any(names.of(f"table {op.name}/selected") == name for op in program.ops if isinstance(op, DenseVotes)):
        return "places of the input capsules that vote"
    return "exponents of the output channels"


def _vectors(program: Program, settings: EmitSettings, images: NDArray[np.uint8] | None) -> dict[str, Any]:
    """Images in the device's layout, and the codes and classes that the interpreter finds for them."""
    if settings.vectors < 1:
        raise PlanError(f"export: {settings.vectors} self-test vectors; the rule is at least one")
    if images is None:
        shape = (settings.vectors, *program.image_shape)
        images = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    elif images.ndim != 4 or len(images) < 1:
        raise DataError(f"export: images of shape {images.shape}; the rule is (images, channels, rows, columns)")
    images = images[: settings.vectors]
    outcome = interpreter.run(program, images)
    return {
        "vectors": images,
        "vector_images": [rows_of_numbers(image.reshape(-1), " " * 8) for image in images.transpose(0, 2, 3, 1)],
        "vector_capsules": [rows_of_numbers(codes.reshape(-1), " " * 8) for codes in outcome.capsules],
        "vector_classes": outcome.predictions.tolist(),
    }
