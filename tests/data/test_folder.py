"""Image folders: layouts, order, channels, sizes, and every way they can be wrong."""

import numpy as np
import pytest
import torch
from data_files import pixels, write_folder, write_image
from PIL import Image

from caplet.data import load_data, load_saved_splits
from caplet.data.folder import find_layout, scan_folder
from caplet.data.images import ImageFile, convert, decode_all
from caplet.data.imageset import ImageSet, pixel_array
from caplet.errors import ConfigError, DataError


def everything(splits) -> torch.Tensor:
    """All images of a folder without test split, in the order of the files."""
    parts = (splits.train, splits.calibration, splits.test)
    ids = torch.cat([part.ids for part in parts])
    return torch.cat([part.images for part in parts])[torch.argsort(ids)]


def converted(images: np.ndarray, size: tuple[int, int] | None = None, channels: int | None = None) -> torch.Tensor:
    """uint8 (N, C, H, W) as :func:`convert` makes it of (N, H, W, C)."""
    labels = np.zeros(len(images), dtype=np.int64)
    every = ImageSet.of_arrays(images.transpose(0, 3, 1, 2).copy(), labels, ("a",), "all")
    return convert(every, size=size, channels=channels).images


def test_classes_and_files_in_sorted_order(tmp_path):
    every = write_folder(tmp_path, ("ant", "bee", "cow"), 20)
    write_image(tmp_path / ".hidden" / "x.png", every[0])
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    splits = load_data(str(tmp_path))
    assert splits.info["name"] == "folder"
    assert splits.train.classes == ("ant", "bee", "cow")
    assert splits.train.image_shape == (3, 6, 5)
    assert np.array_equal(everything(splits).numpy(), every.transpose(0, 3, 1, 2))
    assert splits.info["sizes"] == {"train": 44, "calibration": 4, "test": 12}
    assert splits.test.class_counts() == (4, 4, 4)
    assert "cut by caplet: 20 %" in splits.info["test_split"]
    again = load_data("folder", tmp_path)
    assert again.info == splits.info


def test_train_and_test_folders(tmp_path):
    train = write_folder(tmp_path / "train", ("a", "b"), 10)
    test = write_folder(tmp_path / "test", ("a", "b"), 3)
    val = write_folder(tmp_path / "Val", ("a", "b"), 3)
    write_folder(tmp_path / "more", ("a", "b"), 1)
    splits = load_data(tmp_path, calibration_size=4)
    assert np.array_equal(splits.test.images.numpy(), test.transpose(0, 3, 1, 2))
    assert splits.test.ids.tolist() == list(range(6))
    assert splits.calibration.class_counts() == (2, 2)
    held = val.transpose(0, 3, 1, 2)[splits.calibration.ids.numpy() - 20]
    assert np.array_equal(splits.train.images.numpy(), train.transpose(0, 3, 1, 2))
    assert np.array_equal(splits.calibration.images.numpy(), held)
    assert splits.info["note"] == "not read: more; the calibration split is the folder Val"
    splits.save_ids(tmp_path / "ids.json")
    assert load_saved_splits(tmp_path / "ids.json", tmp_path).info == splits.info
    assert splits.info["test_split"].startswith("published")


def test_train_folder_alone_gets_a_test_split(tmp_path):
    write_folder(tmp_path / "train", ("a", "b"), 10)
    assert load_data(tmp_path).info["sizes"]["test"] == 4


def test_a_class_may_be_called_train(tmp_path):
    write_folder(tmp_path, ("bus", "train"), 10)
    assert find_layout(scan_folder(tmp_path)).classes == ("bus", "train")


