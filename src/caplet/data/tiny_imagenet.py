"""Tiny-ImageNet-200: 200 classes of 64x64 images, in the folders in which it is published."""

from pathlib import Path

from caplet.data.files import data_root, is_file, is_folder, list_folder, read_bytes
from caplet.data.folder import ByClass, ImageTree, decode_tree, scan_folder, to_source
from caplet.data.source import DataRequest, Source
from caplet.errors import DataError

NAME = "tiny-imagenet"
FOLDER = "tiny-imagenet-200"
LAYOUT = f"{FOLDER}/ with train/<class>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt"
NOTE = "test is the published validation split (the published test split has no labels)"


def load_tiny_imagenet(request: DataRequest) -> Source:
    """Read the folder ``tiny-imagenet-200`` at or under ``request.root``; nothing is downloaded.

    The published validation images, which have labels, are the test split; calibration is cut from train as always.

    Raises:
        DataError: files are missing or damaged, or ``val_annotations.txt`` does not fit them.
    """
    root = data_root(request)
    folder = root / FOLDER if is_folder(root / FOLDER) else root
    if not is_folder(folder / "train") or not is_file(folder / "val" / "val_annotations.txt"):
        raise DataError(f"no Tiny-ImageNet-200 in {root}: expected {LAYOUT}; fetch and unpack it, and give --root")
    places = {name: folder / "train" / name / "images" for name in list_folder(folder / "train")[0]}
    train = {name: scan_folder(place, 0).images if is_folder(place) else [] for name, place in places.items()}
    tree = ImageTree(folder, train, _annotated(folder / "val", tuple(sorted(train))))
    return to_source(decode_tree(tree, request), NAME, source="image folder", root=folder, note=NOTE)


def _annotated(folder: Path, classes: tuple[str, ...]) -> ByClass:
    """The validation images by the class that ``val_annotations.txt`` gives them."""
    path = folder / "val_annotations.txt"
    found: ByClass = {name: [] for name in classes}
    here = {Path(image.name).name: image for image in scan_folder(folder / "images", 0).images}
    for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), start=1):
        words = line.split("\t")
        if len(words) < 2 or words[1] not in found:
            raise DataError(
                f"{path}: line {number} is {line[:60]!r}; the rule is an image, a tab, and one of the"
                f" {len(classes)} classes of train: fetch it again"
            )
        image = here.pop(words[0], None)
        if image is None:
            raise DataError(f"{path}: line {number}: no image {words[0]!r:.60} in {folder / 'images'}, or named twice")
        found[words[1]].append(image)
    if here:
        raise DataError(f"{path}: {len(here)} images have no line, the first is {min(here)}: fetch it again")
    return {name: sorted(images, key=lambda image: image.name) for name, images in found.items()}
