from unittest.mock import patch

import pytest
from test_arena import Device

from caplet.program import Program, plan_memory
from caplet.program.arena import MemoryMap
from caplet.program.bands import RowStage, RowWindow, segments, turns
from caplet.program.ops import (
    Add,
    ChannelAffine,
    Conv2d,
    ConvVotes,
    DenseVotes,
    InputQuantize,
    LeakyRelu,
    MaxPool2d,
    Squash,
)
from sample_programs import least_ram, plan_in_bands, sample_chain, sample_deep, sample_shallow, sample_trunk


def without_bands(program: Program) -> MemoryMap:
    with patch("caplet.program.arena.segments", lambda *_: ()):
        return plan_memory(program, "small")


@pytest.mark.parametrize("seed", range(18))
def test_rows_are_there_when_they_are_read(seed: int) -> None:
    program = (sample_trunk, sample_chain, sample_deep)[seed % 3](seed)
    for number in range(3):
        plan = plan_in_bands(program, 3 * seed + number)
        assert plan.bands
        Device(program, plan).run()
    Device(program, plan_memory(program, least_ram(program))).run()


def test_all_kinds_of_ops_occur_in_chains() -> None:
    programs = [sample_trunk(seed) for seed in range(6)]
    kinds = {type(op) for program in programs for chain in segments(program) for op in chain.ops(program)}
    assert kinds == {Add, ChannelAffine, Conv2d, InputQuantize, LeakyRelu, MaxPool2d, Squash}


def held_rows(reader: RowWindow, rows: int) -> int:
    """Rows that are held between two ops."""
    writer = RowWindow(1, 1, 0, reader.in_rows, reader.in_rows)
    return turns((RowStage(writer, -1, -1, False), RowStage(reader, 0, -1, False)), rows).held[0]


def test_a_reader_of_three_rows_holds_three() -> None:
    reader = RowWindow(kernel=3, stride=1, padding=1, in_rows=16, out_rows=16)
    assert [held_rows(reader, rows) for rows in (1, 2, 4, 16)] == [3, 5, 9, 16]
    assert held_rows(RowWindow(3, 2, 1, 16, 8), 1) == 3
    assert held_rows(RowWindow(1, 1, 0, 16, 16), 1) == 1
    assert held_rows(RowWindow(9, 2, 0, 20, 6), 1) == 9


def test_a_sum_keeps_the_rows_that_it_is_still_to_add() -> None:
    """A map is read by a 3x3 convolution and by the sum of it and what two more make: their rows lie three apart."""
    same, three = RowWindow(1, 1, 0, 16, 16), RowWindow(3, 1, 1, 16, 16)
    convolutions = [RowStage(three, index, -1, False) for index in range(3)]
    stages = (RowStage(same, -1, -1, False), *convolutions, RowStage(same, 3, 0, True))
    assert turns(stages, 1).held[:3] == (4, 3, 3)


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


def test_residual_blocks_are_in_chains_with_their_sums() -> None:
    """A map that both branches read is held in rows, too; a map that votes is whole."""
    program, sums = sample_deep(), 0
    ops = {op.name: op for op in program.ops}
    kept = {name for op in program.ops if isinstance(op, DenseVotes | ConvVotes) for name in op.inputs}
    for chain in segments(program):
        inner = {name for op in chain.ops(program)[:-1] for name in op.outputs}
        readers = {op.name for op in program.ops if inner & set(op.inputs)}
        assert readers <= {op.name for op in chain.ops(program)}
        assert not inner & kept
        sums += ops["block1"] in chain.ops(program) and "block1.l1.activation" in inner
    assert sums > 0
