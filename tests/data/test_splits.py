"""The three splits: disjoint, stratified, stable, saved and rebuilt."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caplet.data import ImageSet, Splits, load_data, load_saved_splits
from caplet.data.splits import class_quotas, cut, cut_calibration, pack_ids, stratified_choice, unpack_ids
from caplet.errors import ArtefactError, ConfigError, DataError

FROZEN_SEED_0 = [1, 4, 6, 20, 22, 41, 48, 55, 58, 59]
FROZEN_SEED_1 = [5, 9, 22, 33, 37, 40, 41, 57, 73, 79]


def make(counts: tuple[int, ...]) -> ImageSet:
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    images = torch.arange(len(labels)).remainder(256).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return ImageSet(images, labels, torch.arange(len(labels)), tuple(f"c{i}" for i in range(len(counts))), "made")


@given(st.lists(st.integers(2, 60), min_size=2, max_size=8).map(tuple), st.data())
def test_cut_is_a_partition_with_the_quotas(counts, data):
    images = make(counts)
    size = data.draw(st.integers(1, len(images) // 2))
    rest, part = cut(images, size, seed=data.draw(st.integers(0, 1000)), rest_name="rest", cut_name="part")
    assert sorted(rest.ids.tolist() + part.ids.tolist()) == images.ids.tolist()
    assert part.class_counts() == class_quotas(counts, size, keep=1)
    assert rest.ids.tolist() == sorted(rest.ids.tolist())
    assert (rest.name, part.name) == ("rest", "part")


@given(st.lists(st.integers(2, 60), min_size=2, max_size=8).map(tuple), st.data())
def test_the_first_calibration_images_are_even_over_the_classes(counts, data):
    """Also where the data are sorted by class, as these are."""
    images = make(counts)
    _, part = cut_calibration(images, "made", data.draw(st.integers(1, len(images) // 2)), 3)
    first = data.draw(st.integers(1, len(part)))
    seen = torch.bincount(part.labels[:first], minlength=len(counts)).tolist()
    for found, whole in zip(seen, part.class_counts(), strict=True):
        share = whole / len(part)
        assert abs(found - first * share) <= 1 + share * len(counts)
    assert len(set(part.ids.tolist())) == len(part)


def test_the_order_of_the_calibration_split_is_its_own():
    """It depends on ids and labels, not on the order in which the images came."""
    images = make((20, 30))
    turned = images.subset(list(range(49, -1, -1)))
    parts = [cut_calibration(given, "made", 12, 5)[1] for given in (images, turned)]
    assert parts[0].ids.tolist() == parts[1].ids.tolist()
    assert parts[0].name == "made/calibration"


@given(st.lists(st.integers(0, 500), min_size=1, max_size=9).map(tuple).filter(any), st.floats(0, 1))
def test_quotas_are_proportional_and_add_up(counts, share):
    size = round(share * sum(counts))
    quotas = class_quotas(counts, size)
    assert sum(quotas) == size
    for count, quota in zip(counts, quotas, strict=True):
        assert abs(quota - count * size / sum(counts)) < 1
        assert 0 <= quota <= count


def test_choice_is_frozen_for_ever():
    """Saved experiments rely on these very images; they must never change."""
    images = make((40, 40))
    assert stratified_choice(images.labels, images.ids, 10, seed=0).tolist() == FROZEN_SEED_0
    assert stratified_choice(images.labels, images.ids, 10, seed=1).tolist() == FROZEN_SEED_1


def test_choice_does_not_depend_on_the_order_and_grows_with_size():
    images = make((40, 40))
    turned = images.subset(list(range(79, -1, -1)))
    chosen = {size: set(stratified_choice(images.labels, images.ids, size, seed=4).tolist()) for size in (6, 20)}
    assert set(turned.ids[stratified_choice(turned.labels, turned.ids, 6, seed=4)].tolist()) == chosen[6]
    assert chosen[6] < chosen[20]


@pytest.mark.parametrize(("count", "size"), [(300, 30), (200_000, 5000), (12, 2)])
def test_default_calibration_size(count, size):
    train, calibration = cut_calibration(make((count // 2, count // 2)), "made", None, 0)
    assert len(calibration) == size
    assert len(train) == count - size


def test_cut_refuses_what_cannot_be_split():
    with pytest.raises(DataError, match="cannot cut 20 of the 20 images"):
        cut_calibration(make((10, 10)), "made", 20, 0)
    with pytest.raises(DataError, match="leaves none of class 'c1'"):
        cut_calibration(make((30, 1)), "made", 30, 0)
    with pytest.raises(ConfigError, match="at least 1 image must be cut off, found 0"):
        cut_calibration(make((10, 10)), "made", 0, 0)
    with pytest.raises(ConfigError, match="seed must be 0 or more, found -1"):
        cut_calibration(make((10, 10)), "made", 5, -1)


def test_splits_refuse_overlap_and_mixed_shapes(digits):
    both = digits.train.subset([0])
    with pytest.raises(DataError, match="both in train and in calibration"):
        dataclasses.replace(digits, calibration=both)
    wide = dataclasses.replace(digits.test, images=torch.zeros(len(digits.test), 1, 8, 9, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"images \(1, 8, 9\).*must have the same"):
        dataclasses.replace(digits, test=wide)


@given(st.lists(st.integers(0, 10**6)))
def test_ids_pack_and_unpack(ids):
    assert unpack_ids(pack_ids(ids)) == ids
    assert unpack_ids(pack_ids(torch.tensor(ids, dtype=torch.int64))) == ids


@pytest.mark.parametrize("text", ["1,,2", "a", "3-1", "-4", "1-2-3", "0-9999999999"])
def test_bad_id_lists(text):
    with pytest.raises(ArtefactError, match="is not an id or a range"):
        unpack_ids(text)


def test_save_and_rebuild(tmp_path):
    splits = load_data("digits", calibration_size=100, calibration_seed=7, size=(10, 12), channels=3, limit=200)
    splits.save_ids(tmp_path / "ids.json")
    again = load_saved_splits(tmp_path / "ids.json")
    assert again.info == splits.info
    for split in ("train", "calibration", "test"):
        one, other = getattr(splits, split), getattr(again, split)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.name == other.name == f"digits/{split}"
    splits.save_ids(tmp_path / "second.json")
    assert (tmp_path / "ids.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    assert len((tmp_path / "ids.json").read_bytes()) < 10_000


def test_rebuild_notices_other_data(tmp_path, digits):
    digits.save_ids(tmp_path / "ids.json")
    record = json.loads((tmp_path / "ids.json").read_text())
    record["calibration"]["sha256"] = "0" * 64
    (tmp_path / "ids.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="digits/calibration is not the data that"):
        load_saved_splits(tmp_path / "ids.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "is not a file of split ids"),
        ({"version": 9}, "split ids of version 9"),
        ({"name": None}, "name is missing"),
        ({"size": 5.5}, "size is missing, or of another type"),
        ({"background": 7}, "background is missing, or of another type"),
        ({"channels": 1.0}, "channels is missing, or of another type"),
        ({"classes": 7}, "classes is missing, or of another type"),
        ({"train": {"count": 3}}, "split 'train' must have count, sha256, ids"),
        ({"test": {"count": 3, "sha256": "", "ids": "0-1"}}, "lists 2 ids, its count is 3"),
    ],
)
def test_bad_records(tmp_path, digits, change, message):
    digits.save_ids(tmp_path / "ids.json")
    record = json.loads((tmp_path / "ids.json").read_text()) | change
    (tmp_path / "ids.json").write_text(json.dumps(record))
    with pytest.raises(ArtefactError, match=message):
        load_saved_splits(tmp_path / "ids.json")


def test_unreadable_records_and_places(tmp_path, digits):
    with pytest.raises(ArtefactError, match=r"cannot read the split ids .*none\.json: no such file"):
        load_saved_splits(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ArtefactError, match="not valid JSON"):
        load_saved_splits(tmp_path / "bad.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot write the split ids"):
        digits.save_ids(tmp_path / "file" / "ids.json")


def test_a_failed_write_keeps_the_old_file(tmp_path, digits, monkeypatch):
    digits.save_ids(tmp_path / "ids.json")
    before = (tmp_path / "ids.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("caplet.data.files.os.fsync", full)
    other = Splits(digits.train.subset([0]), digits.calibration, digits.test, digits.info)
    with pytest.raises(ArtefactError, match="no space left on device"):
        other.save_ids(tmp_path / "ids.json")
    assert [p.name for p in tmp_path.iterdir()] == ["ids.json"]
    assert (tmp_path / "ids.json").read_bytes() == before
