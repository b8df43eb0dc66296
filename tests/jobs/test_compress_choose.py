"""The choice between pruning and narrower widths, on curves that are given."""

from typing import Any

from caplet.jobs.compress.choose import Size, choose
from caplet.jobs.compress.settings import Limits
from caplet.runs.records import Pruned, Width

WHOLE = Pruned(1.0, 1000, 800, 0.0, 100, 0)
HALF = Pruned(0.5, 500, 400, 0.1, 100, 10)
TENTH = Pruned(0.1, 100, 80, 2.0, 100, 10)
WIDTHS = (Width(8, 0.0, 100), Width(4, 0.3, 100), Width(2, 9.0, 100))


def size(pruned: Pruned, width: Width) -> Size:
    return Size(50 + pruned.parameters * width.bits // 8, pruned.macs)


def chosen(**limits: Any) -> tuple[float, int, tuple[str, ...]]:
    found = choose((WHOLE, HALF, TENTH), WIDTHS, size, Limits(**limits))
    return found.pair.pruned.macs_kept, found.pair.width.bits, found.binding


def test_the_smallest_pair_within_the_loss() -> None:
    assert chosen(max_drop=0.05) == (1.0, 8, ())
    assert chosen(max_drop=0.2) == (0.5, 8, ())
    assert chosen(max_drop=0.4) == (0.5, 4, ())
    assert chosen(max_drop=2.5) == (0.1, 4, ())


def test_limits_of_size_exclude_pairs() -> None:
    assert chosen(max_drop=5.0, ram=500) == (0.1, 4, ())
    assert chosen(max_drop=0.2, macs=600) == (0.5, 8, ())


def test_where_no_pair_fits_the_nearest_is_named_with_what_binds() -> None:
    assert chosen(max_drop=0.2, flash=400) == (0.5, 8, ("flash",))
    assert chosen(max_drop=0.0, flash=60, macs=100)[2] == ("max_drop", "flash")


def test_a_gain_is_not_spent() -> None:
    better = Pruned(0.5, 500, 400, -1.0, 100, 10)
    found = choose((WHOLE, better), WIDTHS, size, Limits(max_drop=0.2))
    assert (found.pair.width.bits, found.pair.drop) == (8, 0.0)


def test_reasons_give_every_measured_point() -> None:
    text = "\n".join(choose((WHOLE, HALF, TENTH), WIDTHS, size, Limits(max_drop=0.4)).reasons)
    for part in ("50 %", "10 %", "8 bits", "4 bits", "2 bits", "+2.00 points", "250 bytes of flash"):
        assert part in text
