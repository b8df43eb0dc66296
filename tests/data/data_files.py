"""Small dataset files for the tests of the readers."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def pixels(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, train: int = 60, test: int = 20) -> dict[str, np.ndarray]:
    """The four files of an MNIST-like dataset; gives their arrays by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for (images, labels), count in zip((IDX_NAMES[:2], IDX_NAMES[2:]), (train, test), strict=True):
        made[images] = pixels(count, (28, 28), count)
        made[labels] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in made.items():
        (folder / name).write_bytes(idx_bytes(array))
    return made


def write_image(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def write_folder(root: Path, classes: tuple[str, ...], count: int, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    """``count`` PNG files per class; gives all pixels in the order of class, then file name."""
    every = pixels(len(classes) * count, shape)
    for c, name in enumerate(classes):
        for i in range(count):
            write_image(root / name / f"{i:03}.png", every[c * count + i])
    return every
