"""The house as docs/design.md draws it: who imports whom, what works without torch, and that no handler is missing."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

import caplet

SOURCE = Path(caplet.__file__).parent
DESIGN = Path(__file__).parents[1] / "docs" / "design.md"
TOP = "the package"
"""``caplet/__init__.py``."""


def _module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


@cache
def _allowed() -> dict[str, set[str]]:
    """The import table of docs/design.md: room -> rooms that it may import."""
    block = re.search(r"```imports\n(.*?)```", DESIGN.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None, f"{DESIGN} has no import table"
    return {room.strip(): set(rooms.split()) for room, rooms in (line.split(":") for line in block[1].splitlines())}


@cache
def _room(module: str) -> str:
    """The room of a module: the longest name of the table that it starts with, else its first part."""
    if module == "caplet":
        return TOP
    place = module.removeprefix("caplet.")
    rooms = [room for room in _allowed() if f"{place}.".startswith(f"{room}.")]
    return max(rooms, key=len, default=place.split(".")[0])


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(module: str, *, typing_only: bool = True) -> Iterator[str]:
    """Modules of caplet that ``module`` imports anywhere; without ``typing_only`` none that only type checkers see."""
    stack: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while stack:
        node = stack.pop()
        if _is_type_checking(node) and not typing_only:
            continue
        stack.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import; write the whole name"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in whole]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "caplet")


def test_the_import_table_knows_every_room_and_goes_one_way() -> None:
    allowed = _allowed()
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py" and name != "caplet"}
    rooms = {_room(module) for module in MODULES if module not in packages} - {TOP}
    assert rooms <= set(allowed), f"rooms that docs/design.md does not mention: {rooms - set(allowed)}"
    below: set[str] = set()
    for room, may in allowed.items():
        assert may <= below, f"docs/design.md lets {room} import {sorted(may - below)}, which stand above it"
        below.add(room)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "caplet"])
def test_no_upward_import(module: str) -> None:
    room = _room(module)
    if room not in _allowed():  # the empty __init__.py of a package of rooms
        assert list(_imports(module)) == []
        return
    wrong = sorted(name for name in _imports(module) if _room(name) not in {room, *_allowed()[room]})
    assert not wrong, f"{module} imports {wrong}; docs/design.md allows {room} only {sorted(_allowed()[room])}"


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    assert set(_imports("caplet", typing_only=False)) <= {"caplet.version"}


def test_no_cycle_of_modules() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for name in sorted(set(_imports(module, typing_only=False))):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert done == set(MODULES)


def _fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_fixed_program_and_runtime_import_without_torch() -> None:
    wanted = [name for name in MODULES if _room(name) in ("fixed", "program", "runtime", "quant.choices")]
    assert len(wanted) > 20
    code = f"""
import importlib, sys
sys.modules["torch"] = None
for name in {wanted}:
    importlib.import_module(name)
"""
    done = _fresh(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments", [None, ["--version"], ["--help"], *([c, "--help"] for c in ("quantize", "train", "eval", "inspect"))]
)
def test_a_light_start(arguments: list[str] | None) -> None:
    """``import caplet``, the version and every help text come without torch (and numpy's heavy friends)."""
    heavy = ("torch", "scipy", "sklearn", "matplotlib", "h5py", "PIL")
    code = f"""
import sys
import caplet
arguments = {arguments}
if arguments is not None:
    from caplet.cli import main
    sys.argv = ["caplet", *arguments]
    try:
        main()
    except SystemExit as error:
        assert not error.code, error.code
found = [name for name in {heavy} if name in sys.modules]
assert not found, found
"""
    done = _fresh(code)
    assert done.returncode == 0, done.stderr
    assert arguments is None or done.stdout.strip()


def _subclasses(kind: type) -> Iterator[type]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def test_every_layer_type_has_a_lowering_handler() -> None:
    import caplet.nn
    from caplet.lower.handlers import HANDLERS
    from caplet.nn.layer import Layer

    for module in pkgutil.iter_modules(caplet.nn.__path__, "caplet.nn."):
        importlib.import_module(module.name)
    classes = {kind for kind in _subclasses(Layer) if kind.__module__.startswith("caplet.")}
    layers = {kind for kind in classes if not classes & set(kind.__subclasses__())}  # not what others are made of
    assert len(layers) >= 6
    missing = sorted(kind.__name__ for kind in layers - set(HANDLERS))
    assert not missing, f"layers of caplet.nn that caplet.lower.handlers does not handle: {missing}"
    assert set(HANDLERS) <= layers


def test_every_op_is_handled_everywhere() -> None:
    """OPS names every op, and the interpreter, the verifier, its bounds, the file, C and ONNX know each."""
    from caplet.program.bounds import BOUNDS
    from caplet.program.c.describe import DESCRIPTORS
    from caplet.program.document import _READ, _WRITE, _op_fields
    from caplet.program.interpreter import INTERPRET
    from caplet.program.onnx.qdq import QDQ
    from caplet.program.onnx.translate import TRANSLATIONS
    from caplet.program.op import OPS, Op
    from caplet.program.verify import CHECKS

    concrete = {kind for kind in _subclasses(Op) if "kind" in vars(kind)}
    assert set(OPS.values()) == concrete
    assert len(OPS) >= 9
    assert all(op.kind == kind for kind, op in OPS.items())
    for functions in (INTERPRET, CHECKS, BOUNDS, DESCRIPTORS, TRANSLATIONS, QDQ):
        assert set(functions) == concrete, functions.what
    for op in concrete:
        declared = list(_op_fields(op))
        assert [item.name for item in declared] == [item.name for item in fields(op)]
        for name, kind in ((item.name, item.declared) for item in declared):
            assert kind in _READ, f"file: {op.__name__}.{name} is a {kind}, which cannot be read"
            assert kind in _WRITE, f"file: {op.__name__}.{name} is a {kind}, which cannot be written"


def test_every_op_has_a_c_function_and_a_file() -> None:
    from caplet.program.c.structure import runtime_files
    from caplet.program.op import OPS

    sources = runtime_files()
    for kind in OPS:
        assert f"{kind}.c" in sources, f"the C runtime has no {kind}.c"
        assert f"caplet_{kind}" in sources[f"{kind}.c"]
        assert f"caplet_{kind}" in sources["caplet.h"]


def test_no_public_name_is_a_sub_package() -> None:
    """``import caplet.train.loop`` sets ``caplet.train``; a function of that name would be gone."""
    assert not set(caplet.__all__) & {_room(module) for module in MODULES}


def test_test_files_have_names_of_their_own() -> None:
    """Test folders are no packages, so pytest cannot tell two files of one name apart and collects nothing at all."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, f"several test files are called {', '.join(twice)}; give each a name of its own"
