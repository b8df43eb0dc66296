"""Jobs measured by workers leave what one process leaves."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet import api
from caplet.bench.papers.job import redo_papers
from caplet.bench.settings import PapersSettings
from caplet.data import Splits
from caplet.errors import ConfigError
from caplet.jobs.compress.curves import FLOAT, POINT, Context, Measurement
from caplet.jobs.compress.settings import CompressSettings
from caplet.models.backbone import backbone_caps
from caplet.prune.backbone import BackbonePruned, prune_backbone
from caplet.prune.choices import BackbonePruneSettings
from caplet.quant.choices import Method
from caplet.runs.records import Pruned
from caplet.train.finetune import weights_digest
from caplet.train.loss import margin_loss
from caplet.workers.settings import WorkerSettings
from caplet.workers.team import Team
from quantize_requests import as_measured

pytestmark = pytest.mark.slow(3)

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


@pytest.mark.parametrize("method", ["", *(pytest.param(each, marks=pytest.mark.slow) for each in Method)])
def test_searches_are_the_same(method: str, away: WorkerSettings, trained: Path, tmp_path: Path) -> None:
    """Logs but for times, notes, plans and integers, of each method alone and of the default effort."""
    asked = as_measured(method=method, tolerance=10.0) if method else api.QuantizeSettings(tolerance=10.0)
    names = ["tuning.jsonl", "sensitivities.jsonl", "search.json", "plan_satisfied.json", "model_satisfied.caplet"]
    names += ["predictions.json", "flips.json", "splits.json", "settings.json"]

    def found(folder: Path, workers: WorkerSettings | None) -> dict[str, Any]:
        model, splits = api.load_float(trained / "model.safetensors"), api.load_data("digits", calibration_size=120)
        notes: list[str] = []
        metrics = api.quantize(model, splits, folder, asked, workers=workers, note=notes.append).metrics
        same = {**metrics["search"], "seconds": 0}
        logs = [
            path.read_text().splitlines()
            for path in (folder / "probes.jsonl", folder / "trials.jsonl")
            if path.exists()
        ]
        probes = [{**json.loads(line), "seconds": 0} for lines in logs for line in lines]
        files: dict[str, Any] = {name: (folder / name).read_bytes() for name in names}
        return files | {"search": same, "probes": probes, "notes": notes}

    here, there = found(tmp_path / "here", ALONE), found(tmp_path / "there", away)
    assert here == there
    assert found(tmp_path / "plain", None) == here
    assert len(here["probes"]) > 5
    assert (here["sensitivities.jsonl"].count(b"\n") > 10) == (method != "qcapsnets")
    assert (b'"fitted"' in here["sensitivities.jsonl"]) == (not method)


def test_a_resumed_search_measures_nothing_again(trained: Path, tmp_path: Path) -> None:
    model, splits = api.load_float(trained / "model.safetensors"), api.load_data("digits", calibration_size=120)
    asked = as_measured(method="progressive", tolerance=20.0)
    first = api.quantize(model, splits, tmp_path / "run", asked, workers=ALONE)
    log = (tmp_path / "run" / "sensitivities.jsonl").read_bytes()

    class Refusing(Team):
        away = True

        def map(self, function: Any, tasks: Any, name: Any) -> Any:
            assert not tasks
            return iter(())

    again = api.quantize(model, splits, tmp_path / "run", asked, resume=True, workers=Refusing(1))
    assert (tmp_path / "run" / "sensitivities.jsonl").read_bytes() == log
    assert again.models[0].record["widths"] == first.models[0].record["widths"]


def test_curves_are_the_same(away: WorkerSettings, trained: Path, tmp_path: Path) -> None:
    """Of pruning, with a fraction that is passed over, one that is left out, and of widths."""
    model, splits = api.load_float(trained / "model.safetensors"), api.load_data("digits", calibration_size=120)
    pruning = {"probes": [0.6, 0.5, 0.3, 1e-6], "probe_steps": 3}
    asked = CompressSettings.of(
        {"data": "digits", "model": "m.safetensors", "prune": pruning, "quantize": {"probes": [8, 4]}}
    )

    def found(folder: Path, workers: WorkerSettings) -> tuple[dict[str, Any], list[str], list[tuple[int, int]]]:
        notes: list[str] = []
        seen: list[tuple[int, int]] = []
        with workers.open() as team:
            measurement = Measurement(Context(folder, splits, asked, notes.append, None, False, team), model, folder)
            for fraction in (0.6, 0.3):
                measurement.prune(fraction, folder / str(fraction), False)
            with pytest.raises(ConfigError, match="would empty a layer"):
                measurement.prune(1e-6, folder / "none", False)
            measurement.context.progress = lambda done, total: seen.append((done, total))
            measurement.narrow(model, Pruned(1.0, 1, 1, 0.0, 120, 0), folder / "widths", False)
        files: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(POINT)}
        weights = {fraction: weights_digest(api.load_float(folder / fraction / FLOAT)) for fraction in ("0.6", "0.3")}
        return files | weights, notes, seen

    here, there = found(tmp_path / "here", ALONE), found(tmp_path / "there", away)
    assert here == there
    assert len(here[0]) == 5
    assert here[2] == [(1, 2), (2, 2)]
