"""Which amounts of pruning are worth measuring."""

from __future__ import annotations

from collections.abc import Sequence

from caplet.jobs.compress.choose import Pruned
from caplet.jobs.compress.settings import Limits

RECOVERED = 3.0
"""Points of accuracy that full fine-tuning may win back over the short one at the measured points."""


def next_fraction(probes: Sequence[float], curve: Sequence[Pruned], limits: Limits) -> float | None:
    """The next fraction of the multiply-accumulates to measure, smaller than all before; None where none is worth it.

    Once a point loses more than full fine-tuning may win back, smaller ones cannot be chosen, and only what a limit of
    multiply-accumulates asks for is still measured. That amount is measured whether it is among ``probes`` or not.

    Args:
        probes: fractions that are measured as long as they may be chosen, 0..1.
        curve: what was measured, the whole model first.
    """
    whole, last = curve[0], curve[-1]
    asked = None if limits.macs is None else limits.macs / whole.macs
    ahead = {fraction for fraction in probes if fraction < last.macs_kept}
    if asked is not None and asked < last.macs_kept:
        if last.drop > limits.max_drop + RECOVERED:
            return asked
        ahead.add(asked)
    elif last.drop > limits.max_drop + RECOVERED:
        return None
    return max(ahead, default=None)
