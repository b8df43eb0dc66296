"""Plans: JSON round trip, digests, differences, and the check against a model."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from caplet.errors import ArtefactError, PlanError
from caplet.fixed import FixedFormat, LogFormat, Rounding
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan

PLAN = QuantPlan({"b.weight": LogFormat(4, -1), "a.votes": FixedFormat(5, 7, True)}, Rounding.STOCHASTIC, 3)


@pytest.fixture
def plan(case: Any) -> QuantPlan:
    return uniform_plan(case.model, case.calibration, 8)


def test_json_round_trip_and_file(tmp_path: Path) -> None:
    assert QuantPlan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN
    PLAN.save(tmp_path / "new" / "plan.json")
    loaded = QuantPlan.load(tmp_path / "new" / "plan.json")
    assert loaded == PLAN
    assert loaded.digest() == PLAN.digest()
    assert copy.deepcopy(PLAN) == PLAN


def test_the_digest_ignores_the_order_of_the_points_and_nothing_else() -> None:
    reordered = QuantPlan(dict(reversed(PLAN.points.items())), PLAN.rounding, PLAN.seed)
    assert reordered.digest() == PLAN.digest()
    assert hash(reordered) == hash(PLAN)
    others = [
        QuantPlan(PLAN.points, PLAN.rounding, 4),
        QuantPlan(PLAN.points, Rounding.NEAREST, PLAN.seed),
        PLAN.with_formats({"a.votes": FixedFormat(5, 6, True)}),
        PLAN.restricted(["a.votes"]),
    ]
    assert len({plan.digest() for plan in (PLAN, *others)}) == 5


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PLAN.points["a.votes"] = FixedFormat(1, 1, True)  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "else"}, "kind"),
        ({"version": 99}, "version 99"),
        ({"rounding": "up"}, "rounding is 'up'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True"),
        ({"more": 1}, "exactly"),
        (
            {"points": {"a.votes": {"kind": "fixed", "bits": 17, "frac_bits": 0, "signed": True}}},
            "'a.votes'.*bits is 17",
        ),
        ({"points": {"a.votes": {"kind": "float"}}}, "'a.votes'"),
        ({"points": [1]}, "fields"),
    ],
)
def test_bad_json_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        QuantPlan.from_json({**PLAN.to_json(), **change})


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such file"):
        QuantPlan.load(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"kind": ')
    with pytest.raises(ArtefactError, match=r"cut\.json.*not valid JSON"):
        QuantPlan.load(tmp_path / "cut.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(PlanError, match=r"other\.json"):
        QuantPlan.load(tmp_path / "other.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot write"):
        PLAN.save(tmp_path / "file" / "plan.json")


def test_check_accepts_a_fitting_plan(case: Any, plan: QuantPlan) -> None:
    plan.check(case.model)


def test_check_names_missing_and_unknown_points_with_suggestions(digits: Any) -> None:
    plan = uniform_plan(digits.model, digits.calibration, 8)
    points = dict(plan.points)
    points["digit.vote"] = points.pop("digit.votes")
    with pytest.raises(
        PlanError, match=r"misses point 'digit.votes'.*unknown point 'digit.vote' \(found 'digit.votes'\)"
    ):
        QuantPlan(points).check(digits.model)
    with pytest.raises(PlanError, match="and 12 more"):
        QuantPlan({}).check(digits.model)


@pytest.mark.parametrize(
    ("key", "fmt", "message"),
    [
        ("conv1.activation", FixedFormat(8, 4, True), "conv1.activation: a signed format .* on an unsigned point"),
        ("digit.votes", FixedFormat(8, 4, False), "digit.votes: an unsigned format .* on a signed point"),
        ("digit.votes", LogFormat(4, 0), "digit.votes.*for weights"),
        ("digit.coupling", FixedFormat(8, 20, False), "digit.coupling: softmax"),
        ("digit.activation", FixedFormat(8, 25, True), "digit.activation: squash"),
        ("primary.preactivation", FixedFormat(8, 40, True), "primary.activation: squash"),
    ],
)
def test_check_names_the_point_whose_format_does_not_suit(digits: Any, key: str, fmt: Any, message: str) -> None:
    plan = uniform_plan(digits.model, digits.calibration, 8).with_formats({key: fmt})
    with pytest.raises(PlanError, match=message):
        plan.check(digits.model)