def test_gray_files_stay_gray_and_mixed_become_rgb(tmp_path):
    gray = write_folder(tmp_path, ("a", "b"), 10, (6, 5))
    assert np.array_equal(everything(load_data(tmp_path))[:, 0].numpy(), gray)
    colour = pixels(1, (6, 5, 3), 9)[0]
    write_image(tmp_path / "b" / "999.png", colour)
    mixed = everything(load_data(tmp_path))
    assert mixed.shape[1] == 3
    assert np.array_equal(mixed[-1].numpy(), colour.transpose(2, 0, 1))
    assert np.array_equal(mixed[3].numpy(), np.stack([gray[3]] * 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_asked_for(tmp_path, channels):
    every = write_folder(tmp_path, ("a", "b"), 10)
    made = everything(load_data(tmp_path, channels=channels))
    assert made.shape[1] == channels
    assert torch.equal(made, converted(every, channels=channels))


def test_size_asked_for_equals_resizing_afterwards(tmp_path):
    every = write_folder(tmp_path, ("a", "b"), 10)
    made = everything(load_data(tmp_path, size=(4, 9)))
    assert torch.equal(made, converted(every, (4, 9)))
    write_image(tmp_path / "a" / "zzz.png", pixels(1, (30, 20, 3))[0])
    assert load_data(tmp_path, size=7).train.image_shape == (3, 7, 7)


def test_gray_formula_is_pillows():
    rgb = pixels(50, (8, 8, 3))
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in rgb])
    formula = (rgb.astype(np.int64) @ [19595, 38470, 7471] + 32768) >> 16
    assert np.array_equal(converted(rgb, channels=1)[:, 0].numpy(), expected)
    assert np.array_equal(formula, expected)


def test_camera_orientation_is_obeyed(tmp_path):
    write_folder(tmp_path, ("a", "b"), 5)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the file is stored lying
    turned = pixels(1, (5, 6, 3), 3)[0]
    write_image(tmp_path / "a" / "zzz.png", turned, exif=exif)
    made = everything(load_data(tmp_path))
    assert np.array_equal(made[5].numpy(), np.rot90(turned, -1).transpose(2, 0, 1))


