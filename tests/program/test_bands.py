from unittest.mock import patch

import pytest
from test_arena import Device

from caplet.program import Program, plan_memory, verify
from caplet.program.arena import MemoryMap
from caplet.program.bands import RowWindow, held_rows, runs
from caplet.program.ops import Add, ChannelAffine, LeakyRelu, MaxPool2d, Squash
from sample_programs import least_ram, sample_chain, sample_shallow, sample_trunk


def without_bands(program: Program) -> MemoryMap:
    with patch("caplet.program.arena.segments", lambda *_: ()):
        return plan_memory(program, "small")


@pytest.mark.parametrize("seed", range(16))
def test_rows_are_there_when_they_are_read(seed: int) -> None:
    program = (sample_trunk, sample_chain)[seed % 2](seed)
    ram = least_ram(program)
    for plan in (plan_memory(program, ram), plan_memory(program, ram * 5 // 4), plan_memory(program, "small")):
        Device(program, plan).run()
    assert plan_memory(program, ram).bands, "another seed, please"


def test_all_kinds_of_ops_occur_in_chains() -> None:
    kinds = set()
    for seed in range(0, 12, 2):
        program = sample_trunk(seed)
        names = {name for bands in plan_memory(program, least_ram(program)).bands for name in bands.ops}
        kinds |= {type(op) for op in program.ops if op.name in names}
    assert kinds >= {Add, ChannelAffine, LeakyRelu, MaxPool2d, Squash}


def test_a_reader_of_three_rows_holds_three() -> None:
    reader = RowWindow(kernel=3, stride=1, padding=1, in_rows=16, out_rows=16)
    assert [held_rows(reader, rows) for rows in (1, 2, 4, 16)] == [3, 5, 9, 16]
    assert held_rows(RowWindow(3, 2, 1, 16, 8), 1) == 3
    assert held_rows(RowWindow(1, 1, 0, 16, 16), 1) == 1
    assert held_rows(RowWindow(9, 2, 0, 20, 6), 1) == 9


def test_bands_are_for_little_ram_only() -> None:
    program = sample_shallow(image=(1, 24, 24), stem=(16, 5), primary=(4, 4, 5))
    plain = without_bands(program)
    assert not plan_memory(program, plain.bytes).bands
    assert not plan_memory(program, "fast").bands
    assert not plan_memory(program, "small", in_place=False).bands
    less = plan_memory(program, plain.bytes // 2)
    assert less.bytes <= plain.bytes // 2
    (bands,) = less.bands
    assert bands.ops[-2:] == ("conv1", "primary")
    assert 5 <= bands.held["conv1.activation"] < 20
    assert bands.cost > 0
    assert less.to_json()["bands"][0]["held"] == dict(bands.held)
    assert plan_memory(program, "small").bytes < plain.bytes * 7 // 8


def test_a_tensor_that_is_read_twice_stays_whole() -> None:
    for seed in range(4):
        program = sample_trunk(seed)
        readers = [name for op in program.ops for name in op.inputs]
        for bands in plan_memory(program, least_ram(program), proof=verify(program)).bands:
            assert all(readers.count(name) == 1 for name in bands.held)
        for first, last in runs(program):
            written = {op.outputs[0] for op in program.ops[first:last]}
            assert all(readers.count(name) == 1 for name in written)
