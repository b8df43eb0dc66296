"""Jobs measured by workers leave what one process leaves."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet import api
from caplet.bench.papers.job import redo_papers
from caplet.bench.settings import PapersSettings
from caplet.data import Splits
from caplet.models.backbone import backbone_caps
from caplet.prune.backbone import BackbonePruned, prune_backbone
from caplet.prune.choices import BackbonePruneSettings
from caplet.train.loss import margin_loss
from caplet.workers.settings import WorkerSettings

ALONE = WorkerSettings(workers=1)


@pytest.fixture
def away(request: pytest.FixtureRequest) -> WorkerSettings:
    """Other processes: the cluster, whose processes are there already, or two of this machine where Dask is missing."""
    if find_spec("distributed") is None:
        return WorkerSettings(workers=2)
    return WorkerSettings(cluster=request.getfixturevalue("scheduler"))


def test_sensitivities_are_the_same_bytes(settings: WorkerSettings, trained: Path, tmp_path: Path) -> None:
    def files(folder: Path, workers: WorkerSettings | None) -> dict[str, Any]:
        chosen = api.SensitivitySettings(widths="2,5", draws=2, images=20)
        seen: list[tuple[int, int]] = []
        result = api.sensitivity(
            api.load_float(trained / "model.safetensors"),
            api.load_data("digits", calibration_size=120),
            folder,
            chosen,
            progress=lambda done, total: seen.append((done, total)),
            workers=workers,
        )
        assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))
        names = ("sensitivity.jsonl", "sensitivity.svg", "settings.json", "splits.json")
        return {name: (folder / name).read_bytes() for name in names} | {"points": result.metrics["points"]}

    assert files(tmp_path / "there", settings) == files(tmp_path / "here", ALONE)


@pytest.mark.slow
def test_candidates_of_a_backbone_are_the_same(away: WorkerSettings, digits: Splits) -> None:
    torch.manual_seed(2)
    model = backbone_caps("resnet18", image=(1, 8, 8), width=0.125, class_dim=4).eval()
    train, calibration = digits.train.subset(range(80)), digits.calibration.subset(range(60))
    chosen = BackbonePruneSettings(macs=0.5, score="length", candidates=4, images=60)

    def pruned(workers: WorkerSettings) -> tuple[BackbonePruned, list[str]]:
        notes: list[str] = []
        with workers.open() as team:
            return prune_backbone(model, train, calibration, chosen, margin_loss, notes.append, team), notes

    (here, said_here), (there, said_there) = pruned(ALONE), pruned(away)
    assert said_here == said_there
    assert [each.to_json() for each in here.candidates] == [each.to_json() for each in there.candidates]
    assert here.refitted == there.refitted
    tensors = there.model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in here.model.state_dict().items())


@pytest.mark.slow
def test_rows_of_papers_are_the_same(
    away: WorkerSettings, tiny_mnist: Path, tiny_28: Path, trained: Path, tmp_path: Path
) -> None:
    models = {"q7-mnist": tiny_28, "shallow-mnist": trained / "model.safetensors"}
    only = ["q7-mnist-8", "q7-mnist-qcapsnets", "efficient-shallow-mnist-50"]
    chosen = PapersSettings(models=models, roots={"": tiny_mnist}, only=only, calibration_size=20)

    def made(name: str, workers: WorkerSettings, **more: Any) -> tuple[list[Any], dict[str, bytes], list[str]]:
        notes: list[str] = []
        result = redo_papers(chosen, tmp_path / name, note=notes.append, workers=workers, **more)
        rows = sorted(result.record["rows"], key=lambda row: str(row["name"]))
        for row in rows:
            row["measured"] = row["measured"] and {**row["measured"], "seconds": 0}
        files = {
            str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.caplet")
        }
        return rows, files, notes

    rows, files, _ = made("there", away)
    assert (rows, files) == made("here", ALONE)[:2]
    assert len(files) >= 2
    assert [row["name"] for row in rows if row["measured"]] == ["q7-mnist-8", "q7-mnist-qcapsnets"]
    assert "1x8x8" in rows[0]["missing"]  # the failure of one row names it, the others are made
    assert not (tmp_path / "there" / ".workers").exists()
    again, _, notes = made("there", away, resume=True)
    assert again == rows
    assert "q7-mnist-8: unchanged, skipped" in notes


def test_a_run_folder_that_a_worker_does_not_see(tmp_path: Path) -> None:
    from caplet.bench.papers.job import _row, _Task
    from caplet.errors import WorkerError

    for text in (None, "of another run"):
        if text is not None:
            (tmp_path / ".workers").write_text(text)
        task = _Task("q7-mnist-8", tmp_path / "q7-mnist-8", False, tmp_path / ".workers", "token")
        with pytest.raises(WorkerError, match=r"does not see .* choose a folder that both share"):
            _row(None, task)  # type: ignore[arg-type]
