"""Accuracy with its uncertainty, and the paired comparison of two models on the same images."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from caplet.errors import DataError

_NEXT = 1e-9


@dataclass(frozen=True)
class Accuracy:
    """A count of correct predictions with its 95 % Wilson interval.

    Attributes:
        correct, n: images classified correctly, and in all.
        percent, low, high: accuracy and interval in percent.
    """

    correct: int
    n: int
    percent: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.percent:.2f} % [{self.low:.2f}, {self.high:.2f}] of {self.n:,}"


def accuracy(correct: int, n: int) -> Accuracy:
    """Accuracy of ``correct`` out of ``n`` images with the 95 % Wilson interval.

    >>> str(accuracy(9_901, 10_000))
    '99.01 % [98.80, 99.19] of 10,000'
    """
    if n < 1 or not 0 <= correct <= n:
        raise DataError(f"accuracy of {correct} correct out of {n} images is not defined")
    from scipy.stats import binomtest  # takes long to import, and not every command needs it

    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return Accuracy(correct, n, 100 * correct / n, 100 * float(interval.low), 100 * float(interval.high))


@dataclass(frozen=True)
class Paired:
    """Two models on the same images.

    Attributes:
        n: images.
        n10: images that only the first model classifies correctly.
        n01: images that only the second one classifies correctly.
        loss: accuracy of the first minus that of the second, in percentage points.
        low, high: 95 % interval of ``loss`` (Wald interval of a paired difference).
        p_value: exact two-sided McNemar test of equal accuracy.
    """

    n: int
    n10: int
    n01: int
    loss: float
    low: float
    high: float
    p_value: float


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compare two models' correctness, bool (n,) each, image by image.

    >>> import numpy as np
    >>> pair = paired(np.array([True, True, False, True]), np.array([True, False, False, False]))
    >>> (pair.n10, pair.n01, pair.loss, pair.p_value)
    (2, 0, 50.0, 0.5)
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise DataError(f"paired comparison needs the same images on both sides, got {first.shape} and {second.shape}")
    n = len(first)
    n10, n01 = int((first & ~second).sum()), int((~first & second).sum())
    discordant = n10 + n01
    from scipy.stats import binomtest  # as above

    p_value = float(binomtest(n10, discordant).pvalue) if discordant else 1.0
    loss = (n10 - n01) / n
    spread = 1.959964 * np.sqrt(max(discordant / n - loss**2, 0.0) / n)
    return Paired(n, n10, n01, 100 * loss, 100 * (loss - spread), 100 * (loss + spread), p_value)


def loss_limit(n: int, n10: int, n01: int, confidence: float = 0.95) -> float:
    """One-sided upper confidence limit of the loss, in percentage points, on images like these ones.

    The score limit of a paired difference (Tango 1998), which also means something where no answer changed.

    Args:
        n, n10, n01: see :class:`Paired`.

    >>> round(loss_limit(5000, 18, 14), 2), round(loss_limit(5000, 0, 0), 2)
    (0.28, 0.05)
    """
    if n < 1 or min(n10, n01) < 0 or n10 + n01 > n or not 0.5 <= confidence < 1:
        raise DataError(f"no limit of the loss from {n10} + {n01} changed answers of {n} images at {confidence}")
    from scipy.optimize import brentq  # as above

    z = float(ndtri(confidence))

    def score(loss: float) -> float:
        linear = (2 * n - n10 + n01) * loss - n10 - n01
        constant = -n01 * loss * (1 - loss)
        gained = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        spread = math.sqrt(max(n * (2 * gained + loss * (1 - loss)), 0.0))
        return n10 - n01 - n * loss + z * spread

    least = (n10 - n01) / n + _NEXT  # the score is above 0 just beyond the loss itself
    if least >= 1 or score(1.0) >= 0:
        return 100.0
    return 100 * (float(brentq(score, least, 1.0)) if score(least) > 0 else least)


def images_to_resolve(n: int, n10: int, n01: int, tolerance: float, confidence: float = 0.95) -> int:
    """About how many images would tell a loss of ``tolerance`` percentage points from none, one-sidedly.

    At the rate at which answers changed on these images, or 3 of them where none did.

    >>> images_to_resolve(5000, 18, 14, 0.2)
    4329
    """
    changed = (n10 + n01 or 3) / n
    return math.ceil(float(ndtri(confidence)) ** 2 * changed / (tolerance / 100) ** 2)
