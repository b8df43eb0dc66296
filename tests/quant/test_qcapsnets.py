"""The Q-CapsNets search: its arithmetic, both branches, resuming, and its errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caplet.errors import ConfigError
from caplet.fixed import FixedFormat, Rounding
from caplet.jobs.quantize.job import PAPER_ROUNDINGS
from caplet.nn.points import Role
from caplet.quant.choices import Exponents, Method
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.units import Widths, group_units, make_plan, width_memory
from caplet.quant.search.qcapsnets import search_qcapsnets, weight_profile
from caplet.quant.search.search import Request, Step
from scripted import Scripted, bench, group_widths

BITS = 8 * 1000


def evaluator(case: Any, **more: Any) -> Evaluator:
    return Evaluator(case.model, case.images, case.labels, batch_size=100, **more)


def budget(case: Any, *weights: int) -> int:
    """The bits that these weight widths take."""
    return width_memory(case.model, *group_widths(case.model, weights, (8,) * len(weights))).total.weight_bits


def of(widths: Widths, kind: str) -> tuple[int, ...]:
    """The widths of one kind, group by group."""
    return tuple(bits for name, bits in zip(widths.names, widths.bits, strict=True) if name.endswith(kind))


def test_the_search_meets_its_target_within_the_budget(digits: Any) -> None:
    measured = evaluator(digits)
    request = Request(1.0, budget(digits, 8, 7, 6))
    seen: list[Step] = []
    result = search_qcapsnets(bench(digits, measured, seen.append), request)
    assert result.met
    assert result.satisfied is not None
    assert [role for role, _ in result.others] == ["memory"]
    assert [step.about for step in seen] == [step["about"] for step in result.record["steps"]]
    best = result.best
    assert best.evaluation.correct >= result.needed == result.reference.correct - 3
    assert best.memory.weight_bits <= request.weight_bits
    assert best.memory == count_memory(digits.model, best.plan).total
    assert best.memory.activation_bits < result.others[0][1].memory.activation_bits
    assert np.array_equal(
        evaluator(digits, cache_bytes=0).evaluate(best.plan).correct_images, best.evaluation.correct_images
    )
    assert [step.step for step in seen] == sorted(step.step for step in seen)
    assert result.record["cost"] == pytest.approx(measured.spent - 1.0)
    assert result.cost == 0.0


def test_a_search_is_deterministic_and_resumes_without_computing(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    request = Request(1.0, budget(digits, 8, 7, 6), roundings=PAPER_ROUNDINGS)
    one = search_qcapsnets(bench(digits, evaluator(digits, log_path=path)), request)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))  # as if killed half way
    search_qcapsnets(bench(digits, evaluator(digits, log_path=path)), request)
    assert [line.split('"seconds"')[0] for line in path.read_text().splitlines(keepends=True)] == [
        line.split('"seconds"')[0] for line in lines
    ]
    replay = evaluator(digits, log_path=path)
    again = search_qcapsnets(bench(digits, replay), request)
    assert replay.spent == 0.0
    assert again.best.plan == one.best.plan
    assert len(one.record["others"]) == 2
    memory = [record["result"]["memory"] for record in (one.record, *one.record["others"]) if record["met"]]
    smaller = [(row["weight_bits"], row["activation_bits"]) for row in memory]
    assert smaller[0] == min(smaller)


def test_branch_a_step_by_step(digits: Any) -> None:
    def rule(bits: dict[str, int]) -> int:
        lost = (
            10 * (bits["conv1.weight"] < 6) + 20 * (bits["primary.activation"] < 5) + 4 * (bits["conv1.activation"] < 7)
        )
        return 900 - lost - 20 * (bits["digit.votes"] < 4) - 6 * (bits["digit.logits"] < 3)

    request = Request(1.0, budget(digits, 6, 5, 4))
    result = search_qcapsnets(bench(digits, Scripted(digits, rule)), request)
    assert result.met
    assert result.needed == 890
    first = [step["about"] for step in result.record["steps"] if step["step"] == "1" and step["accepted"]]
    assert first[-1] == "7 bits everywhere"  # 6 bits lose 4 images, step 1 may lose none
    assert result.others[0][1].widths == group_widths(digits.model, (6, 5, 4), (7, 7, 7))[1]
    # Step 3A may spend 5 of the 10 images: conv1 goes down to where its group would break the next, and so on.
    assert of(result.best.widths, "activations") == (5, 5, 4)
    # Step 4A may spend all: 4 for conv1's activations, 6 for the logits.
    assert of(result.best.widths, "routing") == (2,)
    assert result.best.evaluation.correct == 890


def test_branch_b_returns_two_plans(digits: Any) -> None:
    def rule(bits: dict[str, int]) -> int:
        return 900 - 50 * (bits["primary.weight"] < 6) - 50 * (bits["conv1.weight"] < 4)

    request = Request(1.0, budget(digits, 4, 3, 2))
    result = search_qcapsnets(bench(digits, Scripted(digits, rule)), request)
    assert not result.met
    assert result.satisfied is None
    assert "branch B" in result.reason
    (first, accuracy), (second, memory) = result.others
    assert (first, second) == ("accuracy", "memory")
    assert of(memory.widths, "weights") == (4, 3, 2)
    assert memory.evaluation.correct < result.needed
    assert accuracy.widths == group_widths(digits.model, (6, 6, 1), (6, 6, 6))[1]
    assert result.best is accuracy
    assert result.record["met"] is False


def test_branch_b_that_fits_the_budget_counts_as_met(digits: Any) -> None:
    def rule(bits: dict[str, int]) -> int:
        return 900 - 50 * (bits["digit.weight"] < 6) - 50 * (bits["conv1.weight"] < 2)

    request = Request(1.0, budget(digits, 6, 6, 6))
    result = search_qcapsnets(bench(digits, Scripted(digits, rule)), request)
    assert result.met
    assert result.satisfied is result.others[0][1]
    assert of(result.best.widths, "weights") == (6, 6, 6)


def test_an_impossible_target_is_reported_not_raised(digits: Any) -> None:
    result = search_qcapsnets(bench(digits, Scripted(digits, lambda bits: 500)), Request(0.1, budget(digits, 8, 8, 8)))
    assert not result.met
    assert "not even 16 bits" in result.reason
    assert result.best.widths == Widths.uniform(group_units(digits.model), 16)


def test_the_simplest_of_equal_schemes_wins(digits: Any) -> None:
    request = Request(
        0.0, budget(digits, 4, 4, 4), roundings=(Rounding.STOCHASTIC, Rounding.NEAREST, Rounding.TRUNCATE)
    )
    result = search_qcapsnets(bench(digits, Scripted(digits, lambda bits: 900)), request)
    assert result.rounding is Rounding.TRUNCATE
    assert [other["rounding"] for other in result.record["others"]] == ["nearest", "stochastic"]
    assert min(of(result.best.widths, "activations")) == 1
    assert min(fmt.bits for key, fmt in result.best.plan.points.items() if key == "digit.votes") == 2


def test_tolerances_count_whole_images(digits: Any) -> None:
    measured = Scripted(digits, lambda bits: 900)
    for tolerance, relative, lost in ((0.0, False, 0), (0.3, False, 3), (0.29, False, 2), (1.0, True, 9)):
        request = Request(tolerance, budget(digits, 8, 8, 8), relative=relative)
        assert search_qcapsnets(bench(digits, measured), request).needed == 900 - lost


@pytest.mark.parametrize(
    ("groups", "bits", "expected"),
    [
        (3, 48, (16, 15, 14)),
        (3, 20, (7, 6, 5)),
        (6, 21, (5, 4, 3, 2, 1, 1)),
        (6, 12, (4, 3, 2, 1, 1, 1)),
        (6, 6, (1, 1, 1, 1, 1, 1)),
        (6, 5, None),
        (1, 9, (9,)),
    ],
)
def test_weight_profiles(groups: int, bits: int, expected: tuple[int, ...] | None) -> None:
    assert weight_profile(groups, lambda widths: sum(widths) <= bits) == expected


def test_too_small_a_budget_names_the_smallest(digits: Any) -> None:
    specs = digits.model.points().values()
    biases = sum(spec.elements for spec in specs if spec.role is Role.BIAS)
    weights = sum(spec.elements for spec in specs if spec.role is Role.WEIGHT)
    least = weights + 8 * biases
    with pytest.raises(ConfigError, match=f"{least:,} bits"):
        search_qcapsnets(bench(digits, evaluator(digits)), Request(1.0, least - 1))
    rule = FormatRule(log2_weights=True)
    with pytest.raises(ConfigError, match="smallest possible"):
        search_qcapsnets(bench(digits, evaluator(digits)), Request(1.0, 1.5 * weights, rule=rule))
    assert search_qcapsnets(bench(digits, Scripted(digits, lambda b: 900)), Request(1.0, least)).met


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_bad_tolerances(tolerance: float) -> None:
    with pytest.raises(ConfigError, match="tolerance"):
        Request(tolerance, BITS)


@pytest.mark.parametrize("bits", [0, -1, float("nan"), float("inf")])
def test_bad_budgets(bits: float) -> None:
    with pytest.raises(ConfigError, match="budget"):
        Request(0.2, bits)


@pytest.mark.parametrize("roundings", [(), (Rounding.NEAREST, Rounding.NEAREST)])
def test_bad_roundings(roundings: tuple[Rounding, ...]) -> None:
    with pytest.raises(ConfigError, match="scheme"):
        Request(0.2, BITS, roundings=roundings)


def test_paper_formats_reach_the_plan(digits: Any) -> None:
    request = Request(100.0, budget(digits, 8, 8, 8), rule=FormatRule(Exponents.PAPER))
    result = search_qcapsnets(bench(digits, Scripted(digits, lambda bits: 900)), request)
    assert all(isinstance(f, FixedFormat) and f.frac_bits == f.bits - 1 for f in result.best.plan.points.values())
    expected = make_plan(digits.calibration, group_units(digits.model), result.best.widths, request.rule)
    assert result.best.plan == expected


def test_every_unit_set_is_by_group_whatever_the_granularity(digits: Any) -> None:
    result = search_qcapsnets(bench(digits, Scripted(digits, lambda bits: 900)), Request(0.0))
    assert result.method is Method.QCAPSNETS
    assert result.best.widths.names == tuple(unit.name for unit in group_units(digits.model))
    assert result.best.memory.weight_bits <= 32 * count_memory(digits.model).total.weights / 5  # the default budget
