"""Another device than the CPU: whatever computes there ends, and what it writes is what the CPU writes.

The device is the simulated one of :mod:`second_device`, whose arithmetic is the CPU's: what differs has taken another
way. It says nothing of a GPU's own arithmetic.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from caplet import api
from caplet.data import ImageSet, Splits
from caplet.data.imageset import to_float
from caplet.errors import CapletError, ConfigError
from caplet.fixed import Rounding
from caplet.jobs.compress.settings import checked
from caplet.jobs.run import job_device
from caplet.jobs.train import train_by_recipe
from caplet.models.base import CapsNet
from caplet.nn.device import computing, find_device, placed
from caplet.prune.backbone import BackbonePruneSettings
from caplet.prune.scores import SCORES, measure_scores
from caplet.quant.measure.effects import Perturber
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.reconstruct import end_to_end
from caplet.train import task as training
from caplet.train.finetune import FinetuneTask
from caplet.train.loop import CHECKPOINT, train
from caplet.train.loss import margin_loss
from caplet.train.settings import FinetuneSettings
from quantize_requests import as_measured
from second_device import NAME, DeviceTensor, copies
from tiny_networks import mixed_plan, tiny

THERE = torch.device(NAME, 0)
TIMES = {"seconds", "images_per_second", "started", "outputs", "speed"}
"""Names of what differs from run to run; outputs are digests of files with times."""
FAMILIES = ("shallow", "shallow-same", "deep", "backbone")
"""ShallowCaps, one with batch norm, DeepCaps, capsules on a CNN."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gradients are computed by threads of their own on a device; float32 everywhere, which both compute."""
    monkeypatch.setattr(end_to_end, "has_bfloat16", lambda device: False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def splits_of(name: str) -> Splits:
    """A tiny network's images as all three splits."""
    made = tiny(name)
    classes = tuple(f"c{i}" for i in range(made.model.config.classes))

    def part(name: str, first: int) -> ImageSet:
        numbers = torch.arange(len(made.images))
        return ImageSet(made.images, numbers % len(classes), first + numbers, classes, f"noise/{name}")

    info = {"name": "noise", "note": "", "hashes": {}, "size": None, "channels": None, "calibration_size": 24}
    return Splits(part("train", 0), part("calibration", 24), part("test", 0), info)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def told(path: Path) -> Any:
    """What a file says, without times."""
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(path.read_text()))
        return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    if path.name.startswith("reconstructed-"):  # beside the tensors it says how long they took
        return {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in load_file(path).items()}
    return path.read_bytes()


def same_files(one: Path, two: Path) -> None:
    """Whether two folders hold the same; pages and checkpoints of training, which hold times, are left out."""
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (one, two)]
    assert files[0] == files[1]
    assert files[0]
    for path in files[0]:
        if path.suffix not in (".html", ".ckpt", ".lock") and path.name != "speed.json":
            assert told(one / path) == told(two / path), path


def on_both(job: Callable[[Path, str], Any], folder: Path) -> list[Any]:
    """The job's results on the CPU and on the device, where it must have been; it has written the same."""
    copies.clear()
    results = [job(folder / "cpu", "cpu")]
    assert not copies
    results.append(job(folder / NAME, NAME))
    assert copies["to"] > 3
    if (folder / "cpu").exists():
        same_files(folder / "cpu", folder / NAME)
    return results


