"""The tables of papers, redone: which rows are made, what they say, what is left blank, and going on."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from caplet.bench.papers import job
from caplet.bench.papers.job import list_papers, redo_papers
from caplet.bench.papers.page import page
from caplet.bench.papers.rows import NETWORKS, PAPERS, ROWS, select
from caplet.bench.settings import PapersSettings
from caplet.errors import ConfigError
from caplet.workers.settings import WorkerSettings
from caplet.workers.team import Failed, Team

UNIFORM, SEARCH = "q7-mnist-8", "q7-mnist-qcapsnets"


@pytest.fixture
def settings(tiny_mnist: Path, tiny_28: Path) -> PapersSettings:
    return PapersSettings(
        models={"q7-mnist": tiny_28}, roots={"": tiny_mnist}, only=(UNIFORM, SEARCH), calibration_size=20
    )


def changed(settings: PapersSettings, **values: Any) -> PapersSettings:
    return settings.model_copy(update=values)


def rows_of(record: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in record["rows"]}


def test_rows_are_made_and_their_figures_are_those_of_the_run(settings: PapersSettings, tmp_path: Path) -> None:
    result = redo_papers(settings, tmp_path / "run")
    assert result.done == (UNIFORM, SEARCH)
    assert result.blank == {}
    saved = json.loads((tmp_path / "run" / "papers.json").read_text())
    assert saved == json.loads(json.dumps(result.record))
    found = rows_of(saved)[SEARCH]["measured"]
    metrics = json.loads((tmp_path / "run" / SEARCH / "metrics.json").read_text())
    assert found["float"] == metrics["float"]["test"]
    assert found["compressed"] == metrics["models"][0]["test"]
    assert found["against"] == metrics["models"][0]["paired"]
    assert found["bytes"] == metrics["models"][0]["file_bytes"]
    assert found["passes"] == metrics["search"]["full_passes"] > 0
    uniform = rows_of(saved)[UNIFORM]["measured"]
    assert uniform["weights"] == uniform["activations"] == 4.0
    assert uniform["bytes"] == (tmp_path / "run" / UNIFORM / "model.caplet").stat().st_size
    assert uniform["passes"] is None
    assert uniform["macs"] == found["macs"] > 0
    text = (tmp_path / "run" / "papers.md").read_text()
    assert text == page(saved)
    for measured in (found, uniform):
        assert f"{measured['compressed']['percent']:.2f} [{measured['compressed']['low']:.2f}" in text
        assert f"{measured['ram']:,}" in text


class Queue(Team):
    """Notes which rows it gets, and makes none."""

    away = True

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.expected = list[str](), 0

    def warm(self, module: str, tasks: int) -> None:
        self.expected = tasks

    def completed(self, function: Any, tasks: Any, name: Any) -> Any:
        self.rows += [name(task) for _, task in tasks]
        return ((number, Failed(row, ValueError("not today"))) for number, row in enumerate(self.rows))


def test_rows_with_the_most_work_go_to_workers_first(
    settings: PapersSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue()
    monkeypatch.setattr(WorkerSettings, "open", lambda self, note: nullcontext(queue))
    result = redo_papers(changed(settings, only=["q7-mnist-*"]), tmp_path / "run", workers=WorkerSettings())
    assert queue.rows == ["q7-mnist-qcapsnets", "q7-mnist-progressive", "q7-mnist-ilp", "q7-mnist-8"]
    assert queue.expected == 4
    assert list(result.blank) == [row for row in ROWS if row in queue.rows]
    assert result.blank["q7-mnist-ilp"] == "q7-mnist-ilp: ValueError: not today"


def test_pruned_rows(tiny_mnist: Path, tiny_28: Path, tmp_path: Path) -> None:
    settings = PapersSettings(
        models={"shallow-mnist": tiny_28}, roots={"": tiny_mnist}, only=("efficient-shallow-mnist-50",)
    )
    found = redo_papers(changed(settings, calibration_size=20), tmp_path / "run").record["rows"][0]["measured"]
    metrics = json.loads((tmp_path / "run" / "efficient-shallow-mnist-50" / "metrics.json").read_text())
    assert found["macs"] == metrics["pruned"]["cost"]["macs"] <= 0.5 * metrics["original"]["cost"]["macs"]
    assert found["bytes"] == metrics["pruned"]["cost"]["bytes"]
    assert found["weights"] == pytest.approx(metrics["original"]["cost"]["bytes"] / found["bytes"])
    assert found["compressed"] == metrics["pruned"]["test"]


def test_blank_rows_say_why(tmp_path: Path, tiny_28: Path) -> None:
    empty = tmp_path / "no-data"
    empty.mkdir()
    models = {"q7-mnist": tiny_28, "shallow-fashion-mnist": tiny_28}
    only = (UNIFORM, "q7-smallnorb", "qcapsnets-deep-cifar10", "progressive-shallow-fashion-mnist-layer")
    result = redo_papers(PapersSettings(models=models, roots={"": empty}, only=only), tmp_path / "run")
    assert result.done == ()
    assert "mnist" in result.blank[UNIFORM]
    assert "no-data" in result.blank[UNIFORM]
    assert "--model q7-smallnorb=FILE (Keras weights of its authors)" in result.blank["q7-smallnorb-8"]
    assert result.blank["qcapsnets-deep-cifar10"].startswith("no checkpoint: give --model deep-cifar10=FILE")
    text = (tmp_path / "run" / "papers.md").read_text()
    assert "Not redone" in text
    assert all(reason in text for reason in result.blank.values())


def test_a_model_of_another_kind_leaves_its_row_blank_and_the_others_are_made(
    settings: PapersSettings, tmp_path: Path, trained: Path
) -> None:
    models = {**settings.models, "shallow-mnist": trained / "model.safetensors"}
    only = ("qcapsnets-shallow-mnist", UNIFORM)
    result = redo_papers(changed(settings, models=models, only=only), tmp_path / "run")
    assert result.done == (UNIFORM,)
    assert "1x8x8" in result.blank["qcapsnets-shallow-mnist"]


def test_an_interrupted_call_keeps_finished_rows_and_resume_goes_on(settings: PapersSettings, tmp_path: Path) -> None:
    def stop(text: str) -> None:
        if text == SEARCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        redo_papers(settings, tmp_path / "run", note=stop)
    before = json.loads((tmp_path / "run" / "papers.json").read_text())
    assert [row["name"] for row in before["rows"]] == [UNIFORM]
    notes: list[str] = []
    result = redo_papers(settings, tmp_path / "run", resume=True, note=notes.append)
    assert f"{UNIFORM}: unchanged, skipped" in notes
    assert result.done == (UNIFORM, SEARCH)
    assert rows_of(result.record)[UNIFORM] == rows_of(before)[UNIFORM]
    later = redo_papers(changed(settings, models={}, only=()), tmp_path / "run", resume=True)
    assert later.done == result.done
    assert len(later.record["rows"]) == len(ROWS)
    with pytest.raises(ConfigError, match="test_images"):
        redo_papers(changed(settings, test_images=5), tmp_path / "run", resume=True)


def test_test_images_are_limited(settings: PapersSettings, tmp_path: Path) -> None:
    result = redo_papers(changed(settings, only=(UNIFORM,), test_images=7), tmp_path / "run")
    found = result.record["rows"][0]["measured"]
    assert found["float"]["n"] == found["compressed"]["n"] == found["against"]["n"] == 7
    assert "test images 7" in (tmp_path / "run" / "papers.md").read_text()


def test_a_size_is_that_of_cnns_and_of_smallnorb(settings: PapersSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int | None]] = []

    def load(name: str, root: Path, *, size: int | None, **rest: Any) -> Any:
        asked.append((name, size))
        raise ConfigError("enough")

    monkeypatch.setattr(job, "load_data", load)
    for row in ("efficient-lite0-cifar10-50", "qcapsnets-deep-cifar10", "q7-smallnorb-8", "q7-cifar10-8"):
        with pytest.raises(ConfigError, match="enough"):
            job.Sources(changed(settings, size=64)).data(ROWS[row])
    assert asked == [("cifar10", 64), ("cifar10", None), ("smallnorb", 64), ("cifar10", None)]


def test_estimates(settings: PapersSettings) -> None:
    rows = list_papers(changed(settings, only=("q7-*", "deep-svhn")), estimate=True)
    found = {row["name"]: (row["minutes"], row["missing"]) for row in rows}
    minutes = {name: found[name][0] for name in (UNIFORM, SEARCH, "q7-mnist-ilp")}
    assert 0 < minutes["q7-mnist-ilp"] < minutes[SEARCH]
    assert minutes[UNIFORM] is not None
    assert found["progressive-deep-svhn-layer"][0] is None
    assert "no checkpoint" in (found["progressive-deep-svhn-layer"][1] or "")


def test_the_registry() -> None:
    assert {row.paper for row in ROWS.values()} == set(PAPERS)
    assert {row.network.name for row in ROWS.values()} == set(NETWORKS)
    sources = {published.source for row in ROWS.values() for published in row.published}
    assert all(source.startswith(("abstract", "the authors' corrected reruns")) for source in sources)
    assert select([]) == tuple(ROWS.values())
    assert {row.network.data for row in select(["cifar10"])} == {"cifar10"}
    with pytest.raises(ConfigError, match="did you mean 'q7-mnist'"):
        select(["q7-mnst"])


def test_what_is_refused(tiny_28: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'q7-mnist'"):
        PapersSettings(models={"q7mnist": tiny_28})
    with pytest.raises(ConfigError, match="test_images: Input should be greater than or equal to 1"):
        PapersSettings(test_images=0)


def test_published_figures_are_shown_with_their_source(settings: PapersSettings, tmp_path: Path) -> None:
    text = page(redo_papers(changed(settings, only=(UNIFORM,)), tmp_path / "run").record)
    assert "(abstract, over its three networks)" in text
    assert job.ROW in {path.name for path in (tmp_path / "run" / UNIFORM).iterdir()}
