"""Datasets and their three splits: train, calibration (cut from train) and test.

:func:`load_data` gives :class:`Splits` of :class:`ImageSet`; :data:`DATASETS` lists what it knows by name;
:func:`augment` is the training augmentation. Pixels are uint8 until a batch is made: the networks see ``pixels / 255``.
"""

from caplet.data.images import augment
from caplet.data.imageset import ImageSet, to_float
from caplet.data.load import DATASETS, load_data, load_saved_splits
from caplet.data.splits import Splits

__all__ = [
    "DATASETS",
    "ImageSet",
    "Splits",
    "augment",
    "load_data",
    "load_saved_splits",
    "to_float",
]
