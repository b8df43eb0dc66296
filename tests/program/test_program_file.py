import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caplet.errors import ArtefactError, PlanError
from caplet.fixed import Rounding
from caplet.program import Program, dumps, load_program, loads, run, save_program, trace
from caplet.program.document import _READ, _WRITE, _op_fields, write_program
from caplet.program.file import _canonical, _digest
from caplet.program.op import OPS
from sample_programs import SampleSettings, sample_backbone, sample_deep, sample_shallow

SETTINGS = [
    SampleSettings(),
    SampleSettings(weight_bits=3, activation_bits=5, rounding=Rounding.STOCHASTIC),
    SampleSettings(weight_bits=4, activation_bits=6, log_weights=True, channel_shifts=True),
    SampleSettings(weight_bits=16, activation_bits=16, iterations=1, bias=False),
    SampleSettings(weight_bits=5, activation_bits=8, selected=True),
]
SMALL = dumps(sample_deep(1, SampleSettings(channel_shifts=True), image=(1, 4, 4), types=2, dim=2, classes=(2, 2)))


def _same(a: Program, b: Program) -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(3, *a.image_shape), dtype=np.uint8)
    left, right = trace(a, images), trace(b, images)
    assert left.keys() == right.keys()
    for name, codes in left.items():
        np.testing.assert_array_equal(codes, right[name], err_msg=name)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_round_trip(setting: SampleSettings, tmp_path: Path) -> None:
    for program in (sample_shallow(4, setting), sample_deep(4, setting), sample_backbone(4, setting)):
        path = tmp_path / "model.caplet"
        save_program(program, path)
        loaded = load_program(path)
        assert loaded == program
        assert hash(loaded) == hash(program)
        assert dumps(loaded) == path.read_bytes() == dumps(program)
        assert list(loaded.constants()) == list(program.constants())
        assert dict(loaded.tensors) == dict(program.tensors)
        assert (loaded.name, loaded.seed, loaded.output) == (program.name, program.seed, program.output)
        _same(program, loaded)
    assert os.listdir(tmp_path) == ["model.caplet"]


def test_equality_looks_into_arrays() -> None:
    program = sample_shallow(0, SampleSettings(channel_shifts=True))
    op = next(op for op in program.ops if getattr(op, "channel_shifts", None) is not None)
    other = replace(op, channel_shifts=op.channel_shifts + 1)
    assert op == replace(op, channel_shifts=op.channel_shifts.copy())
    assert op != other
    assert op != replace(op, channel_shifts=None)
    assert replace(op, channel_shifts=None) != op
    ops = tuple(other if one is op else one for one in program.ops)
    assert program == replace(program) != replace(program, ops=ops)


def test_only_convolutions_in_groups_or_with_a_limit_have_their_old_kind_in_a_file() -> None:
    document = write_program(sample_backbone())
    kinds = {op["name"]: (op["kind"], op.get("groups"), "high" in op) for op in document["ops"]}
    assert kinds["block2.depthwise"] == ("grouped_conv2d", 6, True)
    assert kinds["block1.conv1"] == ("conv2d", None, False)
    program = loads(dumps(sample_backbone()))
    assert {op.kind for op in program.ops if op.name in ("block2.depthwise", "block1.conv1")} == {"conv2d"}


def test_three_bits_take_three_bits() -> None:
    program = sample_shallow(0, SampleSettings(weight_bits=3))
    stored = safetensors.numpy.load(dumps(program))
    for constant in program.constants():
        assert stored[constant.key].size == (constant.codes.size * constant.format.bits + 7) // 8
    assert sum(part.size for part in stored.values()) == program.flash_bytes


def test_labels_and_meta_survive() -> None:
    program = sample_shallow()
    named = Program(**{**vars(program), "labels": ("a", "b", "ç", "d", "e"), "meta": {"trained on": "digits"}})
    loaded = loads(dumps(named))
    assert (loaded.labels, dict(loaded.meta)) == (named.labels, {"trained on": "digits"})


def test_a_program_that_does_not_verify_is_not_written(tmp_path: Path) -> None:
    broken = Program(**{**vars(sample_shallow()), "seed": -1})
    with pytest.raises(PlanError):
        save_program(broken, tmp_path / "x.caplet")
    assert not os.listdir(tmp_path)


