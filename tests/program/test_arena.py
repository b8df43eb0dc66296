import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest

from caplet.errors import PlanError
from caplet.fixed import Rounding
from caplet.program import Program, plan_memory, trace, verify
from caplet.program.arena import MemoryMap, Planner, lead
from caplet.program.bands import Bands
from caplet.program.op import Op
from caplet.program.ops import Conv2d, ConvVotes, DenseVotes, MaxPool2d, Routing
from caplet.program.scratch import routing_rows, workspace
from sample_programs import SampleSettings, sample_chain, sample_deep, sample_shallow

PROGRAMS = [
    sample_shallow(),
    sample_shallow(1, SampleSettings(weight_bits=3, activation_bits=4, iterations=1)),
    sample_deep(),
    sample_deep(1, SampleSettings(weight_bits=4, activation_bits=12, log_weights=True)),
    sample_deep(2, SampleSettings(weight_bits=16, activation_bits=16, rounding=Rounding.STOCHASTIC)),
    *(sample_chain(seed) for seed in range(4)),
]
RAM: list[str | int] = ["fast", "small", 1500, 2500, 6000]


def _plan(program: Program, ram: str | int, in_place: bool = True) -> MemoryMap:
    if isinstance(ram, int):
        ram = max(ram, plan_memory(program, "small", in_place=in_place).bytes)
    return plan_memory(program, ram, in_place=in_place)


