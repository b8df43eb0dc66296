"""One width for every unit as a 0/1 integer program: least goal under additive limits."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from caplet.errors import ModelError
from caplet.quant.plan.plan import QuantPlan

_SLACK = 1e-9  # relative: sums of floats in another order
_MARGIN = 2e-6  # relative: twice the solver's feasibility tolerance
_TINY = 1e-8  # relative: below what the solver tells from 0


@dataclass(frozen=True)
class UnitChoice:
    """One width of one unit.

    Attributes:
        unit: its number.
        width: bits.
        noise: what it adds to the disturbance of the class capsules.
        weight_bits, activation_bits: memory that the unit takes then (elements x bits; one of the two is 0).
    """

    unit: int
    width: int
    noise: float
    weight_bits: int
    activation_bits: int


Measure = Callable[[UnitChoice], float]
"""What one choice contributes to a sum, 0 or more."""


@dataclass(frozen=True)
class SumLimit:
    """The sum of a measure over all units must not exceed ``at_most``."""

    measure: Measure
    at_most: float

    def holds(self, chosen: Sequence[UnitChoice]) -> bool:
        """Whether a choice for every unit keeps the limit."""
        return math.fsum(map(self.measure, chosen)) <= self.at_most * (1 + _SLACK)


def allocate(
    menu: Sequence[Sequence[UnitChoice]], goal: Measure, limits: Sequence[SumLimit]
) -> tuple[UnitChoice, ...] | None:
    """One choice per unit with the least sum of ``goal`` within all ``limits``; None where no choice keeps them.

    Solved by branch and bound (HiGHS through :func:`scipy.optimize.milp`), exactly up to a millionth. A choice that
    alone exceeds a limit is left out beforehand and every limit is scaled to 1, so that measures may span many orders
    of magnitude.

    Args:
        menu: for every unit its choices, at least one.
    """
    choices = [
        [choice for choice in unit if all(limit.measure(choice) <= limit.at_most * (1 + _SLACK) for limit in limits)]
        for unit in menu
    ]
    if not all(choices):
        return None
    for margin in (0.0, _MARGIN):
        chosen = _solve(choices, goal, limits, margin)
        if chosen is None or all(limit.holds(chosen) for limit in limits):
            return chosen
    return None


def _solve(
    choices: Sequence[Sequence[UnitChoice]], goal: Measure, limits: Sequence[SumLimit], margin: float
) -> tuple[UnitChoice, ...] | None:
    """The program itself; limits may be exceeded by the solver's tolerance, so they are tightened by ``margin``."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes long to import

    flat = [choice for unit in choices for choice in unit]
    owner = np.repeat(np.arange(len(choices)), [len(unit) for unit in choices])
    once = (owner == np.arange(len(choices))[:, None]).astype(np.float64)  # one choice for every unit
    constraints = [LinearConstraint(once, 1, 1)]
    for limit in limits:
        scale = limit.at_most if limit.at_most > 0 else 1.0
        row = np.array([limit.measure(choice) / scale for choice in flat])
        row[row < _TINY] = 0.0
        constraints.append(LinearConstraint(row[None, :], -np.inf, limit.at_most / scale - margin))
    cost = np.array([goal(choice) for choice in flat])
    largest = float(np.abs(cost).max(initial=0.0))
    if not math.isfinite(largest):
        raise ModelError(f"the noise of a choice of widths is {largest}: what was measured of the model is no number")
    with _mute():
        found = milp(
            cost / largest if largest > 0 else cost,
            constraints=constraints,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:
        return None
    return tuple(unit[found.x[owner == number].argmax()] for number, unit in enumerate(choices))


@contextmanager
def _mute() -> Iterator[None]:
    """Keep what the solver's C++ prints, even when told not to, off this process's standard output."""
    if sys.stdout is None:  # a process without one
        yield
        return
    sys.stdout.flush()
    original = os.dup(1)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    try:
        yield
    finally:
        os.dup2(original, 1)
        os.close(original)
        os.close(sink)


FittedWeights = Callable[[str, int], float]
"""The noise that the weights of a point make at a width, in bits, once they are fitted."""


@dataclass(frozen=True)
class Frontier:
    """The plans of least memory for every total noise, where a method knows them.

    Attributes:
        noise: predicted for the satisfied plan, in the method's own unit.
        plan: the smallest plan within the budgets of at most this noise once it is fitted; None where there is none.
    """

    noise: float
    plan: Callable[[float], QuantPlan | None]
