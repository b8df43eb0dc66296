"""Two runs side by side: paired where the images agree, and said so where not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from caplet import api
from caplet.errors import ArtefactError
from caplet.jobs.diff import diff_runs
from caplet.jobs.prune.job import PruneSettings, prune
from caplet.metrics import paired
from caplet.runs.records import Pruned, Width


@pytest.fixture(scope="module")
def other(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like ``quantized`` with some other answers, another seed and a wider tensor."""
    folder = tmp_path_factory.mktemp("diff") / "other"
    shutil.copytree(quantized, folder)
    for name, change in (("predictions.json", answers), ("settings.json", seed), ("details.json", wider)):
        record = json.loads((folder / name).read_text())
        change(record)
        (folder / name).write_text(json.dumps(record))
    return folder


def answers(record: dict) -> None:
    found = record["models"]["satisfied"]
    for at in range(0, 40, 2):
        found[at] = (found[at] + 1) % 10


def seed(record: dict) -> None:
    record["seed"] = 7


def wider(record: dict) -> None:
    record["models"]["satisfied"]["tensors"][0]["bits"] += 1


def test_runs_on_the_same_images_are_paired(quantized: Path, other: Path) -> None:
    record = json.loads((quantized / "predictions.json").read_text())
    labels, mine = np.array(record["labels"]), np.array(record["models"]["satisfied"])
    theirs = np.array(json.loads((other / "predictions.json").read_text())["models"]["satisfied"])
    found = diff_runs(quantized, other)
    assert found.pair == paired(mine == labels, theirs == labels)
    assert found.pair.n10 > found.pair.n01
    assert found.agree == len(labels) - 20
    assert found.unpaired is None
    assert [(value.name, value.first, value.second) for value in found.settings] == [("seed", 0, 7)]
    assert len(found.widths) == 1
    figures = {value.name: value for value in found.figures}
    metrics = json.loads((quantized / "metrics.json").read_text())
    assert figures["test accuracy (%)"].first == metrics["models"][0]["test"]["percent"]
    assert figures["file bytes"].first == metrics["models"][0]["file_bytes"]
    back = diff_runs(other, quantized)
    assert back.pair is not None
    assert back.pair.loss == -found.pair.loss


def test_other_images_are_not_paired(trained: Path, quantized: Path, tmp_path: Path) -> None:
    """The training run saw 240 test images, the quantization 359."""
    found = diff_runs(trained, quantized)
    assert found.pair is None
    assert found.agree is None
    assert found.unpaired is not None
    assert "240" in found.unpaired
    assert "359" in found.unpaired
    assert not found.widths
    shutil.copytree(quantized, tmp_path / "old")
    (tmp_path / "old" / "predictions.json").unlink()
    assert "no predictions.json" in str(diff_runs(tmp_path / "old", quantized).unpaired)


def test_an_unfinished_run_is_refused(quantized: Path, tmp_path: Path) -> None:
    shutil.copytree(quantized, tmp_path / "part")
    (tmp_path / "part" / "metrics.json").unlink()
    with pytest.raises(ArtefactError, match="not finished"):
        diff_runs(quantized, tmp_path / "part")


def test_a_compression_is_what_its_last_stage_shipped(quantized: Path, trained: Path, tmp_path: Path) -> None:
    """The records that such a run leaves in its own folder, beside those of the stage."""
    shutil.copytree(quantized, tmp_path / "small" / "quantize-1")
    for name in ("settings.json", "environment.json", "splits.json"):
        shutil.copy(quantized / name, tmp_path / "small" / name)
    settings = json.loads((quantized / "settings.json").read_text())
    (tmp_path / "small" / "settings.json").write_text(json.dumps({**settings, "job": "compress"}))
    metrics = json.loads((quantized / "metrics.json").read_text())
    points = {"pruned": vars(Pruned(1.0, 1, 1, 0.0, 1, 0)), "width": vars(Width(8, 0.0, 1))}
    record = {
        "met": True,
        "compressed": {**metrics["models"][0], "times_smaller": 4.0, "macs_kept": 1.0},
        "choice": {**points, "curve": [], "widths": [], "pairs": [], "reasons": []},
        "speed": {"images": 1, "threads": 1, "turns": 1, "torch_batch": 1, "sides": {}},
        **{key: [] for key in ("missed", "attempts", "outlook", "verified")},
        **{key: {} for key in ("limits", "stages")},
        "folders": ["quantize-1"],
        "float": metrics["float"],
    }
    (tmp_path / "small" / "metrics.json").write_text(json.dumps(record))
    found = diff_runs(tmp_path / "small", quantized)
    assert found.names[0] == "small"
    assert found.pair is not None
    assert (found.pair.n10, found.pair.n01) == (0, 0)


def test_pruned_networks_are_compared(trained: Path, tmp_path: Path) -> None:
    model, few = api.load_float(trained / "model.safetensors"), api.load_data("digits", calibration_size=120, limit=240)
    pruned = prune(model, few, tmp_path / "pruned", PruneSettings(macs=0.6, epochs=0))
    found = diff_runs(trained, tmp_path / "pruned")
    assert found.pair == pruned.against
    figures = {value.name: value for value in found.figures}
    assert figures["test accuracy (%)"].second == pruned.test.percent
    assert figures["weight bytes"].second == 4 * pruned.model.parameter_count()
