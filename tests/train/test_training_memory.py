"""Memory of a training step: predicted, kept to by taking votes in parts, and explained where it runs out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caplet.data import Splits
from caplet.errors import CapletError
from caplet.nn.caps import DenseCaps, RoutedConvCaps
from caplet.nn.layer import Layer
from caplet.train import memory
from caplet.train.loop import CHECKPOINT, train
from caplet.train.memory import Fit, fit, keep_votes_of, routing_memory, step_memory
from caplet.train.settings import TrainSettings
from caplet.train.task import RecipeTask

pytestmark = pytest.mark.slow(1.5)

Make = Callable[..., TrainSettings]
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _few_images_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "EVALUATED", 16)


def _gradients(layer: Layer, x: Tensor, at_once: int | None) -> list[Tensor]:
    layer.votes_at_once = at_once
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    found = [out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]
    layer.zero_grad(set_to_none=True)
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("at_once", [1, 3, 7])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (DenseCaps("a", 40, 4, 5, 6, 3, input_indices=tuple(range(0, 40, 2))), (7, 40, 4)),
        (RoutedConvCaps("b", (3, 4, 6, 6), 4, 5, 3, 1, 1), (7, 3, 4, 6, 6)),
    ],
    ids=("dense", "convolutional"),
)
def test_votes_in_parts_route_the_same(layer: Layer, shape: tuple[int, ...], at_once: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole, parts = _gradients(layer, x, None), _gradients(layer, x, at_once)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    layer.votes_at_once = at_once
    with torch.no_grad():
        torch.testing.assert_close(layer(x), whole[0], rtol=1e-5, atol=1e-6)


def test_prediction_is_what_tensors_take(tiny: Make) -> None:
    task, batch = RecipeTask(tiny(decoder="dense")), 32
    predicted = step_memory(task, SHAPE, batch)
    with memory._Live() as live:
        task = RecipeTask(task.settings)
        memory.go_through(task, lambda count: torch.rand(count, *SHAPE), batch)
    assert predicted == pytest.approx(live.peak + memory.LIBRARIES, abs=0.02 * live.peak)


def test_routing_is_counted_from_its_points(tiny: Make) -> None:
    model = RecipeTask(tiny()).model
    digit = next(layer for layer in model.layers() if isinstance(layer, DenseCaps))
    found = routing_memory(model, 10)
    assert found.votes == 4 * 10 * digit.out_capsules * digit.in_capsules * digit.dim
    assert found.couplings * digit.dim == found.votes < found.saved


def test_votes_are_taken_in_parts_where_they_do_not_fit(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    task = RecipeTask(tiny(epochs=1))
    batch = task.settings.batch_size
    least = step_memory(task, SHAPE, batch, 1)
    limit = (least + step_memory(task, SHAPE, batch)) // 2
    found = fit(task, SHAPE, batch, limit)
    assert found.at_once is not None
    assert found.at_once < batch
    assert found.needed is not None
    assert found.needed <= limit < (found.whole or 0)
    assert f"votes of {found.at_once} images at once" in str(found)
    plain = train(tiny(epochs=1), few_digits, tmp_path / "a", progress=False)
    parts = train(tiny(epochs=1), few_digits, tmp_path / "b", progress=False, memory=limit)
    assert torch.load(tmp_path / "b" / CHECKPOINT, weights_only=True)["position"]["votes_at_once"] == found.at_once
    torch.testing.assert_close(plain.model.digit.weight, parts.model.digit.weight, rtol=1e-3, atol=1e-4)


def test_a_batch_size_that_fits_is_named(tiny: Make) -> None:
    task = RecipeTask(tiny())
    batch = task.settings.batch_size
    found = fit(task, SHAPE, batch, step_memory(task, SHAPE, batch // 2, 1))
    assert found.batch_size == batch // 2 or (found.needed is not None and found.needed <= found.limit)
    nothing = fit(task, SHAPE, 2, 1)
    assert nothing.batch_size == 0
    assert "use smaller images" in str(nothing)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_which_batch_size_fits(tiny: Make, error: Exception) -> None:
    task = RecipeTask(tiny())
    keep_votes_of(task, None)
    found = Fit(SHAPE, 64, routing_memory(task.model, 64), 1 << 40)
    message = r"out of memory at batch size 64: \d+ fit \(batch_size=\d+\)"
    with pytest.raises(CapletError, match=message), found.explained(task):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), found.explained(task):
        raise RuntimeError("shapes do not fit")


def test_check_says_what_training_takes(tmp_path: Path, tiny: Make) -> None:
    from caplet.jobs.inspect import check_model

    model: Any = RecipeTask(tiny()).model
    found = check_model(model, batch_size=16).training
    assert found is not None
    assert "of memory at batch size 16" in str(found)
    assert check_model(model, batch_size=1, memory=1).training.batch_size == 0  # type: ignore[union-attr]
