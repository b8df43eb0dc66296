"""Points: what a layer declares is exactly what it taps, for every kind of layer; attaching and detaching."""

from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from torch import Tensor

import caplet.nn
from caplet.nn.caps import DenseCaps
from caplet.nn.conv import InputLayer
from caplet.nn.layer import Layer, handling
from caplet.nn.points import Handler, PointSpec, Role, Storage, flash, ram
from layers import CASES


class Observer(Handler):
    """Records the shapes at each point, several per point where a routing iterates."""

    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        self.shapes.setdefault(key, []).append(tuple(value.shape))
        return value


def all_layers() -> set[type[Layer]]:
    for module in iter_modules(caplet.nn.__path__, "caplet.nn."):
        import_module(module.name)
    found: set[type[Layer]] = set()
    waiting = [Layer]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            if kind.__module__.startswith("caplet."):
                found.add(kind)
                waiting.append(kind)
    return {kind for kind in found if not found & set(kind.__subclasses__())}  # not what others are made of


def test_every_layer_is_tested_here() -> None:
    assert {type(make()) for make, _ in CASES.values()} == all_layers()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_tapped_is_declared(case: str, training: bool) -> None:
    make, shapes = CASES[case]
    layer = make().train(training)
    observer = Observer()
    batch = 2
    with handling([layer], observer):
        out = layer(*(torch.rand(batch, *shape) for shape in shapes))
    assert set(observer.shapes) == set(layer.points())
    for key, spec in layer.points().items():
        for shape in observer.shapes[key]:
            if spec.storage is Storage.FLASH:
                assert shape == spec.shape, key
            else:
                assert shape[1:] == spec.shape, key
                assert shape[0] in (1, batch), key
    outputs = [spec for spec in layer.specs.values() if spec.lifetime == "output"]
    assert len(outputs) == 1
    assert out[0].numel() == outputs[0].elements


@pytest.mark.parametrize("case", CASES)
def test_watching_changes_nothing(case: str) -> None:
    make, shapes = CASES[case]
    layer = make().eval()
    inputs = [torch.rand(2, *shape) for shape in shapes]
    with torch.no_grad():
        before = layer(*inputs)
        with handling([layer], Observer()):
            watched = layer(*inputs)
    assert torch.equal(before, watched)


@pytest.mark.parametrize("case", CASES)
def test_bounds_hold(case: str) -> None:
    make, shapes = CASES[case]
    layer = make().eval()

    class Bounds(Observer):
        def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
            if spec.bound is not None:
                assert spec.bound[0] <= float(value.min()) <= float(value.max()) <= spec.bound[1]
            if not spec.signed:
                assert float(value.min()) >= 0
            return value

    with handling([layer], Bounds()), torch.no_grad():
        layer(*(torch.rand(2, *shape) for shape in shapes))


def test_handlers_are_restored() -> None:
    first, second = DenseCaps("a", 3, 2, 2, 2, 1), DenseCaps("b", 3, 2, 2, 2, 1)
    outer, inner = Observer(), Observer()
    first.handler = outer

    def fail() -> None:
        with handling([first, second], inner):
            assert first.handler is inner
            assert second.handler is inner
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert first.handler is outer
    assert second.handler is None


def test_declaring_twice_is_an_error() -> None:
    layer = InputLayer("x", (1, 2, 2))
    with pytest.raises(ValueError, match=r"x: point 'image' declared twice"):
        layer.declare(ram("image", Role.IMAGE, ("a",), (1,), signed=False))


def test_axis_names_must_match() -> None:
    with pytest.raises(ValueError, match="2 axis names for 1 axes"):
        flash("weight", Role.WEIGHT, ("a", "b"), (1,))
