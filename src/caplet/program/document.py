"""A Program as JSON, without the codes of its constants: the readable part of a ``.caplet`` file.

Every field of every op is written under its own name; what a field holds follows from its declared type, so a new op
needs nothing here. Reading accepts exactly what writing produces, and raises ArtefactError for anything else.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args

import numpy as np

from caplet.errors import ArtefactError, PlanError
from caplet.fixed.format import AnyFormat, FixedFormat, LogFormat
from caplet.fixed.rounding import Rounding
from caplet.program.op import ALWAYS, OPS, UNWRITTEN, Op
from caplet.program.ops import Conv2d
from caplet.program.program import Program
from caplet.program.tensor import Constant, IntArray, TensorSpec, WideFormat

MAX_TEXT = 4096
MAX_ITEMS = 1 << 16
GROUPED = "grouped_conv2d"
"""How a file calls a Conv2d that is not plain: the kind that such convolutions had when they were ops of their own."""

CodesOf = Callable[[str, tuple[int, ...], int, bool], IntArray]
"""Key, shape, bits, signed -> the codes of a constant, from the file's packed bytes; raises ArtefactError."""


def write_program(program: Program) -> dict[str, Any]:
    """The Program as a JSON object; constants are named by key, with shape and format."""
    return {
        "name": program.name,
        "input": program.input,
        "output": program.output,
        "lengths": program.lengths,
        "seed": program.seed,
        "labels": list(program.labels),
        "meta": dict(program.meta),
        "tensors": [
            [spec.name, list(spec.shape), format_text(spec.format), str(spec.rounding)]
            for spec in program.tensors.values()
        ],
        "ops": [_write_op(op) for op in program.ops],
    }


def read_program(data: object, codes_of: CodesOf) -> Program:
    """Undo :func:`write_program`. Raises ArtefactError; does not verify."""
    texts = ("name", "input", "output", "lengths")
    read = _object("program", data, {*texts, "seed", "labels", "meta", "tensors", "ops"})
    tensors: dict[str, TensorSpec] = {}
    for index, item in enumerate(_items("program: tensors", read["tensors"])):
        spec = _read_tensor(f"tensor {index}", item)
        if spec.name in tensors:
            raise ArtefactError(f"tensor {index}: the name {spec.name!r} is taken; names are unique")
        tensors[spec.name] = spec
    ops = [_read_op(f"op {index}", item, codes_of) for index, item in enumerate(_items("program: ops", read["ops"]))]
    meta = read["meta"]
    if not isinstance(meta, dict) or len(meta) > MAX_ITEMS:
        raise ArtefactError(f"program: meta is {meta!r:.100}; the rule is an object of texts")
    return Program(
        tensors=tensors,
        ops=tuple(ops),
        seed=_integer("program: seed", read["seed"]),
        labels=tuple(_text("program: label", item) for item in _items("program: labels", read["labels"])),
        meta={_text("program: meta", key): _text("program: meta", value) for key, value in meta.items()},
        **{name: _text(f"program: {name}", read[name]) for name in texts},
    )


def _object(where: str, data: object, keys: set[str]) -> dict[str, Any]:
    """``data`` as a JSON object that has exactly the given keys."""
    if not isinstance(data, dict) or set(data) != keys:
        found = sorted(data)[:20] if isinstance(data, dict) else type(data).__name__
        raise ArtefactError(f"{where}: found {found!r:.300}; the rule is exactly the fields {sorted(keys)}")
    return data


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or any("\ud800" <= c <= "\udfff" for c in value):
        raise ArtefactError(f"{where}: found {value!r:.100}; the rule is a text of at most {MAX_TEXT} characters")
    return value


