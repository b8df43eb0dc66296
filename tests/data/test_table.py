"""CSV files of pixels: headings, where the label is, single files and splits, and lines that are wrong."""

import numpy as np
import pytest
from data_files import pixels

from caplet.data import load_data
from caplet.errors import DataError

LABELS = np.arange(60) % 3
SQUARE = pixels(60, (6, 6))
PIXELS = [f"pixel{n}" for n in range(36)]


def write(path, columns, heading=(), mark=",", end="\n"):
    lines = [mark.join(map(str, row)) for row in zip(*columns, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join([mark.join(heading)] * bool(heading) + lines + [""]).encode())
    return path


FLAT = [*SQUARE.reshape(60, 36).T]


@pytest.mark.parametrize("mark", [",", ";", "\t", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize(
    ("columns", "heading", "said"),
    [
        ([LABELS, *FLAT], ["label", *PIXELS], ""),
        ([*FLAT, LABELS], [*PIXELS, "class"], ""),
        ([LABELS, *FLAT], [], "the first column taken as the label"),
        ([*FLAT, LABELS], [], "the last column taken as the label"),
        ([range(60), LABELS, *FLAT], ["id", "Label", *PIXELS], ""),
        ([range(60), LABELS, *FLAT], ["", "y", *map(str, range(36))], ""),
        ([LABELS, *FLAT], ["what", *PIXELS], "column 'what' taken as the label"),
        ([LABELS, *FLAT], ["label", *[f"{r}x{c}" for r in range(1, 7) for c in range(1, 7)]], ""),
        ([[f'"{label}"' for label in LABELS], *FLAT], ['"label"', *PIXELS], ""),
        ([[f"{label}.0" for label in LABELS], *FLAT], ["label", *PIXELS], ""),
    ],
)
def test_the_usual_forms(tmp_path, columns, heading, said, mark, end):
    splits = load_data(write(tmp_path / "a.csv", columns, heading, mark, end))
    for part in (splits.train, splits.calibration, splits.test):
        assert np.array_equal(part.images[:, 0].numpy(), SQUARE[part.ids])
        assert np.array_equal(part.labels.numpy(), LABELS[part.ids])
    assert splits.train.classes == ("0", "1", "2")
    assert said in splits.info["note"]
    assert "36 values taken as 6 x 6 pixels" in splits.info["note"]
    assert "labels 0..2 are the classes" in splits.info["note"]


def test_train_and_test_files(tmp_path):
    heading = ["label", *PIXELS]
    write(tmp_path / "sign_mnist_train.csv", [LABELS, *FLAT], heading)
    write(tmp_path / "sign_mnist_test.csv", [LABELS[:20], *(c[20:40] for c in FLAT)], heading)
    write(tmp_path / "sample_submission.csv", [range(3), [0] * 3], ["ImageId", "Label"])
    splits = load_data(tmp_path)
    assert splits.info["sizes"] == {"train": 54, "calibration": 6, "test": 20}
    assert np.array_equal(splits.test.images[:, 0].numpy(), SQUARE[20:40])
    assert "not read: sample_submission.csv" in splits.info["note"]


@pytest.mark.parametrize("heading", [True, False])
def test_test_images_without_labels(tmp_path, heading):
    write(tmp_path / "train.csv", [LABELS, *FLAT], ["label", *PIXELS] if heading else [])
    write(tmp_path / "test.csv", FLAT, PIXELS if heading else [])
    splits = load_data(tmp_path)
    assert splits.info["sizes"] == {"train": 44, "calibration": 4, "test": 12}
    assert "test.csv has no labels and is not read" in splits.info["note"]
    assert "20 % of the images were cut off as the test split" in splits.info["note"]


def test_names_as_labels_fractions_and_shapes(tmp_path):
    names = [("cat", "ant", "bee")[label] for label in LABELS]
    images = pixels(60, (4, 9))
    heading = ["label", *[f"{r}x{c}" for r in range(1, 5) for c in range(1, 10)]]
    fractions = [[f"{value / 255:.4f}" for value in column] for column in images.reshape(60, 36).T]
    splits = load_data(write(tmp_path / "a.csv", [names, *fractions], heading))
    assert splits.train.classes == ("ant", "bee", "cat")
    assert splits.train.image_shape == (1, 4, 9)
    assert np.array_equal(splits.test.images[:, 0].numpy(), images[splits.test.ids])
    assert [splits.test.classes[k] for k in splits.test.labels] == [names[i] for i in splits.test.ids]
    assert "multiplied by 255" in splits.info["note"]
    assert load_data(write(tmp_path / "b.csv", [names, *fractions])).train.classes == ("ant", "bee", "cat")


def replaced(row, column, value):
    columns = [[*map(str, column)] for column in [LABELS, *FLAT]]
    columns[column][row] = value
    return columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (replaced(7, 5, "256"), r"a\.csv, line 9, column 6: '256' is no pixel; the rule is numbers 0\.\.255"),
        (replaced(7, 5, "-1"), "line 9, column 6: '-1' is no pixel"),
        (replaced(7, 5, "nan"), "line 9, column 6: 'nan' is no pixel"),
        (replaced(7, 5, ""), "line 9, column 6: '' is no pixel"),
        (replaced(7, 5, "1e999"), "line 9, column 6: '1e999' is no pixel"),
        (replaced(7, 5, "x" * 5000), "line 9, column 6: 'x{40}' is no pixel"),
        (replaced(7, 5, "1,2"), "line 9: 38 values, line 1 has 37"),
        (replaced(7, 0, ""), "line 9: '' is no label"),
        (replaced(7, 0, "1.5"), r"labels such as 2 are no whole numbers, and no names|labels such as 1\.5"),
        ([range(60), *FLAT], "60 classes for 60 images: are these the labels"),
        ([[3] * 60, *FLAT], "1 classes for 60 images"),
        ([LABELS, *FLAT[:-1]], "35 values are no square image, gray or of three channels: name the columns 1x1"),
        ([LABELS], "the file has no images"),
        ([[]] * 37, "the file has no images"),
    ],
)
def test_wrong_lines_are_named(tmp_path, columns, message):
    with pytest.raises(DataError, match=message) as caught:
        load_data(write(tmp_path / "a.csv", columns, ["label", *PIXELS][: len(columns)]))
    assert "a.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file has no lines"),
        (b"\n\n\n", "the file has no lines"),
        (b"\x00" * 300, "labels|values|images|heading|column|zero bytes"),
        (b"1,2\n" * 40, "neither the first nor the last column can be the labels: name the columns"),
        (b"0,1,1,1,1,0\n1,0,0,0,0,1\n" * 20, "both the first and the last column can be the labels"),
        (b"name,when,pixel0\n" + b"1,2,3\n" * 9, "columns 'name', 'when' are no pixels; which is the label"),
        (b"pixel0,pixel1\n" + b"1,2\n" * 9, "no column is named as the label"),
        (b"," * (1 << 17) + b"\n", "no column is named as the label|the file has no images"),
        (b"," * (1 << 21) + b"\n", "more than 1,048,576 columns"),
        (b"label," + b"9" * 70_000_000, "more than 67,108,864 bytes: is this a CSV file"),
    ],
    ids=["empty", "blank", "zeros", "neither", "both", "two names", "no label", "commas", "wide", "long"],
)
def test_what_nothing_is_known_of_is_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "a.csv")


