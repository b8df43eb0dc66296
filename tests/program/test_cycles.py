"""How long an image takes: work counted by hand, the table that its record gives, and what does not fit."""

import json
from dataclasses import astuple
from pathlib import Path

import pytest

from caplet.program import plan_memory
from caplet.program.cycles import DEVICES, TABLES, Counts, device_times, work
from caplet.program.ops import Conv2d, DenseVotes, Routing
from sample_programs import SampleSettings, sample_backbone, sample_deep, sample_shallow

RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"


def test_work_of_a_small_network() -> None:
    program = sample_shallow(0, SampleSettings(5, 8))
    convs = [op for op in program.ops if isinstance(op, Conv2d)]
    (votes,) = [op for op in program.ops if isinstance(op, DenseVotes)]
    (routing,) = [op for op in program.ops if isinstance(op, Routing)]
    stored, made = work(program, plan_memory(program)), work(program, plan_memory(program, "small"))
    outputs = [program.tensors[op.output] for op in convs]
    assert stored.conv == sum(spec.elements * op.weight.codes[0].size for op, spec in zip(convs, outputs, strict=True))
    assert (stored.votes, made.votes) == (votes.weight.codes.size, routing.iterations * votes.weight.codes.size)
    assert stored.routing == made.routing == (2 * routing.iterations - 1) * program.tensors[routing.votes].elements
    assert stored.logits == (routing.iterations - 1) * program.tensors[routing.coupling].elements
    assert stored.unpacked == sum(op.weight.codes.size for op in (*convs, votes))
    assert work(sample_shallow(0), plan_memory(sample_shallow(0))).unpacked == 0, "8 bits are read as they lie"


@pytest.mark.parametrize("make", [sample_deep, sample_backbone])
def test_every_kind_of_network_has_times(make: object) -> None:
    program = make(1)  # type: ignore[operator]
    for time in device_times(program):
        assert time.milliseconds is not None
        assert 0 < time.milliseconds < 1000
    assert min(astuple(work(program, plan_memory(program, "small")))) >= 0


def test_the_table_is_that_of_its_record() -> None:
    record = json.loads(max(RECORDS.glob("*-device-cycles.json")).read_text())
    assert TABLES["cycles"].keys() == record["fits"].keys()
    for core, table in TABLES["cycles"].items():
        assert table == [float(f"{value:.3g}") for value in record["fits"][core]["cycles_per_unit"]]
        for row in record["rows"]:
            if row["core"] == core:
                cycles = sum(a * b for a, b in zip(table, astuple(Counts(**row["work"])), strict=True))
                assert cycles == pytest.approx(row["cycles_per_image"], rel=0.25)
        assert not any(row["differing_codes"] for row in record["rows"])


def test_devices_are_those_that_the_table_knows() -> None:
    assert {device.core for device in DEVICES} <= TABLES["cores"].keys()
    assert {like for like, _ in TABLES["cores"].values()} == TABLES["cycles"].keys()
    assert [device.flash for device in DEVICES] == sorted(device.flash for device in DEVICES)