class Device:
    """Executes a memory plan with the interpreter's tensors: writes every tensor's bytes where the plan says, spoils
    every scratch buffer, and checks that what an op reads is still what was written."""

    def __init__(self, program: Program, plan: MemoryMap) -> None:
        self.program, self.plan = program, plan
        self.memory = np.zeros(plan.bytes, dtype=np.uint8)
        self.rng = np.random.default_rng(0)
        image = self.rng.integers(0, 256, size=(1, *program.image_shape), dtype=np.uint8)
        self.expected = {
            name: self.raw(name, codes[0]) for name, codes in trace(program, image).items() if "[" not in name
        }

    def raw(self, name: str, codes: np.ndarray) -> np.ndarray:
        spec = self.program.tensors[name]
        kind = "i" if spec.format.signed else "u"
        return np.ascontiguousarray(codes.astype(f"<{kind}{spec.element_bytes}")).reshape(-1).view(np.uint8)

    def part(self, name: str, raw: np.ndarray) -> np.ndarray:
        """Of votes, the input capsules that are stored; of any other tensor, everything."""
        if name not in self.plan.stored:
            return raw
        return raw[: raw.size * self.plan.stored[name] // self.program.tensors[name].shape[0]]

    def write(self, name: str, raw: np.ndarray) -> None:
        offset = self.plan.offset(name)
        self.memory[offset : offset + raw.size] = raw

    def check(self, name: str) -> None:
        if name == self.program.input or not self.part(name, self.expected[name]).size:
            return
        raw = self.part(name, self.expected[name])
        offset = self.plan.offset(name)
        np.testing.assert_array_equal(self.memory[offset : offset + raw.size], raw, err_msg=name)

    def spoil(self, name: str, size: int) -> None:
        self.write(name, self.rng.integers(0, 256, size=size, dtype=np.uint8))

    def run(self) -> None:
        program = self.program
        proof = verify(program)
        chains = {name: bands for bands in self.plan.bands for name in bands.ops}
        for op in program.ops:
            if op.name in chains:
                if op.name == chains[op.name].ops[0]:
                    self.run_chain(chains[op.name])
                continue
            made = isinstance(op, Routing) and self.plan.stored[op.votes] < program.tensors[op.votes].shape[0]
            room, whole = self.plan.rooms.get(op.name, 0), op.name in self.plan.behind
            needs = workspace(op, program.tensors, proof, room, made, whole)
            scratch = {f"{op.name}/{what}": size for what, size in needs.items()}
            if (
                isinstance(op, DenseVotes | ConvVotes)
                and self.plan.stored[op.output] < program.tensors[op.output].shape[0]
            ):
                continue  # runs within its routing
            if isinstance(op, Routing):
                votes = program.votes_op(op)
                spec = program.tensors[op.votes]
                if self.plan.stored[op.votes] < spec.shape[0]:
                    inner = workspace(votes, program.tensors, proof, self.plan.rooms.get(votes.name, 0))
                    scratch |= {f"{votes.name}/{what}": size for what, size in inner.items()}
                    rows = routing_rows(spec.shape[1], made=True)
                    scratch[f"{votes.name}/vote_rows"] = rows * spec.bytes // spec.shape[0]
                    self.write_if_stored(op.votes)
                    for name in scratch:
                        self.spoil(name, scratch[name])
                    for name in votes.inputs:
                        self.check(name)
            for name in op.inputs:
                self.check(name)
            for name, size in scratch.items():
                self.spoil(name, size)
            for name in op.inputs:
                self.check(name)
            skip = (op.coupling,) if isinstance(op, Routing) else ()
            written = [name for name in op.outputs if name not in skip]
            for name in written:
                self.write(name, self.part(name, self.expected[name]))
            final = self.plan.offset(written[-1])
            for name in written:  # the activation of a routing may have taken the place of its preactivation
                if name == written[-1] or self.plan.offset(name) != final:
                    self.check(name)
        self.check(program.output)
        self.check(program.lengths)

    def run_chain(self, bands: Bands) -> None:
        """Row by row: every op asks those before it for the rows that it reads."""
        tensors, proof = self.program.tensors, verify(self.program)
        ops = [op for op in self.program.ops if op.name in bands.ops]
        writer = {op.outputs[0]: op for op in ops}
        done, base = {op.name: 0 for op in ops}, {op.name: 0 for op in ops}

        def inside(op: Op) -> bool:
            """Whether it writes over the rows that it reads."""
            return op.inputs[0] in writer and self.plan.offset(op.inputs[0]) == self.plan.offset(op.outputs[0])

        def readers(op: Op) -> list[Op]:
            """Of what is in the buffer that ``op`` starts to fill."""
            name, found = op.outputs[0], [other for other in ops if op.outputs[0] in other.inputs]
            behind = [other for other in found if inside(other) and other.inputs[0] == name]
            return [other for other in found if other not in behind] + [each for one in behind for each in readers(one)]

        def rows_of(op: Op, start: int, end: int) -> tuple[int, int]:
            """First and last row of an input that ``op`` reads for rows start .. end - 1."""
            kernel, stride, padding = 1, 1, 0
            if isinstance(op, Conv2d | MaxPool2d):
                kernel = op.kernel if isinstance(op, MaxPool2d) else op.weight.shape[1]
                stride, padding = op.stride, op.padding
            rows = [row * stride - padding + k for row in range(start, end) for k in range(kernel)]
            within = [row for row in rows if 0 <= row < tensors[op.inputs[0]].shape[0]]
            return (within[0], within[-1] + 1) if within else (0, 0)

        def access(name: str, start: int, end: int, first: int, write: bool) -> None:
            """Rows start .. end - 1 of a tensor whose row ``first`` lies at its place."""
            if name == self.program.input or start == end:
                return
            row = tensors[name].bytes // tensors[name].shape[0]
            place = self.plan.offset(name) + (start - first) * row
            part = self.expected[name][start * row : end * row]
            if write:
                self.memory[place : place + part.size] = part
            else:
                np.testing.assert_array_equal(self.memory[place : place + part.size], part, err_msg=name)

        def make_room(op: Op) -> None:
            """Rows that no reader needs any more give way to the next ones."""
            start, still, name = done[op.name], done[op.name], op.outputs[0]
            while (other := next((each for each in ops if inside(each) and each.inputs[0] == name), None)) is not None:
                name = other.outputs[0]
            for reader in readers(op):
                rest = range(done[reader.name], tensors[reader.outputs[0]].shape[0])
                wanted = [rows_of(reader, row, row + 1) for row in rest] if reader.inputs[0] == name else None
                starts = [first for first, end in wanted if end] if wanted is not None else list(rest)
                still = min([still, *starts])
            access(name, still, start, base[op.name], write=False)
            base[op.name] = still
            access(name, still, start, base[op.name], write=True)

        def need(op: Op, end: int) -> None:
            while done[op.name] < end:
                start = done[op.name]
                stop = min(start + bands.rows, tensors[op.outputs[0]].shape[0])
                reads = {
                    name: rows_of(op, start, stop) if name == op.inputs[0] else (start, stop) for name in op.inputs
                }
                for name, (_, last) in reads.items():
                    if name in writer:
                        need(writer[name], last)
                if inside(op):
                    base[op.name] = base[writer[op.inputs[0]].name]
                elif readers(op):
                    make_room(op)
                scratch = workspace(op, tensors, proof, self.plan.rooms.get(op.name, 0))
                for _ in range(2):  # before scratch is used, and after
                    for name, (first, last) in reads.items():
                        access(name, first, last, base[writer[name].name] if name in writer else 0, write=False)
                    for what, size in scratch.items():
                        self.spoil(f"{op.name}/{what}", size)
                access(op.outputs[0], start, stop, base[op.name], write=True)
                done[op.name] = stop

        need(ops[-1], tensors[ops[-1].outputs[0]].shape[0])
        self.check(ops[-1].outputs[0])

    def write_if_stored(self, name: str) -> None:
        raw = self.part(name, self.expected[name])
        if raw.size:
            self.write(name, raw)


@pytest.mark.parametrize("ram", RAM)
@pytest.mark.parametrize("in_place", [True, False])
def test_no_live_tensor_is_overwritten(ram: str | int, in_place: bool) -> None:
    for program in PROGRAMS:
        Device(program, _plan(program, ram, in_place)).run()


@pytest.mark.parametrize("ram", RAM)
def test_buffers_that_are_live_together_do_not_overlap(ram: str | int) -> None:
    for program in PROGRAMS:
        plan = _plan(program, ram)
        assert all(b.offset % 8 == 0 and b.offset + b.bytes <= plan.bytes for b in plan.buffers)
        for a, b in combinations(plan.buffers, 2):
            together = a.first <= b.last and b.first <= a.last
            apart = a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset
            ops = {op.name: op for op in program.ops}
            over = {(ops[name].inputs[0], ops[name].outputs[0]) for name in plan.behind}
            over |= {(ops[one.ops[0]].inputs[0], ops[one.ops[-1]].outputs[0]) for one in plan.bands if one.over}
            roots = {(plan.shared.get(a, a), plan.shared.get(b, b)) for a, b in over}
            assert apart or not together or (a.name, b.name) in roots or (b.name, a.name) in roots, (a, b)
        used = sum(size for _, size in plan.peak)
        assert used <= plan.bytes
        assert plan.peak == tuple(sorted(plan.peak, key=lambda item: (-item[1], item[0])))


@pytest.mark.parametrize("seed", range(40))
def test_what_is_written_over_an_input_has_been_read(seed: int) -> None:
    """Byte by byte, as the kernels go: four positions are read before their codes are written, of depthwise
    convolutions channel by channel; pools read and write one element after the other."""
    program = sample_chain(seed)
    with patch("caplet.program.arena.segments", lambda *_: ()):
        plan = plan_memory(program, "small")
    for op in program.ops:
        if op.name not in plan.behind:
            continue
        assert isinstance(op, Conv2d | MaxPool2d)
        (rows, columns, depth), (out_rows, out_columns, channels) = (
            program.tensors[n].shape for n in (op.input, op.output)
        )
        distance = plan.offset(op.input) - plan.offset(op.output)
        kernel = op.kernel if isinstance(op, MaxPool2d) else op.weight.shape[1]
        separate = isinstance(op, MaxPool2d) or op.groups > 1
        together = 1 if isinstance(op, MaxPool2d) else 4
        written: set[int] = set()
        for lane in range(channels if separate and together == 4 else 1):
            for first in range(0, out_rows * out_columns, together):
                some = range(first, min(first + together, out_rows * out_columns))
                for position in some:
                    top, left = (at * op.stride - op.padding for at in divmod(position, out_columns))
                    ys = range(max(top, 0), min(top + kernel, rows))
                    xs = range(max(left, 0), min(left + kernel, columns))
                    lanes = [lane] if separate and together == 4 else range(depth)
                    read = {distance + (y * columns + x) * depth + c for y in ys for x in xs for c in lanes}
                    assert not read & written, (op.name, position)
                lanes = [lane] if separate and together == 4 else range(channels)
                written |= {position * channels + c for position in some for c in lanes}


def test_a_chain_of_convolutions_takes_less_than_two_maps() -> None:
    """Two 3x3 convolutions of 16 x 16 x 8 codes: two rows and six positions lie between the maps, at most."""
    program = sample_chain(1)
    for op in program.ops:
        way = lead(op, program.tensors, verify(program))
        if isinstance(op, Conv2d) and op.groups == 1 and op.stride == 1 and way is not None:
            _, columns, depth = program.tensors[op.input].shape
            _, out_columns, channels = program.tensors[op.output].shape
            if depth == channels and out_columns == columns:
                assert 0 < way[0] <= (op.padding * columns + op.padding + 4) * depth, op.name
    with patch("caplet.program.arena.segments", lambda *_: ()):
        plan, proof = plan_memory(program, "small"), verify(program)
    assert plan.bytes < plan_memory(program, "small", proof=proof, in_place=False).bytes
    assert plan.behind
    assert all(size > 0 for size in plan.behind.values())


def test_a_budget_stores_as_many_votes_as_fit() -> None:
    program = sample_shallow(image=(1, 16, 16))
    small, fast = plan_memory(program, "small"), plan_memory(program, "fast")
    inputs = program.tensors["digit.votes"].shape[0]
    assert (small.stored["digit.votes"], fast.stored["digit.votes"]) == (0, inputs)
    assert small.bytes < fast.bytes
    stored = []
    for ram in range(small.bytes, fast.bytes + 64, 64):
        plan = plan_memory(program, ram)
        assert plan.bytes <= ram
        stored.append(plan.stored["digit.votes"])
    assert stored == sorted(stored)
    assert stored[-1] == inputs
    assert len(set(stored)) > 10


@pytest.mark.parametrize(("bits", "primary"), [(9, (4, 8, 5)), (12, (8, 4, 5))])
def test_no_budget_that_stores_no_votes_makes_convolutions_slower_than_the_small_plan_does(
    bits: int, primary: tuple[int, int, int]
) -> None:
    settings = SampleSettings(bias=False, activation_bits=bits)
    program = sample_shallow(0, settings, (1, 28, 28), stem=(16, 7), primary=primary, classes=(10, 6))
    carrying = replace(program.tensors["digit.votes"], rounding=Rounding.CARRY)  # stored whole or not at all
    program = replace(program, tensors={**program.tensors, "digit.votes": carrying})
    planner, small = Planner(program, verify(program), True), plan_memory(program, "small")
    plans = [plan_memory(program, small.bytes * (60 + more) // 60) for more in range(0, 60, 3)]
    assert [plan.bytes for plan in plans if any(plan.stored.values())] == []
    assert max(planner.instructions(plan) for plan in plans) <= planner.instructions(small)


def test_too_small_a_budget_is_refused_with_the_cause() -> None:
    program = sample_shallow()
    with pytest.raises(PlanError, match=r"needs \d+, during (conv1|primary|digit)\S* \(\w+") as refused:
        plan_memory(program, 1)
    need = int(str(refused.value).split("needs ")[1].split(",")[0])
    assert plan_memory(program, need).bytes == need
    assert need <= plan_memory(program, "small").bytes <= need * 33 / 32
    with pytest.raises(PlanError, match=f"needs {need}"):
        plan_memory(program, need - 1)
    with pytest.raises(PlanError, match="'fast', 'small' or a number"):
        plan_memory(program, "tiny")


def test_q7_sized_network_in_small_ram() -> None:
    """The public Q7-CapsNets MNIST network: its authors' code keeps 105 KiB of buffers."""
    settings = SampleSettings(bias=False)
    program = sample_shallow(0, settings, (1, 28, 28), stem=(16, 7), primary=(16, 4, 7), classes=(10, 6))
    plan = plan_memory(program, "small")
    assert plan.bytes == 15640
    assert (plan.peak_op, plan.peak[0]) == ("digit", ("digit.logits", 10240))


def test_in_place_saves_memory_and_the_map_is_json() -> None:
    program = sample_deep()
    shared, separate = plan_memory(program, "small"), plan_memory(program, "small", in_place=False)
    assert shared.bytes <= separate.bytes
    assert not separate.shared
    data = json.loads(json.dumps(shared.to_json()))
    assert data["bytes"] == shared.bytes
    assert data["peak_op"] == shared.peak_op


@pytest.mark.parametrize("sample", [sample_shallow, sample_deep])
def test_the_least_ram_of_a_refusal_is_enough_and_spare_scratch_is_no_peak(sample: Callable[[], Program]) -> None:
    program = sample()
    with pytest.raises(PlanError, match="needs") as caught:
        plan_memory(program, 1)
    found = re.search(r"needs (\d+)", str(caught.value))
    assert found is not None
    least = int(found[1])
    plan = plan_memory(program, least)
    assert plan.bytes <= least  # scratch may shift buffers so that they lie closer
    assert sum(size for _, size in plan.peak) <= least <= plan_memory(program, "small").bytes
    narrow = sample_shallow(0, SampleSettings(weight_bits=3, activation_bits=4))
    assert plan_memory(narrow, "small").peak_op == "digit"  # though scratch of another op fills the same bytes
