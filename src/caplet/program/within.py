"""Which memory plan keeps to a limit of RAM: one with a name where it does, else the limit itself."""

from collections.abc import Sequence

from caplet.program.arena import MemoryMap, Planner, plan_memory
from caplet.program.program import Program
from caplet.program.verify import verify


def plan_within(program: Program, limit: int | None, named: Sequence[str]) -> tuple[MemoryMap, str | int]:
    """A memory plan, and the ``ram`` that makes it (:func:`caplet.program.arena.plan_memory`).

    Args:
        limit: bytes of RAM, None for any number.
        named: ``"fast"``, ``"small"`` or both.

    Returns:
        The smallest of ``named`` where it fits. Otherwise that of ``limit`` bytes, which may have bands that the named
        ones have not; where that does not fit either, the least that there is, and its bytes.
    """
    proof = verify(program)
    plans = [(plan_memory(program, ram, proof=proof), ram) for ram in sorted(named)]
    plan, ram = min(plans, key=lambda found: found[0].bytes)
    if limit is None or plan.bytes <= limit:
        return plan, ram
    bytes_ = max(limit, Planner(program, proof, in_place=True).within(limit).bytes)
    return plan_memory(program, bytes_, proof=proof), bytes_
