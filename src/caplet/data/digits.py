"""The embedded dataset: scikit-learn's 1,797 scans of handwritten digits, 8 x 8 pixels. No network, no files."""

import numpy as np

from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source, cut_test

NAME = "digits"


def load_digits(request: DataRequest) -> Source:
    """Read scikit-learn's digits; ``request.root`` is not used.

    Their values 0..16 become pixels by ``(value * 255 + 8) // 16``, that is value * 255 / 16 rounded half up. The data
    has no test split of its own: 20 % (359) are cut off, stratified by class, by a fixed seed: always the same one.
    Nothing keeps one writer's digits on one side of that cut, so results may be better than for new writers.
    """
    from sklearn.datasets import load_digits as load

    bunch = load()
    values = bunch.images.astype(np.int64)
    pixels = ((values * 255 + 8) // 16).astype(np.uint8)[:, None]
    every = ImageSet.of_arrays(pixels, bunch.target, tuple("0123456789"), f"{NAME}/all")
    return cut_test(every, NAME, "scikit-learn", note="scikit-learn digits, 8x8")
