"""The registry of search methods: one name, one line about it, one function of one shape for each."""

from collections.abc import Callable
from dataclasses import dataclass

from caplet.errors import ConfigError
from caplet.models.base import CapsNet
from caplet.quant.choices import Method
from caplet.quant.plan.memory import count_memory
from caplet.quant.search.ilp import search_ilp
from caplet.quant.search.progressive import search_progressive
from caplet.quant.search.qcapsnets import check_qcapsnets, search_qcapsnets
from caplet.quant.search.search import Request, SearchResult, Workbench
from caplet.registry import Registry


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


METHODS: Registry[str, SearchMethod] = Registry("method")
"""Every search method by its name."""
METHODS.add(
    Method.QCAPSNETS,
    SearchMethod(
        "Q-CapsNets: uniform, then a weight profile for the budget, then activations and routing from the front",
        check_qcapsnets,
        search_qcapsnets,
    ),
)
METHODS.add(
    Method.PROGRESSIVE,
    SearchMethod(
        "progressive: from one width everywhere, lower one unit at a time, the most robust first",
        _check_limits,
        search_progressive,
    ),
)
METHODS.add(
    Method.ILP,
    SearchMethod(
        "integer program over measured sensitivities under budgets; returns a Pareto front", _check_ilp, search_ilp
    ),
)
