"""The registry of search methods: one name, one line about it, one function of one shape for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from caplet.errors import ConfigError, suggest
from caplet.models.base import CapsNet
from caplet.quant.choices import Method
from caplet.quant.plan.memory import FLOAT_BITS, count_memory
from caplet.quant.plan.target import HARDWARE
from caplet.quant.plan.widths import Widths, make_plan, width_memory
from caplet.quant.search.ilp import search_ilp
from caplet.quant.search.progressive import search_progressive
from caplet.quant.search.qcapsnets import QCapsNetsSettings, check_budget, search_qcapsnets
from caplet.quant.search.request import Request, SearchResult, Workbench
from caplet.quant.search.result import Candidate, QCapsNetsResult

DEFAULT_COMPRESSION = 5.0
"""The Q-CapsNets method without a weight budget: this many times fewer weight bits than 32-bit float."""


@dataclass(frozen=True)
class SearchMethod:
    """One way to search.

    Attributes:
        about: one line.
        check: raises ConfigError where the request makes no sense for the method and the model, before anything runs.
        run: the search.
    """

    about: str
    check: Callable[[CapsNet, Request], None]
    run: Callable[[Workbench, Request], SearchResult]


def find_method(name: str) -> SearchMethod:
    """The method of a name. Raises ConfigError, with the nearest name, where there is none."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}{suggest(name, METHODS)} (known: {', '.join(METHODS)})")
    return METHODS[Method(name)]


def _qcapsnets_settings(model: CapsNet, request: Request) -> QCapsNetsSettings:
    budget = request.weight_bits
    if budget is None:
        budget = FLOAT_BITS * count_memory(model).total.weights / DEFAULT_COMPRESSION
    return QCapsNetsSettings(request.tolerance, budget, request.relative, request.roundings, request.rule, request.seed)


def _check_qcapsnets(model: CapsNet, request: Request) -> None:
    limits = {"activation budget": request.activation_bits, "RAM budget": request.ram_bytes}
    unknown = [name for name, limit in limits.items() if limit is not None]
    if request.hardware != HARDWARE["portable"]:
        unknown.append(f"hardware {request.hardware.name}")
    if unknown:
        raise ConfigError(
            f"the method qcapsnets knows a tolerance and a weight budget, but no {' and no '.join(unknown)}; use"
            " progressive or ilp"
        )
    check_budget(model, _qcapsnets_settings(model, request))


def _run_qcapsnets(bench: Workbench, request: Request) -> SearchResult:
    settings = _qcapsnets_settings(bench.evaluator.model, request)
    found = search_qcapsnets(bench.evaluator, bench.source, settings, bench.on_step)
    others = (("accuracy", found.accuracy), ("memory", found.memory))
    return SearchResult(
        Method.QCAPSNETS,
        found.met,
        found.satisfied,
        tuple(_accepted(bench, settings, found)),
        tuple((role, other) for role, other in others if other is not None),
        found.reference,
        found.needed,
        found.rounding,
        found.reason,
        0.0,
        found.to_json(),
    )


def _accepted(bench: Workbench, settings: QCapsNetsSettings, found: QCapsNetsResult) -> Iterator[Candidate[Widths]]:
    """Plans within the budget that the search had accepted before the satisfied one, the last ones first."""
    if found.satisfied is None:
        return
    model, rule = bench.evaluator.model, settings.rule
    for step in reversed([step for step in found.steps if step.accepted and step.widths != found.satisfied.widths]):
        total = width_memory(model, step.widths, rule).total
        if total.weight_bits <= settings.budget_bits and step.low >= found.needed:
            plan = make_plan(model, bench.source, step.widths, rule, found.rounding, settings.seed)
            yield Candidate(step.widths, plan, bench.evaluator.latest(plan), total)


def _check_limits(model: CapsNet, request: Request) -> None:
    """Raise ConfigError where a budget on bits is below one bit per element."""
    total = count_memory(model).total
    for name, budget, elements in (
        ("weight", request.weight_bits, total.weights),
        ("activation", request.activation_bits, total.activations),
    ):
        if budget is not None and budget < elements:
            raise ConfigError(
                f"the {name} budget of {budget / 8:,.0f} bytes is below the smallest possible one for this model,"
                f" {-(-elements // 8):,} bytes (1 bit for each of {elements:,} elements); raise the budget"
            )


def _check_ilp(model: CapsNet, request: Request) -> None:
    _check_limits(model, request)
    if not request.explore and (request.weight_bits, request.activation_bits, request.ram_bytes) == (None, None, None):
        raise ConfigError(
            "the plan of least noise within no budget has all widths at their largest; give --budget,"
            " --activation-budget or --ram, or leave out --no-explore"
        )


METHODS: dict[Method, SearchMethod] = {
    Method.QCAPSNETS: SearchMethod(
        "Q-CapsNets: uniform, then a weight profile for the budget, then activations and routing from the front",
        _check_qcapsnets,
        _run_qcapsnets,
    ),
    Method.PROGRESSIVE: SearchMethod(
        "progressive: from one width everywhere, lower one unit at a time, the most robust first",
        _check_limits,
        search_progressive,
    ),
    Method.ILP: SearchMethod(
        "integer program over measured sensitivities under budgets; returns a Pareto front",
        _check_ilp,
        search_ilp,
    ),
}
"""Every search method."""
