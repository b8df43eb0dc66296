"""Arrays of pixels and labels made images: their layout, range and classes; and NumPy's files of them.

Nothing about an array is certain: whatever is assumed stands in the note, what could be two things is refused.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caplet.data.folder import DecodedTree, part_of, to_source
from caplet.data.source import DataRequest, Source, joined
from caplet.errors import DataError
from caplet.files import read_array, read_arrays

ENDINGS = (".npz", ".npy")
CHANNELS = (1, 2, 3)
SPLITS = ("train", "calibration", "test")
_DARK, _ROUNDING = 128, 0.01
_LABELS = {"y", "label", "labels", "lab", "labs", "target", "targets", "lbl", "lbls"}
_IMAGES = {"x", "image", "images", "img", "imgs", "pixels", "features", "data"}
_NAMES = {"classes", "names", "class"}
KNOWN = "x_train and y_train, train_images and train_labels, images and labels, X and y, data and target"


class Labelled(NamedTuple):
    """The images of a split, as they were found, with their labels, and the file of each for messages."""

    pixels: np.ndarray
    labels: np.ndarray
    where: str
    of_labels: str = ""


def as_images(parts: dict[str, Labelled], classes: Sequence[str] = (), shape: tuple[int, ...] = ()) -> DecodedTree:
    """Images of all splits, in one layout and range.

    Args:
        parts: by split; ``train`` must be there. Pixels (N, H, W), (N, H, W, C), (N, C, H, W) or (N, values); they are
            integers or floats in 0..255 or, in all splits, in 0..1. Labels (N,), (N, 1) or one-hot (N, K).
        classes: names in the order of the labels; without them, labels and texts name themselves.
        shape: (rows, columns) of an image in (N, values); without it, images are square.

    Raises:
        DataError: shapes, values or labels are others, or do not go together.
    """
    parts = {split: parts[split] for split in SPLITS if split in parts}
    for part in parts.values():
        if part.pixels.ndim < 2 or not part.pixels.size or part.pixels.dtype.kind not in "buif":
            found = f"{part.pixels.dtype} {part.pixels.shape}"
            raise DataError(f"{part.where}: images must be numbers (N, H, W), (N, H, W, C) or (N, C, H, W): {found}")
        if part.pixels.shape[1:] != parts["train"].pixels.shape[1:]:
            found = " and ".join(str(p.pixels.shape[1:]) for p in (parts["train"], part))
            raise DataError(f"{part.where}: images of {found}: all splits need one shape")
    sides, last, layout = _layout(parts["train"], shape)
    pixels, scale = _bytes(parts)
    labels, classes, named = to_classes(parts, tuple(classes))
    counts = [len(parts[split].pixels) if split in parts else 0 for split in SPLITS]
    images = np.concatenate(pixels).reshape(-1, *sides)
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2) if last else images)
    return DecodedTree(images, labels, (counts[0], counts[1], counts[2]), classes, (), joined(layout, scale, named))


def _layout(part: Labelled, shape: tuple[int, ...]) -> tuple[tuple[int, ...], bool, str]:
    """The shape of an image, whether its channels come last in it, and what was assumed."""
    sides = part.pixels.shape[1:]
    if len(sides) == 2:
        return (1, *sides), False, ""
    if len(sides) == 3 and (sides[2] in CHANNELS or sides[0] in CHANNELS):
        both = sides[2] in CHANNELS and sides[0] in CHANNELS
        return sides, sides[2] in CHANNELS, f"images {sides} taken as (rows, columns, channels)" if both else ""
    if len(sides) == 3:
        raise DataError(f"{part.where}: images {sides}: expected (H, W, C) or (C, H, W) with 1 to 3 channels")
    if len(sides) > 3:
        raise DataError(f"{part.where}: images {sides}: expected (H, W), (H, W, C) or (C, H, W)")
    for channels in (1, 3):
        rows, columns = shape or (round((sides[0] / channels) ** 0.5),) * 2
        if channels * rows * columns == sides[0]:
            break
    else:
        todo = "name the columns 1x1 ... ROWSxCOLUMNS, or give arrays (N, H, W)"
        raise DataError(f"{part.where}: {sides[0]:,} values are no square image, gray or of three channels: {todo}")
    said = f"{sides[0]:,} values taken as {rows} x {columns} pixels"
    if channels == 1:
        return (1, rows, columns), False, said
    if _interleaved(part.pixels, columns):
        return (rows, columns, 3), True, f"{said} of red, green and blue, pixel by pixel"
    return (3, rows, columns), False, f"{said} of red, green and blue, one after another"


def _interleaved(pixels: np.ndarray, columns: int) -> bool:
    """Whether the three channels of (N, values) alternate, as the smoother images tell."""
    some = pixels[:: -(-len(pixels) // 256)].astype(np.float64)

    def roughness(*steps: int) -> float:
        return sum(float(np.abs(some[:, step:] - some[:, :-step]).mean()) for step in steps)

    return columns < 2 or roughness(3, 3 * columns) <= roughness(1, columns)


def _bytes(parts: dict[str, Labelled]) -> tuple[list[np.ndarray], str]:
    """Pixels as uint8, and how they were scaled."""
    check_range({part.where: part.pixels for part in parts.values()})
    every = [part.pixels for part in parts.values()]
    low, high = (float(f([f(found) for found in every])) for f in (np.min, np.max))  # NaN stays NaN
    if not (low >= 0 and high < np.inf and high <= 255):
        shown = f"{low:g} to {high:g}" if np.isfinite([low, high]).all() else "that are no numbers, or infinite"
        todo = "give them before they were normalized, or scale them"
        raise DataError(f"{parts['train'].where}: pixels {shown}; the rule is 0..255, or 0..1: {todo}")
    if all(found.dtype == np.uint8 for found in every) and high > 1:
        return every, _doubt(high)
    if high <= 1 + _ROUNDING:
        scaled = [np.minimum(np.rint(found * np.float32(255)), 255).astype(np.uint8) for found in every]
        return scaled, f"pixels {low:g}..{high:g} were multiplied by 255" if high else ""
    whole = all(found.dtype.kind != "f" or bool((found == np.rint(found)).all()) for found in every)
    rounded = [np.rint(found).astype(np.uint8) for found in every]
    return rounded, joined("" if whole else "pixels were rounded", _doubt(high))


def check_range(arrays: dict[str, np.ndarray]) -> None:
    """Raise DataError where pixels, by their file, are 0..1 here and 0..255 there, or go a little beyond 1."""
    most = {where: float(np.max(found, initial=0)) for where, found in arrays.items()}
    parts = [where for where, found in arrays.items() if found.dtype.kind == "f" and (found != np.rint(found)).any()]
    low = [where for where in parts if most[where] <= 1 + _ROUNDING]
    between = [where for where in parts if 1 + _ROUNDING < most[where] < 2]
    high = [where for where in most if most[where] >= 2]
    if between or (low and high):
        shown = "; ".join(f"{where}: up to {most[where]:g}" for where in (between or [low[0], high[0]]))
        raise DataError(f"pixels 0..1 and 0..255 cannot be told apart ({shown}): scale them alike")


def _doubt(high: float) -> str:
    return f"warning: the largest pixel is {high:g}, taken as of 255" if high < _DARK else ""


def to_classes(parts: dict[str, Labelled], names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Labels of all splits as places in the classes, int64 (N,); the classes; what was assumed. Raises DataError."""
    said, every = "", list[np.ndarray]()
    if len({*names}) < len(names) or not all(names):
        raise DataError(
            f"{parts['train'].where}: class names {', '.join(map(repr, names[:8]))}: each needs one of its own"
        )
    for pixels, labels, where, of_labels in parts.values():
        where = of_labels or where
        if len(labels.shape) == 2 and labels.shape[1] > 1 and len(labels):
            numbers = labels.dtype.kind in "buif"
            if not numbers or not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
                raise DataError(f"{where}: labels {labels.shape}, not one-hot: each image needs one label")
            names = names or tuple(map(str, range(labels.shape[1])))
            labels, said = labels.argmax(axis=1), "one-hot labels"
        if labels.ndim not in (1, 2) or labels.size != len(labels) or len(labels) != len(pixels):
            raise DataError(f"{where}: {len(pixels)} images, but labels {labels.shape}: each image needs one label")
        labels = labels.reshape(-1)
        whole = labels.dtype.kind in "bui" or (labels.dtype.kind == "f" and bool((labels == np.rint(labels)).all()))
        if labels.dtype.kind == "S":
            labels = _decoded(labels, where)
        elif labels.dtype.kind != "U" and not (whole and bool((np.abs(labels.astype(np.float64)) < 2**53).all())):
            raise DataError(f"{where}: labels must be whole numbers or texts, found {labels.dtype}, {labels[:1]}")
        every.append(labels if labels.dtype.kind == "U" else labels.astype(np.int64))
    where, found = parts["train"].of_labels or parts["train"].where, np.concatenate(every)
    known, places = np.unique(found, return_inverse=True)
    if names and found.dtype.kind != "U":
        if known[0] < 0 or known[-1] >= len(names):
            outside = known[-1] if known[0] >= 0 else known[0]
            raise DataError(f"{where}: label {outside} is out of range; {len(names)} classes: 0..{len(names) - 1}")
        return found, names, said
    if len(known) < 2 or len(known) * 2 > len(found):
        raise DataError(f"{where}: {len(known)} classes for {len(found)} images: are these the labels?")
    if found.dtype.kind == "U":
        if names and not set(known.tolist()) <= set(names):
            raise DataError(f"{where}: {min(set(known.tolist()) - set(names))!r} is not among the class names")
        names = names or tuple(known.tolist())
        return np.array([names.index(name) for name in known.tolist()])[places], names, said
    span = range(min(1, int(known[0])), int(known[-1]) + 1)
    if known[0] < 0 or len(span) > 2 * len(known):  # such as 0 and 255
        return places, tuple(map(str, known.tolist())), f"labels {_few(known)} are the classes 0..{len(known) - 1}"
    missing = sorted({*span} - {*known.tolist()})
    gaps = f" ({_few(missing)} without images)" if missing else ""
    return found - span[0], tuple(map(str, span)), joined(said, f"labels {span[0]}..{span[-1]} are the classes{gaps}")


