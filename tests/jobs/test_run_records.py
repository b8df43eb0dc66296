"""What a run keeps for its report: answers per image, flipped images, tensors and memory plans."""

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from caplet.data import Splits
from caplet.data.splits import unpack_ids
from caplet.jobs.run import evaluate, float_predictions
from caplet.models.checkpoint import load_model
from caplet.program import load_program, plan_memory, verify
from caplet.runs.shipped import MOST_FLIPS, png, record_flips


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_the_answers_are_those_of_the_models(trained: Path, quantized: Path, digits: Splits) -> None:
    record, test = read(quantized, "predictions.json"), digits.test
    assert record["sha256"] == test.sha256()
    assert record["labels"] == test.labels.tolist()
    assert unpack_ids(record["ids"]) == test.ids.tolist()
    assert record["float"] == float_predictions(load_model(trained / "model.safetensors"), test).tolist()
    program = load_program(quantized / "model_satisfied.caplet")
    assert record["models"]["satisfied"] == evaluate(program, test, engine="interpreter").predictions.tolist()
    of_training = read(trained, "predictions.json")
    assert (len(of_training["float"]), of_training["models"]) == (240, {})


def test_details_describe_the_shipped_file(quantized: Path) -> None:
    details = read(quantized, "details.json")["models"]["satisfied"]
    path = quantized / "model_satisfied.caplet"
    program = load_program(path)
    assert details["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert details["ops"] == [op.name for op in program.ops]
    assert details["accumulators"] == verify(program).to_json()
    assert details["memory"]["fast"]["bytes"] == plan_memory(program).bytes
    assert details["memory"]["small"]["bytes"] == plan_memory(program, "small").bytes
    assert {row["point"]: row["bits"] for row in details["tensors"]}["digit.votes"] == program.tensors[
        "digit.votes"
    ].format.bits


def test_flips_are_counted_and_shown_losses_first(digits: Splits, tmp_path: Path) -> None:
    labels = digits.test.labels.numpy()
    right, wrong = labels.copy(), (labels + 1) % 10
    float_, integers = right.copy(), right.copy()
    integers[[5, 9]] = wrong[[5, 9]]  # two lost
    float_[7] = wrong[7]  # one won
    float_[8], integers[8] = wrong[8], (labels[8] + 2) % 10  # wrong in another way
    float_[3], integers[3] = wrong[3], wrong[3]  # wrong in the same way: no flip
    record_flips(tmp_path, digits.test, "satisfied", float_, integers)
    flips = read(tmp_path, "flips.json")
    assert flips["counts"] == {"lost": 2, "won": 1, "other": 1}
    assert [shown["kind"] for shown in flips["shown"]] == ["lost", "lost", "won", "other"]
    first = flips["shown"][0]
    assert (first["label"], first["float"], first["integers"]) == (labels[5], labels[5], wrong[5])
    assert first["id"] == digits.test.ids[5]
    with Image.open(io.BytesIO(base64.b64decode(first["png"]))) as picture:
        assert np.array_equal(np.asarray(picture), digits.test.images[5, 0].numpy())


def test_only_some_flips_keep_their_pixels(digits: Splits, tmp_path: Path) -> None:
    labels = digits.test.labels.numpy()
    record_flips(tmp_path, digits.test, "satisfied", labels, (labels + 1) % 10)
    flips = read(tmp_path, "flips.json")
    assert flips["counts"]["lost"] == len(labels) > MOST_FLIPS == len(flips["shown"])


def test_no_kind_of_flip_crowds_the_others_out(digits: Splits, tmp_path: Path) -> None:
    images = digits.test
    labels = images.labels.numpy()
    wrong, other = (labels + 1) % 10, (labels + 2) % 10
    lost, won = slice(0, 100), slice(100, 125)
    before, after = labels.copy(), labels.copy()
    after[lost], before[won] = wrong[lost], wrong[won]
    before[125:128], after[125:128] = wrong[125:128], other[125:128]
    record_flips(tmp_path, images, "one", before, after)
    kinds = [shown["kind"] for shown in json.loads((tmp_path / "flips.json").read_text())["shown"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {"lost": 37, "won": 20, "other": 3}
    assert kinds == sorted(kinds, key=("lost", "won", "other").index)


@pytest.mark.parametrize(("shape", "size", "mode"), [((3, 200, 100), (48, 96), "RGB"), ((2, 5, 7), (7, 5), "L")])
def test_pictures_are_small(shape: tuple[int, ...], size: tuple[int, int], mode: str) -> None:
    with Image.open(io.BytesIO(png(np.full(shape, 7, np.uint8)))) as picture:
        assert (picture.size, picture.mode) == (size, mode)
