"""Two models side by side, and accuracy-against-kept curves."""

import json
from pathlib import Path

import numpy as np
import pytest

from caplet.bench.settings import BenchSettings
from caplet.bench.two_models import bench
from caplet.data import load_data
from caplet.errors import ConfigError, ModelError
from caplet.jobs.prune.curves import REMAINING, prune_curves
from caplet.jobs.prune.settings import PruneSettings
from caplet.models.checkpoint import load_model
from caplet.models.registry import build
from caplet.prune.scores import SCORES
from caplet.prune.structure import cut


def test_a_smaller_model_is_measured_faster_in_the_same_run(trained: Path) -> None:
    model = load_model(trained / "model.safetensors")
    big = build("shallow", {**model.config.model_dump(), "primary_types": 512})
    before = {key: value.clone() for key, value in big.state_dict().items()}
    record = bench(big, model, BenchSettings(inference_batch=16, training_batch=8, turns=3))
    for what in ("inference", "training"):
        row = record[what]
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert row["ratio"]["median"] > 1
        assert row["b"]["median"] > row["a"]["median"] > 0
    assert record["cost"]["a"]["macs"] > record["cost"]["b"]["macs"]
    assert all(bool((before[key] == value).all()) for key, value in big.state_dict().items())


def test_what_bench_refuses(trained: Path) -> None:
    model = load_model(trained / "model.safetensors")
    other = build("shallow", {**model.config.model_dump(), "image": (1, 9, 9)})
    with pytest.raises(ModelError, match="images of 1x8x8 and 1x9x9"):
        bench(model, other)
    with pytest.raises(ConfigError, match="turns: Input should be greater than or equal to 1"):
        BenchSettings(turns=0)


def test_curves_of_every_score(trained: Path, tmp_path: Path) -> None:
    model = load_model(trained / "model.safetensors")
    splits = load_data("digits", calibration_size=120, limit=240)
    record = prune_curves(model, splits, tmp_path / "run", PruneSettings(keep=1.0, images=60))
    assert set(record["scores"]) == set(SCORES)
    saved = json.loads((tmp_path / "run" / "curves.json").read_text())
    assert saved["scores"] == record["scores"]
    assert b"<svg" in (tmp_path / "run" / "curves.svg").read_bytes()
    for line in record["scores"].values():
        points = line["points"]
        assert len(points) == len(REMAINING)
        assert points[0] == {"kept": 1.0, "macs": 1.0, "accuracy": record["reference"]}
        assert np.all(np.diff([point["macs"] for point in points]) < 0)
        assert min(p["accuracy"] for p in points) <= line["area"] <= max(p["accuracy"] for p in points)
    whole = cut(model, {})
    assert whole.config == model.config
