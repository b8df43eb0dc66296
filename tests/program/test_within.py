"""Which memory plan keeps to a limit of RAM."""

import pytest

from caplet.errors import PlanError
from caplet.jobs.export import find_program
from caplet.program.arena import plan_memory
from caplet.program.file import load_program
from caplet.program.within import plan_within

MNIST, DIGITS = (load_program(find_program(f"trained:{name}")) for name in ("mnist", "digits"))


def test_the_named_plan_is_taken_where_it_fits() -> None:
    small, fast = (plan_memory(MNIST, ram) for ram in ("small", "fast"))
    assert plan_within(MNIST, None, ["fast"]) == (fast, "fast")
    assert plan_within(MNIST, small.bytes, ["small"]) == (small, "small")
    assert plan_within(MNIST, fast.bytes, ["fast", "small"]) == (small, "small")


def test_a_limit_below_the_named_plans_is_kept_by_bands() -> None:
    limit = 3_600
    assert all(plan_memory(MNIST, ram).bytes > limit for ram in ("fast", "small"))
    plan, ram = plan_within(MNIST, limit, ["fast", "small"])
    assert (plan, ram) == (plan_memory(MNIST, limit), limit)
    assert plan.bytes <= limit
    assert plan.bands


@pytest.mark.parametrize("limit", [1, 3_000])
def test_out_of_reach_the_least_plan_is_named_by_its_bytes(limit: int) -> None:
    plan, ram = plan_within(MNIST, limit, ["small"])
    assert ram == plan.bytes == plan_memory(MNIST, ram).bytes < plan_memory(MNIST, "small").bytes
    with pytest.raises(PlanError, match=f"needs {ram}"):
        plan_memory(MNIST, ram - 1)


def test_stored_votes_may_take_less_than_what_they_are_made_from() -> None:
    small, fast = (plan_memory(DIGITS, ram).bytes for ram in ("small", "fast"))
    assert fast < small
    assert plan_memory(DIGITS, fast).bytes == fast
    plan, ram = plan_within(DIGITS, small - 1, ["small"])
    assert (plan.bytes, ram) == (fast, small - 1)
    assert plan.stored == plan_memory(DIGITS, "fast").stored