def _decoded(texts: np.ndarray, where: str) -> np.ndarray:
    """Texts in bytes as texts. Raises DataError where they are not UTF-8."""
    try:
        return np.char.decode(texts, "utf-8") if texts.dtype.kind == "S" else texts
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: texts are not UTF-8 ({error.object[:20]!r}): save them as UTF-8") from error


def _few(values: "Sequence[int] | np.ndarray") -> str:
    return ", ".join(map(str, values[:8])) + ", ..." * (len(values) > 8)


def split_and_kind(name: str) -> tuple[str, str]:
    """The split (``""`` for all images) and the kind, images, labels or classes, that the name of an array tells.

    >>> split_and_kind("x_train"), split_and_kind("kmnist-test-labels"), split_and_kind("trainX"), split_and_kind("y")
    (('train', 'images'), ('test', 'labels'), ('train', 'images'), ('', 'labels'))
    """
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    if len(words) == 1 and part_of(words[0][1:]) and words[0][0] in "xy":  # xtrain
        words = [words[0][0], words[0][1:]]
    split = next(filter(None, map(part_of, words)), "")
    for kind, known in (("labels", _LABELS), ("classes", _NAMES), ("images", _IMAGES)):
        if known & {*words}:
            return split, kind
    return split, ""


def load_arrays(paths: list[Path], request: DataRequest) -> Source:
    """Read ``.npz`` and ``.npy`` files; names tell what is what. One ``.npy`` file of images per class will do, too.

    Raises:
        DataError: a file is damaged, names do not tell what is what, or as :func:`as_images`.
    """
    found: dict[tuple[str, str], tuple[str, np.ndarray]] = {}
    others: dict[str, np.ndarray] = {}
    for path in paths:
        if path.suffix.lower() == ".npy":
            inside = {path.stem: read_array(path, kind=DataError)}
        else:
            inside = read_arrays(path, kind=DataError, packed=64)
            alone = len(inside) == 1 and len(paths) > 1
            inside = {path.stem if alone else name: array for name, array in inside.items()}
        for name, array in inside.items():
            key = split_and_kind(name)
            if not key[1]:
                others[name] = array
            elif key in found:
                both = f"{found[key][0]} and {path.name}:{name}"
                raise DataError(f"{path.parent}: {both} are both {' '.join(key).strip()}: give the file of one dataset")
            else:
                found[key] = f"{path.name}:{name}" if path.suffix.lower() == ".npz" else path.name, array
    where, names = paths[0].parent if len(paths) > 1 else paths[0], found.pop(("", "classes"), ("", np.empty(0)))[1]
    left = f"arrays not read: {', '.join(others)}" if found and others else ""
    names = _decoded(names, str(where))
    if not found and len(others) > 1 and all(path.suffix.lower() == ".npy" for path in paths):
        if flat := [name for name, array in others.items() if array.ndim < 2 or array.dtype.kind not in "buif"]:
            raise DataError(f"{where}: {', '.join(flat[:4])}: expected images (N, H, W), ..., a file for each class")
        check_range({f"{where} ({name})": array for name, array in others.items()})
        pixels = np.concatenate([*others.values()]) if len({a.shape[1:] for a in others.values()}) == 1 else np.empty(0)
        texts = np.repeat([*others], [len(array) for array in others.values()])
        parts, left = {"train": Labelled(pixels, texts, str(where))}, "each file is a class"
    else:
        pairs = {split: [found.get((split, kind)) for kind in ("images", "labels")] for split, _ in found}
        if "" in pairs and len(pairs) == 1:
            pairs["train"] = pairs.pop("")
        if "train" not in pairs or not all(images and labels for images, labels in pairs.values()):
            names_found = ", ".join([name for name, _ in found.values()] + [*others]) or "none"
            raise DataError(f"{where}: arrays {names_found}; each split needs images and labels, such as {KNOWN}")
        parts = {
            split: Labelled(images[1], labels[1], f"{where} ({images[0]})", f"{where} ({labels[0]})")
            for split, (images, labels) in pairs.items()
            if images and labels
        }
    return source_of(parts, "NumPy arrays", where, left, tuple(map(str, names.tolist() if names.ndim == 1 else ())))


def source_of(
    parts: dict[str, Labelled],
    source: str,
    where: Path,
    note: str = "",
    classes: Sequence[str] = (),
    **shape: tuple[int, ...],
) -> Source:
    """The images of a path; a validation split without a test split is the test split."""
    if "calibration" in parts and "test" not in parts:
        parts["test"], note = parts.pop("calibration"), joined(note, "the validation split is the test split")
    elif "calibration" in parts:
        note = joined(note, "the validation split is the calibration split")
    return to_source(as_images(parts, classes, **shape), "folder", source=source, root=where, note=note)
