"""A Program as JSON, without the codes of its constants: the readable part of a ``.caplet`` file.

Every field of every op is written under its own name; what a field holds follows from its declared type, so a new op
needs nothing here. Reading accepts exactly what writing produces, and raises ArtefactError for anything else.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, create_model

from caplet.errors import ArtefactError, PlanError
from caplet.fixed.format import AnyFormat, FixedFormat, LogFormat
from caplet.fixed.rounding import Rounding
from caplet.program.op import ALWAYS, LEFT_OUT, OPS, Op
from caplet.program.ops import Conv2d
from caplet.program.program import Program
from caplet.program.tensor import Constant, IntArray, TensorSpec, WideFormat

GROUPED = "grouped_conv2d"
"""How a file calls a Conv2d that is not plain: the kind that such convolutions had when they were ops of their own."""
_KINDS = {**OPS, GROUPED: Conv2d}

CodesOf = Callable[[str, tuple[int, ...], int, bool], IntArray]
"""Key, shape, bits, signed -> the codes of a constant, from the file's packed bytes; raises ArtefactError."""


def format_text(fmt: AnyFormat | WideFormat) -> str:
    """``s8.5``: signed, 8 bits, 5 of them after the point; ``u`` unsigned, ``w`` wide, ``p`` powers of two.

    >>> format_text(FixedFormat(8, 5, True)), format_text(FixedFormat(4, -2, False)), format_text(LogFormat(3, 0))
    ('s8.5', 'u4.-2', 'p3.0')
    """
    if isinstance(fmt, LogFormat):
        return f"p{fmt.bits}.{fmt.max_exponent}"
    kind = "w" if isinstance(fmt, WideFormat) else "s" if fmt.signed else "u"
    return f"{kind}{fmt.bits}.{fmt.frac_bits}"


def _format(text: Any) -> AnyFormat | WideFormat:
    match = re.fullmatch(r"([suwp])([0-9]{1,2})\.(-?[0-9]{1,3})", text, re.ASCII) if isinstance(text, str) else None
    if match is None:
        raise ValueError("one of the letters s, u, w, p, then bits, '.', exponent")
    kind, bits, exponent = match[1], int(match[2]), int(match[3])
    try:
        if kind == "w":
            return WideFormat(bits, exponent)
        return LogFormat(bits, exponent) if kind == "p" else FixedFormat(bits, exponent, kind == "s")
    except PlanError as error:
        raise ValueError(str(error)) from None


def _constant(read: tuple[str, tuple[int, ...], AnyFormat | WideFormat], info: Any) -> Constant:
    key, shape, fmt = read
    if isinstance(fmt, WideFormat):
        raise ValueError("the format of a constant is not wide")
    try:
        return Constant(key, info.context(key, shape, fmt.bits, fmt.signed), fmt)
    except PlanError as error:
        raise ValueError(str(error)) from None


_LIST = Field(strict=False, max_length=1 << 16)  # JSON has lists for tuples
_Text = Annotated[str, Field(max_length=4096)]
_Integer = Annotated[int, Field(gt=-(1 << 40), lt=1 << 40)]
_Shape = Annotated[tuple[Annotated[int, Field(ge=1, lt=1 << 40)], ...], Field(strict=False, min_length=1, max_length=4)]
_Format = Annotated[Any, PlainValidator(_format)]
_Texts = Annotated[tuple[_Text, ...], _LIST]
_Exponents = Annotated[tuple[Annotated[int, Field(ge=-64, le=64)], ...], _LIST, Field(min_length=1)]
_Tensor = Annotated[tuple[_Text, _Shape, _Format, Annotated[Rounding, Field(strict=False)]], _LIST]
_READ: dict[Any, Any] = {
    str: _Text,
    int: _Integer,
    bool: bool,
    tuple[str, ...]: _Texts,
    tuple[int, ...]: Annotated[tuple[_Integer, ...], _LIST],
    Constant: Annotated[tuple[_Text, _Shape, _Format], Field(strict=False), AfterValidator(_constant)],
    IntArray: Annotated[_Exponents, AfterValidator(lambda exponents: np.array(exponents, dtype=np.int32))],
}
"""By the declared type of an op's field, what a file may hold."""
_WRITE: dict[Any, Callable[[Any], Any]] = {
    **dict.fromkeys((str, int, bool), lambda value: value),
    **dict.fromkeys((tuple[str, ...], tuple[int, ...]), list),
    Constant: lambda constant: [constant.key, list(constant.shape), format_text(constant.format)],
    IntArray: lambda array: array.tolist(),
}


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
        mark = item.metadata.get(LEFT_OUT)
        unwritten = mark == ALWAYS or (bool(mark) and not grouped)
        union = type(item.type) is UnionType
        declared = next(part for part in get_args(item.type) if part is not NoneType) if union else item.type
        yield _Field(item.name, declared, union and not unwritten, item.default, unwritten)


_STRICT = ConfigDict(strict=True, extra="forbid")


def _layout(kind: str, op: type[Op]) -> type[BaseModel]:
    """What a file holds of an op of this kind."""
    members: dict[str, Any] = {"kind": (Literal[kind], ...)}
    for item in _op_fields(op, kind == GROUPED):
        read = _READ[item.declared]
        members[item.name] = (read | None if item.optional else read, item.default if item.unwritten else ...)
    return create_model(kind, __config__=_STRICT, **members)


_LAYOUTS = {kind: _layout(kind, op) for kind, op in _KINDS.items()}


def _op(data: Any, info: Any) -> Op:
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind is {kind!r:.100}, not one of {sorted(_KINDS)}")
    read = _LAYOUTS[kind].model_validate(data, context=info.context)
    op: Op = _KINDS[kind](**{name: value for name, value in read if name != "kind"})
    return op


class _Document(BaseModel):
    """What a file holds of a Program."""

    model_config = _STRICT

    name: _Text
    input: _Text
    output: _Text
    lengths: _Text
    seed: _Integer
    labels: _Texts
    meta: Annotated[dict[_Text, _Text], Field(max_length=1 << 16)]
    tensors: Annotated[tuple[_Tensor, ...], _LIST]
    ops: Annotated[tuple[Annotated[Any, PlainValidator(_op)], ...], _LIST]


def write_program(program: Program) -> dict[str, Any]:
    """The Program as a JSON object; constants are named by key, with shape and format."""
    return {
        **vars(program),
        "labels": list(program.labels),
        "meta": dict(program.meta),
        "tensors": [[t.name, [*t.shape], format_text(t.format), str(t.rounding)] for t in program.tensors.values()],
        "ops": [_write_op(op) for op in program.ops],
    }


def _write_op(op: Op) -> dict[str, Any]:
    grouped = isinstance(op, Conv2d) and not op.plain
    data: dict[str, Any] = {"kind": GROUPED if grouped else op.kind}
    for item in _op_fields(type(op), grouped):
        value = getattr(op, item.name)
        if not item.unwritten or value != item.default:
            data[item.name] = None if value is None else _WRITE[item.declared](value)
    return data


def read_program(data: object, codes_of: CodesOf) -> Program:
    """Undo :func:`write_program`. Raises ArtefactError; does not verify."""
    try:
        read = _Document.model_validate(data, context=codes_of)
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join(("program", *map(str, first["loc"])))
        raise ArtefactError(f"{where}: found {first['input']!r:.100}; {first['msg']}") from None
    tensors = {name: TensorSpec(name, *rest) for name, *rest in read.tensors}
    if len(tensors) < len(read.tensors):
        raise ArtefactError("program: two tensors have one name; names are unique")
    return Program(**{**dict(read), "tensors": tensors})