def test_the_simulated_device_refuses_what_a_gpu_refuses() -> None:
    here = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    there = here.to(THERE)
    assert isinstance(there, DeviceTensor)
    assert there.stride() == here.stride()
    assert torch.equal(there.cpu(), here)
    assert type(there.cpu()) is Tensor
    with pytest.raises(RuntimeError, match=r"numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match=r"same device"):
        there + here
    with pytest.raises(RuntimeError, match=r"random"):
        torch.rand(2, device=THERE)
    with pytest.raises(RuntimeError, match=r"random"):
        there.bernoulli_()
    there[0].zero_()  # a view's memory is its tensor's
    assert float(there[0].sum()) == 0 < float(there.sum())
    there.data = (2 * here).contiguous().to(THERE)  # memory and strides
    assert torch.equal(there.cpu(), 2 * here)
    assert there.is_contiguous()


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_calibration_plans_and_effects(name: str) -> None:
    made = tiny(name)
    labels = torch.arange(24) % made.model.config.classes
    pair = made.model, placed(made.model, THERE)
    assert placed(pair[1], THERE) is pair[1]
    one, two = (calibrate(model, made.images) for model in pair)
    for key, found in one.histograms.items():
        assert np.array_equal(found.counts, two.histograms[key].counts)
    plans = [mixed_plan(name, 3, 7, rounding) for rounding in (Rounding.NEAREST, Rounding.STOCHASTIC)]
    for plan in (*plans, mixed_plan(name, 3, 5, log2_weights=True), mixed_plan(name, 3, 5, channels=True)):
        here, there = (Evaluator(model, made.images, labels).evaluate(plan) for model in pair)
        assert here.correct_images.tolist() == there.correct_images.tolist()
        some = {key: plan.points[key] for key in list(plan.points)[:4]}
        effects = [Perturber(m, made.images, labels, loss=margin_loss).effect(some, plan.rounding) for m in pair]
        assert effects[0] == effects[1]


@pytest.mark.parametrize("name", ["shallow-two-stems", "deep-kept", "backbone"])
def test_every_score(name: str) -> None:
    made = tiny(name)
    images = made.images.repeat(4, 1, 1, 1)
    labels = torch.arange(len(images)) % made.model.config.classes
    found = [
        measure_scores(model, images, labels, list(SCORES), margin_loss)
        for model in (made.model, placed(made.model, THERE))
    ]
    for score, groups in found[0].items():
        for group, values in groups.items():
            assert np.array_equal(values, found[1][score][group]), (score, group)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("shallow-same", "equalization,scales,per-channel,bias"),
        ("backbone-mobile", "per-channel,bias,rounding,end-to-end"),
        ("deep-kept", "per-channel,bias"),
        ("deep-kept", "bias,rounding,end-to-end"),
    ],
)
def test_fits(name: str, parts: str, tmp_path: Path) -> None:
    few = {"images": 12, "sweeps": 1, "tuning_images": 6, "tuning_sweeps": 1, "end_to_end_steps": 2}
    settings = api.ReconstructSettings(api.parse_parts(parts), **few)

    def job(folder: Path, device: str) -> api.Reconstruction:
        folder.mkdir()
        model = placed(tiny(name).model, find_device(device))
        return api.reconstruct(model, mixed_plan(name, 3, 6), tiny(name).images, settings, folder=folder)

    here, there = on_both(job, tmp_path)
    assert here.plan == there.plan
    assert there.model.device == THERE
    same_values(dict(here.model.state_dict()), dict(placed(there.model, here.model.device).state_dict()))


# --- training --------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return found