def test_unwritable_and_missing_paths_are_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match="cannot write"):
        save_program(sample_shallow(), tmp_path / "file" / "x.caplet")
    (tmp_path / "file").unlink()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtefactError, match="cannot write"):
        save_program(sample_shallow(), tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(ArtefactError, match="cannot read"):
        load_program(tmp_path / "none.caplet")


def test_every_type_of_op_field_can_be_written_and_read() -> None:
    declared = {item.declared for op in OPS.values() for item in _op_fields(op)}
    assert declared == set(_WRITE) == set(_READ)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _join(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _with_head(head: object) -> bytes:
    header, body = _split(SMALL)
    header["__metadata__"] = {"caplet": head if isinstance(head, str) else json.dumps(head)}
    return _join(header, body)


def _head() -> dict[str, Any]:
    header, _ = _split(SMALL)
    head: dict[str, Any] = json.loads(header["__metadata__"]["caplet"])
    return head


def _sealed(document: Any) -> bytes:
    """A file around ``document`` whose checksum is right, as an attacker would write it."""
    program = loads(SMALL)
    stored = safetensors.numpy.load(SMALL)
    packed = {constant.key: stored[constant.key] for constant in program.constants()}
    return _with_head({"format": 1, "program": document, "sha256": _digest(document, packed)})


def test_the_attackers_seal_is_accepted_for_an_unchanged_document() -> None:
    _same(loads(_sealed(_head()["program"])), loads(SMALL))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "8-byte length"),
        (SMALL[:100], "cut or no .caplet"),
        (b"\xff" * 64, "cut or no .caplet"),
        (SMALL + b"\0", "bytes follow"),
        (SMALL[:-1], "the file is cut"),
        (SMALL[:-1] + bytes([SMALL[-1] ^ 1]), "checksum|unused bits"),
        (_join({}, b""), "no __metadata__"),
        (_join({"__metadata__": {}}, b""), "no text 'caplet'"),
        (_with_head("[" * 100_000), "JSON"),
        (_with_head('{"format": 1, "format": 1}'), "twice"),
        (_with_head('{"format": NaN}'), "not allowed"),
        (_with_head({"format": 2}), "format version 2"),
        (_with_head({**_head(), "sha256": "0"}), "checksum"),
        (_with_head({**_head(), "more": 1}), "format, program, sha256"),
    ],
)
def test_a_damaged_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        loads(data, "x.caplet")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": [-1], "data_offsets": [0, -1]},
        {"dtype": "U8", "shape": [1 << 60], "data_offsets": [0, 1 << 60]},
        {"dtype": "U8", "shape": [1, 1], "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": None, "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": [1]},
        [],
    ],
)
def test_bad_data_entries_are_refused(entry: object) -> None:
    header, body = _split(SMALL)
    header["conv1.weight"] = entry
    with pytest.raises(ArtefactError, match=r"conv1\.weight|follow on byte"):
        loads(_join(header, body))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _paths(item, (*path, key))


def _peak_bytes(data: bytes) -> int:
    """The lesser of two peaks: a tool that measures coverage takes memory for itself now and then."""
    return min(_peak(data), _peak(data))


def _peak(data: bytes) -> int:
    tracemalloc.start()
    try:
        loads(data)
    except ArtefactError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_memory_follows_the_size_of_the_file() -> None:
    huge = [1 << 20, 1 << 20]
    document = _head()["program"]
    shapes = [path for path in PATHS if _is_shape(_at(document, path))]
    assert len(shapes) > 20
    for path in shapes:
        assert _peak_bytes(_sealed(_replaced(document, path, huge))) < 40 * len(SMALL), path
    one_bit = dumps(sample_shallow(0, SampleSettings(weight_bits=1), stem=(64, 3), primary=(16, 8, 5)))
    assert len(one_bit) > 30_000
    # 1-bit codes become 32-bit integers; verification makes one more copy of a constant at a time.
    assert _peak_bytes(one_bit) < 100 * len(one_bit)


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, int) for item in value)


PATHS = sorted(_paths(_head()["program"]), key=str)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.integers(-3, 70),
    st.sampled_from(
        ["", "a", "conv1", "digit.votes", "conv1.weight", "s8.5", "p3.0", "w32.4", "s99.1", "\ud800", "x" * 5000]
    ),
    st.lists(st.integers(-2, 300), max_size=4),
    st.just({}),
)


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=2))
@pytest.mark.slow
def test_a_forged_document_is_refused_or_runs(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Any field replaced by anything, with a right checksum: either ArtefactError, or a Program that runs."""
    document = _head()["program"]
    for path, new in changes:
        try:
            document = _replaced(document, path, new)
        except (KeyError, IndexError, TypeError):
            continue  # the second path went with the first change
    try:
        program = loads(_sealed(document))
    except ArtefactError:
        return
    images = np.zeros((1, *program.image_shape), dtype=np.uint8)
    assert run(program, images).capsules.shape[1:] == program.tensors[program.output].shape


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(SMALL) - 1), st.integers(1, 255)), min_size=1, max_size=4, unique_by=lambda c: c[0]
    )
)
def test_flipped_bytes_never_pass_unnoticed(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for place, mask in changes:
        data[place] ^= mask
    try:
        loaded = loads(bytes(data))
    except ArtefactError:
        return
    # A flip inside JSON escapes or key order cannot occur in canonical text, so what loads is what was written.
    assert dumps(loaded) == SMALL


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(SMALL)))
def test_random_and_cut_files_raise_only_artefact_errors(noise: bytes, cut: int) -> None:
    for data in (noise, SMALL[:cut] + noise, len(noise).to_bytes(8, "little") + noise):
        if data == SMALL:
            continue
        with pytest.raises(ArtefactError):
            loads(data)


def test_canonical_json_is_stable() -> None:
    assert _canonical({"b": 1, "a": ["ç", None, True]}) == '{"a":["\\u00e7",null,true],"b":1}'