def _integer(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 40:
        raise ArtefactError(f"{where}: found {value!r:.100}; the rule is an integer below 2**40")
    return value


def _boolean(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ArtefactError(f"{where}: found {value!r:.100}; the rule is true or false")
    return value


def _items(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise ArtefactError(f"{where}: found {value!r:.100}; the rule is a list of at most {MAX_ITEMS}")
    return value


def _shape(where: str, value: Any) -> tuple[int, ...]:
    shape = _integers(where, value)
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise ArtefactError(f"{where}: found {value!r:.100}; the rule is one to four extents of at least 1")
    return shape


def format_text(fmt: AnyFormat | WideFormat) -> str:
    """``s8.5``: signed, 8 bits, 5 of them after the point; ``u`` unsigned, ``w`` wide, ``p`` powers of two.

    >>> format_text(FixedFormat(8, 5, True)), format_text(FixedFormat(4, -2, False)), format_text(LogFormat(3, 0))
    ('s8.5', 'u4.-2', 'p3.0')
    """
    if isinstance(fmt, LogFormat):
        return f"p{fmt.bits}.{fmt.max_exponent}"
    kind = "w" if isinstance(fmt, WideFormat) else "s" if fmt.signed else "u"
    return f"{kind}{fmt.bits}.{fmt.frac_bits}"


def _read_format(where: str, value: Any, kinds: str) -> Any:
    match = re.fullmatch(r"([suwp])([0-9]{1,2})\.(-?[0-9]{1,3})", value, re.ASCII) if isinstance(value, str) else None
    if match is None or match[1] not in kinds:
        raise ArtefactError(f"{where}: format {value!r:.100}; the rule is a letter of {kinds!r}, bits, '.', exponent")
    kind, bits, exponent = match[1], int(match[2]), int(match[3])
    try:
        if kind == "w":
            return WideFormat(bits, exponent)
        return LogFormat(bits, exponent) if kind == "p" else FixedFormat(bits, exponent, kind == "s")
    except PlanError as error:
        raise ArtefactError(f"{where}: {error}") from None


def _record(where: str, value: Any, names: tuple[str, ...]) -> list[Any]:
    """A list with one item for each of ``names``."""
    items = _items(where, value)
    if len(items) != len(names):
        raise ArtefactError(f"{where}: found {value!r:.100}; the rule is the list [{', '.join(names)}]")
    return items


def _read_tensor(where: str, data: object) -> TensorSpec:
    name, shape, fmt, rounding = _record(where, data, ("name", "shape", "format", "rounding"))
    if rounding not in list(Rounding):
        raise ArtefactError(f"{where}: rounding is {rounding!r:.100}; the rule is one of {[str(r) for r in Rounding]}")
    parsed = _read_format(where, fmt, "suw")
    return TensorSpec(_text(f"{where}: name", name), _shape(f"{where}: shape", shape), parsed, Rounding(rounding))


def _write_constant(constant: Constant) -> list[Any]:
    return [constant.key, list(constant.shape), format_text(constant.format)]


def _read_constant(where: str, data: object, codes_of: CodesOf) -> Constant:
    key, shape, fmt = _record(where, data, ("key", "shape", "format"))
    key, shape, fmt = _text(f"{where}: key", key), _shape(f"{where}: shape", shape), _read_format(where, fmt, "sup")
    try:
        return Constant(key, codes_of(key, shape, fmt.bits, fmt.signed), fmt)
    except PlanError as error:
        raise ArtefactError(f"{where}: {error}") from None


def _read_exponents(where: str, value: Any) -> IntArray:
    exponents = _integers(where, value)
    if not exponents or max(map(abs, exponents)) > 64:
        raise ArtefactError(f"{where}: the rule is at least one exponent, of magnitude at most 64")
    return np.array(exponents, dtype=np.int32)


def _texts(where: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(where, item) for item in _items(where, value))


def _integers(where: str, value: Any) -> tuple[int, ...]:
    return tuple(_integer(where, item) for item in _items(where, value))


_WRITE: dict[Any, Callable[[Any], Any]] = {
    **dict.fromkeys((str, int, bool), lambda value: value),
    **dict.fromkeys((tuple[str, ...], tuple[int, ...]), list),
    Constant: _write_constant,
    IntArray: lambda array: array.tolist(),
}
_READ: dict[Any, Callable[..., Any]] = {
    str: _text,
    int: _integer,
    bool: _boolean,
    tuple[str, ...]: _texts,
    tuple[int, ...]: _integers,
    Constant: _read_constant,
    IntArray: _read_exponents,
}
"""``(where, value)`` -> the value of a field of this type; for constants also the codes of the file."""


class _Field(NamedTuple):
    """A field of an op: its declared type without ``| None``, whether None is written, and its default, if it has one.

    unwritten: the file leaves the field out where it has its default.
    """

    name: str
    declared: Any
    optional: bool
    default: Any
    unwritten: bool


def _op_fields(op: type[Op], grouped: bool = False) -> Iterator[_Field]:
    """grouped: of the kind :data:`GROUPED`, in which every field is written that is not marked ALWAYS."""
    for item in fields(op):  # type: ignore[arg-type]  # every op is a dataclass
        mark = item.metadata.get(UNWRITTEN)
        unwritten = mark == ALWAYS or (bool(mark) and not grouped)
        union = type(item.type) is UnionType
        declared = next(part for part in get_args(item.type) if part is not NoneType) if union else item.type
        yield _Field(item.name, declared, union and not unwritten, item.default, unwritten)


def _write_op(op: Op) -> dict[str, Any]:
    grouped = isinstance(op, Conv2d) and not op.plain
    data: dict[str, Any] = {"kind": GROUPED if grouped else op.kind}
    for item in _op_fields(type(op), grouped):
        value = getattr(op, item.name)
        if not item.unwritten or value != item.default:
            data[item.name] = None if value is None else _WRITE[item.declared](value)
    return data


def _read_op(where: str, data: object, codes_of: CodesOf) -> Op:
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or (kind not in OPS and kind != GROUPED):
        raise ArtefactError(f"{where}: kind is {kind!r:.100}; the rule is one of {sorted((*OPS, GROUPED))}")
    op = Conv2d if kind == GROUPED else OPS[kind]
    fields = _op_fields(op, kind == GROUPED)
    layout = [item for item in fields if not item.unwritten or item.name in data]  # type: ignore[operator]  # a dict
    read = _object(f"{where} ({kind})", data, {"kind", *(item.name for item in layout)})
    values: dict[str, Any] = {}
    for item in layout:
        arguments = f"{where} ({kind}): {item.name}", read[item.name], *([codes_of] * (item.declared is Constant))
        absent = item.optional and read[item.name] is None
        values[item.name] = None if absent else _READ[item.declared](*arguments)
    return op(**values)