def same_values(one: Any, two: Any) -> None:
    """Whether two checkpoints hold the same, all of it on the CPU."""
    assert type(one) is type(two)
    if isinstance(one, Tensor):
        assert two.device.type == "cpu"
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in (key for key in one if key not in TIMES):
            same_values(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            same_values(*pair)
    else:
        assert one == two


@pytest.mark.parametrize("name", FAMILIES)
def test_finetuning_with_a_teacher(name: str, tmp_path: Path) -> None:
    changes = {"shift": 1, "flip": True, "cutout": 3, "mixup": 0.4 if name == "deep" else 0.0, "clip_norm": 1.0}
    settings = FinetuneSettings.of({"epochs": 2, "batch_size": 12, "distill_poses": 0.1, **changes})

    def job(folder: Path, device: str) -> CapsNet:
        task = FinetuneTask(settings, tiny(name).model, tiny(name).model)
        return train(task, splits_of(name), folder, progress=False, device=device).model

    here, there = on_both(job, tmp_path)
    same_values(dict(here.state_dict()), dict(there.state_dict()))
    same_values(checkpoint(tmp_path / "cpu"), checkpoint(tmp_path / NAME))


def test_the_training_images_are_moved_once(tmp_path: Path) -> None:
    """They are held on the device where they fit; else each step moves its own, as bytes."""
    task = FinetuneTask(FinetuneSettings(epochs=1, batch_size=8), tiny("shallow").model)
    splits = splits_of("shallow")
    train(task, splits, tmp_path / "held", progress=False, device=NAME)
    assert task._held is not None
    assert (task._held.device, task._held.dtype) == (THERE, torch.uint8)
    images, _ = task.batch(splits.train, torch.tensor([3, 1]), torch.Generator())
    assert images.device == THERE
    assert torch.equal(images.cpu(), to_float(splits.train.images[[3, 1]]))
    task = FinetuneTask(FinetuneSettings(epochs=1, batch_size=8), tiny("shallow").model)
    train(task, splits, tmp_path / "moved", progress=False, device=NAME, memory=1000)
    assert task._held is None
    assert task.batch(splits.train, torch.tensor([3, 1]), torch.Generator())[0].device == THERE


def test_training_from_the_beginning_resumes_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"epochs": 2, "decoder": "dense", "threads": 1, "shift": 1}

    def job(folder: Path, device: str) -> float:
        result = train_by_recipe("digits", folder, changes=changes, limit=60, progress=False, device=device)
        return result.test.percent

    here, there = on_both(job, tmp_path)
    assert here == there
    step = training.Task.stepped

    def stop(self: Any, global_step: int, steps: int) -> None:
        step(self, global_step, steps)
        if self.network.model.device == THERE and global_step == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Task, "stepped", stop)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "on", NAME)
    train_by_recipe("digits", tmp_path / "on", changes=changes, limit=60, progress=False, device="cpu", resume=True)
    one, two = (api.load_float(tmp_path / name / "model.safetensors").state_dict() for name in ("cpu", "on"))
    same_values(dict(one), dict(two))


@pytest.mark.parametrize("changes", [{"exponents": "learned"}, {"fit": "per-channel,bias,rounding"}])
def test_training_under_a_plan(changes: dict[str, Any], trained: Path, digits: Splits, tmp_path: Path) -> None:
    splits, model = api.load_data("digits", limit=60), api.load_float(trained / "model.safetensors")
    plan = api.plan_of_widths(model, splits, "conv1=4/5, primary=3/5, digit=3/5/6")
    settings = api.finetune_settings({"steps": 2, "threads": 1, **changes}, under_plan=True)
    on_both(
        lambda folder, device: api.finetune_model(
            model, splits, folder, plan, settings, engine="interpreter", device=device
        ),
        tmp_path,
    )