def test_which_file_is_what(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.csv", [LABELS, *FLAT], ["label", *PIXELS])
    with pytest.raises(DataError, match=r"a\.csv, b\.csv: expected train\.csv with test\.csv, or one file"):
        load_data(tmp_path)
    write(tmp_path / "train_a.csv", [LABELS, *FLAT], ["label", *PIXELS])
    write(tmp_path / "train_b.csv", [LABELS, *FLAT], ["label", *PIXELS])
    with pytest.raises(DataError, match=r"train_a\.csv, train_b\.csv: expected"):
        load_data(tmp_path)


@pytest.mark.parametrize("planes", [False, True])
def test_colours(tmp_path, planes):
    from test_arrays import smooth

    images = smooth(60, 6)
    flat = (images.transpose(0, 3, 1, 2) if planes else images).reshape(60, -1)
    splits = load_data(write(tmp_path / "a.csv", [LABELS, *flat.T], ["label", *map(str, range(108))]))
    assert np.array_equal(splits.test.images.numpy(), images.transpose(0, 3, 1, 2)[splits.test.ids])


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("columns", [[LABELS, *FLAT], [*FLAT, LABELS]], ids=["first", "last"])
def test_a_byte_order_mark_is_no_value(tmp_path, mark, columns):
    path = write(tmp_path / "a.csv", columns)
    path.write_bytes(mark + path.read_bytes())
    assert np.array_equal(load_data(path).test.labels.numpy(), LABELS[load_data(path).test.ids])


def test_the_heading_of_test_images_says_what_their_columns_are(tmp_path):
    write(tmp_path / "train.csv", [LABELS, *FLAT], ["label", *PIXELS])
    write(tmp_path / "test.csv", [*(c[20:40] for c in FLAT), LABELS[20:40]], [*PIXELS, "label"])
    splits = load_data(tmp_path)
    assert np.array_equal(splits.test.images[:, 0].numpy(), SQUARE[20:40])
    assert np.array_equal(splits.test.labels.numpy(), LABELS[20:40])
    write(tmp_path / "test.csv", [range(60), *FLAT], ["id", *PIXELS])
    assert "test.csv has no labels and is not read" in load_data(tmp_path).info["note"]
    write(tmp_path / "test.csv", [LABELS, *FLAT[::-1]], ["label", *PIXELS[::-1]])
    with pytest.raises(DataError, match=r"test\.csv: its columns of pixels are in another order than those of train"):
        load_data(tmp_path)


def test_labels_that_are_not_utf_8_are_refused(tmp_path):
    write(tmp_path / "a.csv", [LABELS, *FLAT], ["label", *PIXELS])
    lines = (tmp_path / "a.csv").read_bytes().replace(b"\n0,", b"\na\xe9,").replace(b"\n1,", b"\na\xe8,")
    (tmp_path / "a.csv").write_bytes(lines)
    with pytest.raises(DataError, match=r"a\.csv, line 2: the label is not UTF-8"):
        load_data(tmp_path)


def test_pixels_in_one_column_and_a_column_of_splits(tmp_path):
    path = tmp_path / "fer.csv"
    pixels, labels = np.random.default_rng(0).integers(0, 256, (40, 9)), np.arange(40) % 4
    parts = ["Training"] * 20 + ["PublicTest"] * 8 + ["PrivateTest"] * 12
    rows = [f"{label},{' '.join(map(str, row))},{part}" for label, row, part in zip(labels, pixels, parts, strict=True)]
    path.write_text("\n".join(["emotion,pixels,Usage", *rows]) + "\n")
    splits = load_data(path)
    assert splits.info["sizes"] == {"train": 20, "calibration": 8, "test": 12}
    assert splits.test.images.reshape(12, 9).tolist() == pixels[28:].tolist()
    assert splits.test.labels.tolist() == labels[28:].tolist()
    for wrong, message in (
        (rows[0].replace("Training", "Later"), "'Later' is no split"),
        (rows[0].replace(" ", "", 1), "line 41: 8 pixels, others have more or fewer"),
        (rows[0].replace(" ", " x", 1), r"line 41, column 2: 'x\d+' is no pixel"),
        (rows[0].replace(" ", "\t", 1).replace(" ", " x", 1), r"line 41, column 3: 'x\d+' is no pixel"),
    ):
        path.write_text("\n".join(["emotion,pixels,Usage", *rows[1:], wrong]) + "\n")
        with pytest.raises(DataError, match=message):
            load_data(path)
    path.write_text("\n".join(["emotion,pixels,Usage", *rows[28:]]) + "\n")
    with pytest.raises(DataError, match="expected training images"):
        load_data(path)


@pytest.mark.parametrize(("encoding", "end", "odd"), [("utf-16", "\n", "zero bytes"), ("utf-8", "\r", "a carriage")])
def test_texts_of_other_forms_are_named(tmp_path, encoding, end, odd):
    text = end.join(["label,p0,p1,p2,p3", *(f"{n % 2},{n},1,2,3" for n in range(20))])
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=f"it has {odd}.*: save it as a text file in UTF-8"):
        load_data(tmp_path / "a.csv")
