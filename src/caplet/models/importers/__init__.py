"""Checkpoints of other projects, read as data: one file per foreign format, found by content.

Nothing in a file is ever run: pickles are read by PyTorch's restricted reader (tensors only), HDF5 files dataset by
dataset. Architectures are inferred from names and shapes.
"""

from caplet.models.importers.registry import FORMATS, ForeignFormat, detect, import_model

__all__ = ["FORMATS", "ForeignFormat", "detect", "import_model"]