# --- jobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"keep": 0.7, "refit": 60, "dead": True}, {"max_drop": 30.0, "iterations": 2}])
def test_pruning(changes: dict[str, Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caplet.jobs.prune.job.TRIALS", 2)
    splits, model = api.load_data("digits", limit=60), api.load_float(trained / "model.safetensors")
    settings = api.PruneSettings.of({"epochs": 0.1, "images": 60, "threads": 1, "allocation": "measured", **changes})

    def job(folder: Path, device: str) -> CapsNet:
        return api.prune_model(model, splits, folder, settings, device=device).model

    assert all(model.device.type == "cpu" for model in on_both(job, tmp_path))


def test_curves_of_pruning(trained: Path, tmp_path: Path) -> None:
    splits, model = api.load_data("digits", limit=60), api.load_float(trained / "model.safetensors")
    settings = api.PruneSettings(keep=1.0, images=60)
    on_both(lambda folder, device: api.prune_curves(model, splits, folder, settings, device=device), tmp_path)


def test_pruning_a_cnn(tmp_path: Path) -> None:
    settings, made = BackbonePruneSettings(macs=0.6, candidates=2, images=24, multiple=1), tiny("backbone")
    tuning = FinetuneSettings(epochs=1, batch_size=12, threads=1)
    job = api.prune_backbone_model
    on_both(
        lambda folder, device: job(made.model, splits_of("backbone"), folder, settings, tuning, device=device), tmp_path
    )


SEARCHES = {
    "qcapsnets": as_measured(tolerance=5.0),
    "progressive": as_measured(method="progressive", tolerance=5.0, simplify_routing=True),
    "ilp": as_measured(method="ilp", tolerance=5.0, budget=500, explore=False, reconstruct="per-channel,bias"),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name: str, tmp_path: Path) -> None:
    def job(folder: Path, device: str) -> None:
        api.quantize(
            tiny("shallow").model, splits_of("shallow"), folder, SEARCHES[name], engine="interpreter", device=device
        )

    on_both(job, tmp_path)


def test_sensitivities(trained: Path, tmp_path: Path) -> None:
    splits, model = api.load_data("digits", limit=60), api.load_float(trained / "model.safetensors")
    settings = api.SensitivitySettings(widths=(4, 2), draws=2, images=16)
    on_both(lambda folder, device: api.sensitivity(model, splits, folder, settings, device=device), tmp_path)


@pytest.mark.slow(20)
def test_compression(trained: Path, tmp_path: Path) -> None:
    file = trained / "model.safetensors"
    quick = {
        "prune": {"probes": [0.5], "probe_steps": 5, "least_steps": 20, "precision": "float32"},
        "quantize": {"probes": [8, 4], "method": "progressive"},
        "verify": {"images": 3, "timed": 1},
    }
    settings = checked({**quick, "model": str(file), "data": "digits", "limits": {"max_drop": 20.0}})
    model, splits = api.load_float(file), api.load_data("digits", calibration_size=120, limit=240)
    on_both(lambda folder, device: api.compress(model, splits, folder, settings, device=device), tmp_path)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device().type == "cpu" if not torch.cuda.is_available() else "cuda"
    assert find_device("auto", ("cpu",)).type == "cpu"
    assert find_device(NAME, exact=True) == THERE


@pytest.mark.parametrize("name", ["cuda", "mps", "xyz", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    if torch.cuda.is_available() and name == "cuda":
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=rf"device '{name}' cannot be used: .+ here is cpu") as found:
        find_device(name)
    assert "\n" not in str(found.value)


def test_workers_compute_on_the_cpu() -> None:
    for workers in (api.WorkerSettings(workers=2), api.WorkerSettings(cluster="tcp://nowhere:1")):
        with pytest.raises(ConfigError, match=r"device 'elsewhere': workers compute on the CPU"):
            job_device(NAME, workers)
        assert job_device("auto", workers, (NAME, "cpu")).type == "cpu"
    assert job_device(NAME, api.WorkerSettings(workers=1)) == THERE


def test_memory_that_runs_out_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = FinetuneTask.losses

    def full(self: Any, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if images.device.type == "cpu":  # the task is looked at without data
            return losses(self, images, labels)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB\nin all")

    monkeypatch.setattr(FinetuneTask, "losses", full)
    task = FinetuneTask(FinetuneSettings(epochs=1, batch_size=16), tiny("shallow").model)
    with pytest.raises(CapletError, match=r"out of memory at batch size 16: \d+ fit \(batch_size=\d+\) \(CUDA out of"):
        train(task, splits_of("shallow"), tmp_path, progress=False, device=NAME)


def test_memory_that_runs_out_elsewhere() -> None:
    with pytest.raises(CapletError, match=r"out of memory on elsewhere: .*--device cpu"), computing(THERE):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
