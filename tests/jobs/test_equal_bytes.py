"""Equal inputs give equal bytes: models, plans, integers and what is exported hold no time and no date."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caplet import api
from caplet.data import Splits
from caplet.jobs.train import train_by_recipe

MADE = {".safetensors", ".caplet", ".onnx", ".c", ".h", ".txt", ".md", ".svg"}
"""What a run makes beside its records."""


def _made(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.suffix in MADE or path.name.startswith(("plan_", "Make"))):
            yield str(path.relative_to(folder)), path.read_bytes()


def _train(model: Path, splits: Splits, out: Path) -> None:
    train_by_recipe("digits", out, changes={"epochs": 1, "threads": 1}, limit=60, progress=False)


def _finetune(model: Path, splits: Splits, out: Path) -> None:
    settings = api.finetune_settings({"steps": 2, "threads": 1}, under_plan=False)
    api.finetune_model(api.load_float(model), splits, out, settings=settings)


def _train_under_a_plan(model: Path, splits: Splits, out: Path) -> None:
    loaded = api.load_float(model)
    plan = api.plan_of_widths(loaded, splits, "conv1=4/5, primary=3/5, digit=3/5/6")
    settings = api.finetune_settings({"steps": 2, "threads": 1}, under_plan=True)
    api.finetune_model(loaded, splits, out, plan, settings, engine="interpreter")


def _prune(model: Path, splits: Splits, out: Path) -> None:
    settings = api.PruneSettings(keep=0.7, epochs=0.1, images=60, refit=60)
    api.prune_model(api.load_float(model), splits, out, settings)


JOBS = (_train, _finetune, _train_under_a_plan, _prune)


@pytest.mark.parametrize("job", JOBS)
def test_two_runs(job: Callable[[Path, Splits, Path], None], trained: Path, digits: Splits, tmp_path: Path) -> None:
    splits = api.load_data("digits", limit=60)
    for name in ("one", "two"):
        job(trained / "model.safetensors", splits, tmp_path / name)
    one, two = (dict(_made(tmp_path / name)) for name in ("one", "two"))
    assert "model.safetensors" in one
    assert list(one) == list(two)
    for name, content in one.items():
        assert content == two[name], name


def test_two_exports(quantized: Path, tmp_path: Path) -> None:
    program = api.load_program(quantized / "model_satisfied.caplet")
    for name in ("one", "two"):
        api.export_c(program, tmp_path / name)
        api.export_onnx(program, tmp_path / name / "model.onnx")
        api.save_program(program, tmp_path / name / "model.caplet")
    one, two = (dict(_made(tmp_path / name)) for name in ("one", "two"))
    assert {"model.onnx", "model.caplet", "Makefile"} <= set(one)
    assert one == two