def test_progress_bar_goes_to_stderr_only_when_asked(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then draws as on a terminal
    write_folder(tmp_path, ("a", "b"), 10)
    load_data(tmp_path)
    assert capfd.readouterr() == ("", "")
    load_data(tmp_path, progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "Decoding images" in shown.err


def test_many_chunks_keep_their_order():
    every = pixels(1000, (3, 3))
    files = []
    for i, image in enumerate(every):
        text = b"P5 3 3 255\n" + image.tobytes()
        files.append(ImageFile(f"{i}.pgm", text))
    assert np.array_equal(decode_all(files)[0][:, 0], every)


def test_missing_empty_and_one_class(tmp_path):
    with pytest.raises(DataError, match=r"no image folder .*nowhere: expected one with <class>/\*\.png"):
        load_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder"):
        load_data("folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="dataset 'folder' needs the path of your images: give root="):
        load_data("folder")
    with pytest.raises(DataError, match="no class folders with images found"):
        load_data(tmp_path)
    write_folder(tmp_path, ("only",), 5)
    with pytest.raises(DataError, match=r"only one class \('only'\) found"):
        load_data(tmp_path)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="class 'void' has no training images"):
        load_data(tmp_path)


def test_two_places(tmp_path):
    write_folder(tmp_path, ("a", "b"), 5)
    with pytest.raises(DataError, match="two places"):
        load_data(tmp_path, tmp_path)


def test_test_folder_with_another_class_or_nothing(tmp_path):
    write_folder(tmp_path / "train", ("a", "b"), 5)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="the test folder has no images"):
        load_data(tmp_path)
    write_folder(tmp_path / "test", ("z",), 5)
    with pytest.raises(DataError, match="test has class 'z', train does not"):
        load_data(tmp_path)


@pytest.mark.parametrize("kind", ["text", "empty", "png", "jpg"])
def test_unreadable_image_is_named(tmp_path, kind):
    write_folder(tmp_path, ("a", "b"), 5)
    bad = tmp_path / "b" / f"007.{'jpg' if kind == 'jpg' else 'png'}"
    write_image(bad, pixels(1, (6, 5, 3))[0])
    content = bad.read_bytes()
    bad.write_bytes({"text": b"hello", "empty": b""}.get(kind, content[: len(content) * 2 // 3]))
    with pytest.raises(DataError, match=r"unreadable image .*b/007\.(png|jpg) \(\d+ bytes\).*replace or remove it"):
        load_data(tmp_path)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_of_gray_become_eight(tmp_path, ending):
    write_folder(tmp_path, ("a", "b"), 5, (6, 5))
    wide = np.random.default_rng(0).integers(0, 1 << 16, (6, 5), dtype=np.uint16)
    write_image(tmp_path / "a" / f"zzz.{ending}", wide)
    made = load_data(tmp_path)
    assert np.array_equal(everything(made)[5, 0].numpy(), np.floor(wide / 257 + 0.5))
    assert "1 of 11 images are gray of 16 bits: scaled to 8, divided by 257" in made.info["note"]


def test_floating_point_image_is_refused(tmp_path):
    write_folder(tmp_path, ("a", "b"), 5)
    write_image(tmp_path / "a" / "zzz.tif", np.full((6, 5), 0.5, dtype=np.float32))
    with pytest.raises(DataError, match=r"a/zzz\.tif has mode F, more than 16 bits per channel"):
        load_data(tmp_path)


def test_different_sizes_name_two_files_and_the_way_out(tmp_path):
    write_folder(tmp_path, ("a", "b"), 5)
    write_image(tmp_path / "b" / "002.png", pixels(1, (9, 7, 3))[0])
    message = r"images differ in size: .*a/000\.png is 5 x 6 pixels, .*b/002\.png is 7 x 9; .*size= \(--size\)"
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


def test_no_permission(tmp_path, monkeypatch):
    write_folder(tmp_path, ("a", "b"), 5)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("caplet.data.files.os.scandir", refuse)
        with pytest.raises(DataError, match=r"cannot read folder .*: permission denied"):
            load_data(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", refuse)
        with pytest.raises(DataError, match=r"cannot read .*a/000\.png: permission denied"):
            load_data(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.is_dir", refuse)
        with pytest.raises(DataError, match=r"cannot look at .*: permission denied"):
            load_data(tmp_path)


def test_too_few_images_for_three_splits(tmp_path):
    write_folder(tmp_path, ("a", "b"), 1)
    with pytest.raises(DataError, match=r"leaves none of class .*: add images or ask for fewer"):
        load_data(tmp_path)


@pytest.mark.parametrize("size", [0, -3, (4,), (4, 5000), (4.0, 4), (True, 4)])
def test_bad_size(size):
    with pytest.raises(ConfigError, match="image size must be a side or"):
        load_data("digits", size=size)


def test_bad_channels_and_limit():
    with pytest.raises(ConfigError, match="channels must be 1"):
        load_data("digits", channels=2)
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        load_data("digits", limit=0)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    write_folder(tmp_path, ("ant", "bee"), 2)
    Image.new("1", (9000, 9000)).save(tmp_path / "ant" / "huge.png")
    with pytest.raises(DataError, match=r"huge\.png .*9,000 x 9,000 pixels in so few bytes"):
        load_data(tmp_path)


def test_a_class_of_other_files_says_how_many(tmp_path):
    write_folder(tmp_path, ("a", "b"), 3)
    (tmp_path / "c").mkdir()
    for n in range(4):
        (tmp_path / "c" / f"{n}.heic").touch()
    with pytest.raises(DataError, match=r"class 'c' has no training images: .* \(4 files left out \(\.heic 4\)\)"):
        load_data(tmp_path)


def test_gray_of_32_bits_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for n in range(3):
            Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / name / f"{n}.tif")
    with pytest.raises(DataError, match="has mode I, more than 16 bits per channel"):
        load_data(tmp_path)


def test_pixels_that_nothing_has_room_for_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAPLET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"1,125,899\.9 GB of pixels .* are more than memory or .*cache has room for"):
        pixel_array((1 << 20, 1, 1 << 15, 1 << 15))
