"""The registry of search methods: one function of one shape for each name."""

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
        check: raises ConfigError where the request makes no sense for the method and the model, before anything runs.
        run: the search.
    """

    check: Callable[[CapsNet, Request], None]
    run: Callable[[Workbench, Request], SearchResult]


def _check_limits(model: CapsNet, request: Request) -> None:
    """Raise ConfigError where a budget on bits is below one bit per element."""
    total = count_memory(model).total
    request.check_budgets(weight=total.weights, activation=total.activations)


def _check_ilp(model: CapsNet, request: Request) -> None:
    _check_limits(model, request)
    if not request.explore and (request.weight_bits, request.activation_bits, request.ram_bytes) == (None, None, None):
        raise ConfigError(
            "the plan of least noise within no budget has all widths at their largest; give --budget,"
            " --activation-budget or --ram, or leave out --no-explore"
        )


METHODS: Registry[str, SearchMethod] = Registry("method")
"""Every search method by its name."""
METHODS.add(Method.QCAPSNETS, SearchMethod(check_qcapsnets, search_qcapsnets))
METHODS.add(Method.PROGRESSIVE, SearchMethod(_check_limits, search_progressive))
METHODS.add(Method.ILP, SearchMethod(_check_ilp, search_ilp))
