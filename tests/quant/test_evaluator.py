"""The evaluator: suffix-only answers equal full ones, limits hold, and a log replaces computing."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caplet.errors import ArtefactError, ConfigError, ModelError, PlanError
from caplet.fixed import FixedFormat, Rounding
from caplet.models.cost import stage_macs
from caplet.quant.measure.early_decision import EarlyRule
from caplet.quant.measure.evaluator import Evaluator, predict
from caplet.quant.measure.log import MeasuredImages
from caplet.quant.measure.staged import StateCache, decode_state, encode_state
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import Widths, group_units, make_plan, uniform_plan
from caplet.workers.team import Team, forget


def evaluator(case: Any, **settings: Any) -> Evaluator:
    return Evaluator(case.model, case.images, case.labels, **{"batch_size": 64, **settings})


def uniform(case: Any, width: int, **more: Any) -> QuantPlan:
    return uniform_plan(case.model, case.calibration, width, **more)


def random_plans(case: Any, count: int, seed: int) -> list[QuantPlan]:
    """A walk: each plan changes some widths of the one before, in random groups."""
    draw = random.Random(seed)
    units = group_units(case.model)
    widths, rounding = Widths.uniform(units, 8), Rounding.NEAREST
    plans = []
    for _ in range(count):
        rounding = draw.choice(list(Rounding)) if draw.random() < 0.2 else rounding
        widths = widths.with_width(draw.randrange(len(units)), draw.randint(3, 12))
        plans.append(make_plan(case.calibration, units, widths, rounding=rounding, seed=1))
    return plans


@pytest.mark.parametrize("cache_bytes", [0, 300_000, 1 << 30])
def test_any_sequence_of_plans_gives_the_full_evaluation_s_answers(case: Any, cache_bytes: int) -> None:
    shared = evaluator(case, cache_bytes=cache_bytes)
    plans = random_plans(case, 12, seed=4)
    for plan in plans:
        full = evaluator(case, cache_bytes=0).evaluate(plan)
        found = shared.evaluate(plan)
        assert np.array_equal(found.correct_images, full.correct_images)
        assert full.cost == 1.0
        assert 0 <= found.cost <= 1.0
        assert shared._observer.stages.cache.bytes <= cache_bytes
    assert shared.measured == len(set(plans))
    assert shared.spent <= len(set(plans))
    assert (shared.spent < len(set(plans))) == (cache_bytes == 1 << 30) or cache_bytes == 300_000


def test_only_stages_after_a_change_are_computed(digits: Any) -> None:
    shared = evaluator(digits)
    macs = stage_macs(digits.model)
    first = shared.evaluate(uniform(digits, 8))
    assert first.cost == 1.0
    points = uniform(digits, 8).points
    last = shared.evaluate(uniform(digits, 8).with_formats({"digit.votes": FixedFormat(5, 4, True)}))
    assert last.cost == pytest.approx(macs[3] / sum(macs))
    middle = uniform(digits, 8).with_formats({"primary.weight": replace(points["primary.weight"], bits=7)})
    assert shared.evaluate(middle).cost == pytest.approx((macs[2] + macs[3]) / sum(macs))
    assert shared.evaluate(uniform(digits, 8)).cost == 0
    assert shared.spent == pytest.approx(1.0 + last.cost + (macs[2] + macs[3]) / sum(macs))


def test_float_result_and_accuracy(digits: Any) -> None:
    with torch.no_grad():
        expected = predict(digits.model(digits.images.float() / 255)) == digits.labels
    probe = evaluator(digits).float_result()
    assert np.array_equal(probe.correct_images, expected.numpy())
    assert (probe.n, probe.correct) == (300, int(expected.sum()))
    assert probe.accuracy == probe.correct / 300 > 0.9


def test_ties_go_to_the_first_class() -> None:
    assert predict(torch.tensor([[[0.5, 0.5], [0.5, 0.5], [0.1, 0.0]]])).tolist() == [0]
    near = torch.tensor([[[0.50000001], [0.5]], [[0.25], [-0.5]]])
    assert predict(near).tolist() == [0, 1]


def test_a_log_answers_without_computing(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    plans = random_plans(digits, 4, seed=1)
    first = evaluator(digits, log_path=path)
    answers = [first.float_result(), *map(first.evaluate, plans)]
    again = evaluator(digits, log_path=path)
    replayed = [again.float_result(), *map(again.evaluate, plans)]
    assert again.spent == 0.0
    for one, other in zip(answers, replayed, strict=True):
        assert other.cost == 0
        assert np.array_equal(one.correct_images, other.correct_images)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["n"] == 300
    assert [line["digest"] for line in lines[1:]] == ["float", *(plan.digest() for plan in plans)]
    assert QuantPlan.from_json(lines[2]["plan"]) == plans[0]
    assert set(lines[2]["widths"]) == {"conv1", "primary", "digit"}
    assert lines[2]["correct"] == answers[1].correct


def test_a_cut_off_line_is_measured_again(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    first = evaluator(digits, log_path=path)
    first.evaluate(uniform(digits, 8))
    first.evaluate(uniform(digits, 7))
    path.write_bytes(path.read_bytes()[:-20])
    again = evaluator(digits, log_path=path)
    assert again.evaluate(uniform(digits, 8)).cost == 0
    assert again.evaluate(uniform(digits, 7)).cost > 0
    assert evaluator(digits, log_path=path).evaluate(uniform(digits, 7)).cost == 0


def test_a_log_of_something_else_is_refused(digits: Any, deep: Any, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    evaluator(digits, log_path=path)
    with pytest.raises(ArtefactError, match="another images"):
        Evaluator(digits.model, digits.images[:-1], digits.labels[:-1], log_path=path)
    with pytest.raises(ArtefactError, match="another family"):
        evaluator(deep, log_path=path)
    with pytest.raises(ArtefactError, match="another batch_size"):
        evaluator(digits, log_path=path, batch_size=30)
    path.write_text(path.read_text() + '{"digest": "x"}\n')
    with pytest.raises(ArtefactError, match="line 2: not an evaluation"):
        evaluator(digits, log_path=path)
    path.write_text("garbage\n")
    with pytest.raises(ArtefactError, match="line 1: not JSON"):
        evaluator(digits, log_path=path)
    with pytest.raises(ArtefactError, match="cannot write"):
        evaluator(digits, log_path=path / "below" / "a-file")


def test_an_interruption_leaves_everything_usable(digits: Any, tmp_path: Path) -> None:
    class Stop(KeyboardInterrupt):
        pass

    def stop(done: int, total: int) -> None:
        if done > 100:
            raise Stop

    path = tmp_path / "probes.jsonl"
    interrupted = evaluator(digits, log_path=path, progress=stop)
    with pytest.raises(Stop):
        interrupted.evaluate(uniform(digits, 8))
    assert all(layer.handler is None for layer in digits.model.layers())
    interrupted._progress = None
    found = interrupted.evaluate(uniform(digits, 8))
    assert found.cost > 0
    assert np.array_equal(found.correct_images, evaluator(digits).evaluate(uniform(digits, 8)).correct_images)
    assert len(path.read_text().splitlines()) == 2


def test_bad_settings(digits: Any, deep: Any) -> None:
    with pytest.raises(ConfigError, match="0 images"):
        Evaluator(digits.model, digits.images[:0], digits.labels[:0])
    with pytest.raises(ConfigError, match="299 labels"):
        Evaluator(digits.model, digits.images, digits.labels[1:])
    with pytest.raises(ConfigError, match="batch size 0"):
        evaluator(digits, batch_size=0)
    with pytest.raises(ModelError, match="1x8x8"):
        Evaluator(digits.model, deep.images, deep.labels)
    with pytest.raises(PlanError, match="misses"):
        evaluator(digits).evaluate(QuantPlan({}))


@pytest.mark.parametrize("fmt", [FixedFormat(b, 5, s) for b in (1, 7, 8, 9, 16) for s in (True, False)])
def test_states_come_back_bit_for_bit_in_their_layout(fmt: FixedFormat) -> None:
    codes = torch.linspace(fmt.min_code, fmt.max_code, 240).round().to(torch.int32).reshape(2, 3, 4, 10)
    value = fmt.decode(codes).contiguous(memory_format=torch.channels_last)
    stored = encode_state((value,), (fmt,))
    assert stored[0].element_size() == (1 if fmt.bits <= 8 else 2)
    (back,) = decode_state(stored, (fmt,))
    assert torch.equal(back, value)
    assert back.stride() == value.stride()


def test_the_cache_drops_the_least_recently_used() -> None:
    def codes(size: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(size, dtype=torch.int8),)

    cache = StateCache(100)
    for key in "abc":
        assert cache.add(key, 0, codes(30))
    assert cache.get("a", 0) is not None
    assert cache.get("a", 1) is None
    assert not cache.add("d", 0, codes(80), "a")
    assert not cache.add("a", 0, codes(1)), "it is there"
    assert all(key in cache for key in "abc")
    assert cache.add("d", 0, codes(30), "b")
    assert [key in cache for key in "abcd"] == [True, True, False, True]
    assert cache.add("d", 1, codes(30), "b")
    assert [key in cache for key in "abcd"] == [False, True, False, True]
    assert cache.bytes == 90
    assert not cache.add("d", 2, codes(200))
    assert cache.get("d", 1) is not None
    assert cache.get("d", 2) is None


@pytest.mark.parametrize("cache_bytes", [20_000, 1 << 30])
@pytest.mark.parametrize("early", [None, EarlyRule()])
def test_answers_do_not_depend_on_an_interruption(
    case: Any, tmp_path: Path, cache_bytes: int, early: EarlyRule | None
) -> None:
    """A run in parts gives the answers of a whole one, measures nothing twice, and each part reports its own cost."""
    plans, images, labels = random_plans(case, 8, seed=3), case.images[:60], case.labels[:60]

    def made(name: str) -> Evaluator:
        settings: dict[str, Any] = {"cache_bytes": cache_bytes, "early": early, "log_path": tmp_path / name}
        return Evaluator(case.model, images, labels, batch_size=10, **settings)

    def answers(evaluator: Evaluator, count: int) -> list[Any]:
        results = [evaluator.count(plan) for plan in plans[:count]]
        costs = sum(result.cost for result in results) + evaluator.float_spent
        assert costs == pytest.approx(evaluator.spent)
        return [(result.low, result.high, result.seen, result.correct_images.tolist()) for result in results]

    whole = made("whole")
    expected = answers(whole, 8)
    for count in (3, 6, 8):
        part = made("parts")
        found = answers(part, count)
    assert found == expected
    assert 0 < part.spent < whole.spent
    logs = [measured(tmp_path / name) for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    cache = whole._observer.stages.cache
    kept = [tensor for entry in cache._entries.values() for codes in entry.batches.values() for tensor in codes]
    assert cache.bytes == sum(tensor.numel() * tensor.element_size() for tensor in kept) <= cache_bytes


class Elsewhere(Team):
    """Three workers that are this process."""

    away, count = True, 3

    def __init__(self) -> None:
        super().__init__(1)
        self.looked: list[tuple[Any, int]] = []

    def map(self, function: Any, tasks: Any, name: Any) -> Iterator[Any]:
        self.looked += [(batch.plan and batch.plan.digest(), batch.number) for _, batch in tasks]
        return super().map(function, tasks, name)


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 200_000, 1 << 30])
@pytest.mark.parametrize("early", [None, EarlyRule(first=20)])
def test_workers_leave_the_log_of_one_process(
    case: Any, tmp_path: Path, cache_bytes: int, early: EarlyRule | None
) -> None:
    """Costs in it are those of one process, too, whatever its cache drops; no batch is looked at twice."""
    plans, images, labels = random_plans(case, 8, seed=5), case.images[:75], case.labels[:75]
    logs: list[list[Any]] = []
    seen: list[list[tuple[int, int]]] = []
    team = Elsewhere()
    for who in (Team(1), team):
        seen.append([])
        made = Evaluator(
            case.model,
            images,
            labels,
            batch_size=10,
            cache_bytes=cache_bytes,
            log_path=tmp_path / f"{who.away}",
            progress=lambda done, total: seen[-1].append((done, total)),
            early=early,
            team=who,
        )
        needed = int(0.9 * made.float_result().correct)
        spent = sum(made.decide(plan, needed).cost for plan in plans) + made.count(plans[0]).cost
        assert made.spent == pytest.approx(spent + made.float_spent)
        rows = [json.loads(line) for line in (tmp_path / f"{who.away}").read_text().splitlines()]
        logs.append([{**row, "seconds": 0} for row in rows])
    assert logs[0] == logs[1]
    assert seen[0] == seen[1]
    needed = sum(math.ceil((row["to"] - row["from"]) / 10) for row in logs[0] if "from" in row)
    assert needed <= len(team.looked) == len(set(team.looked)) <= needed + 2 * (1 + len(plans))
    forget()


def measured(log: Path) -> list[Any]:
    """What a log holds but seconds and costs, in order."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("seconds", "cost")} for row in rows]


def test_lines_of_the_log_are_checked() -> None:
    hits, margins = np.array([True, False, True] * 5), np.linspace(-1, 1, 15, dtype=np.float32)
    part = MeasuredImages("x", 50, hits, margins, 1.5, 0.25)
    back = MeasuredImages.from_json(json.loads(json.dumps(part.to_json())))
    assert np.array_equal(back.correct, part.correct)
    assert np.array_equal(back.margins, part.margins)
    assert (back.start, back.stop, back.seconds, back.cost) == (50, 65, 1.5, 0.25)
    for change in ({"correct": 3}, {"to": 99}, {"to": 50}, {"hits": "?"}, {"margins": "AAAA"}):
        with pytest.raises(ValueError, match=r"correct images|[Bb]ase64|alphabet|multiple"):
            MeasuredImages.from_json({**part.to_json(), **change})
