"""Datasets and their three splits: train, calibration (cut from train) and test.

:func:`load_data` gives :class:`Splits` of :class:`ImageSet`, :func:`from_dataset` those of other libraries' datasets;
:data:`DATASETS` lists what is known by name;
:func:`augment` is the training augmentation. Pixels are uint8 until a batch is made: the networks see ``pixels / 255``.
"""

from caplet.data.images import augment
from caplet.data.imageset import ImageSet, to_float
from caplet.data.load import DATASETS, load_data, load_saved_splits
from caplet.data.objects import from_dataset
from caplet.data.splits import Splits

__all__ = [
    "DATASETS",
    "ImageSet",
    "Splits",
    "augment",
    "from_dataset",
    "load_data",
    "load_saved_splits",
    "to_float",
]
