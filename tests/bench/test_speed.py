"""Speed side by side: the plain form computes the same, turns are taken, sides that cannot be measured say why."""

from pathlib import Path

import pytest
import torch
from torch import nn

from caplet.bench.settings import SpeedSettings
from caplet.bench.speed import job
from caplet.bench.speed.job import COMPILED, FAKE, HALF, INTERPRETER, OURS, PLAIN, bench_speed
from caplet.bench.speed.plain import plain_form
from caplet.errors import ConfigError, ToolMissing
from caplet.jobs.timing import Timed, in_turns
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.models.registry import build
from caplet.nn.functional import lengths
from caplet.train.loss import margin_loss

SMALL = {
    "shallow": {"image": (1, 12, 12), "stem": ({"kernel": 3, "channels": 6},), "primary_types": 3, "primary_dim": 4},
    "deep": {
        "image": (3, 16, 16),
        "channels": 6,
        "class_dim": 4,
        "blocks": ({"types": 2, "dim": 4}, *({"types": 3, "dim": 4},) * 3),
    },
}
SMALL["shallow"] |= {"primary_kernel": 3, "class_dim": 5}


@pytest.fixture(params=SMALL)
def model(request: pytest.FixtureRequest) -> CapsNet:
    torch.manual_seed(1)
    network = build(request.param, SMALL[request.param])
    for parameter in network.parameters():  # biases are zero at first: let them matter
        nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("train", [False, True])
def test_the_plain_form_computes_the_same_outputs_and_gradients(model: CapsNet, train: bool) -> None:
    plain = plain_form(model)
    assert plain is not None
    images, labels = torch.rand(4, *model.config.image), torch.arange(4)
    outputs = [network.train(train)(images) for network in (model, plain)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    for output in outputs:
        margin_loss(lengths(output), labels).backward()
    first, last = next(model.parameters()).grad, next(plain.parameters()).grad
    assert first is not None
    assert last is not None
    assert first.abs().max() > 0
    torch.testing.assert_close(last, first, rtol=1e-3, atol=1e-5)
    assert {p.data_ptr() for p in plain.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


def test_networks_without_a_plain_form() -> None:
    pruned = build("shallow", {**SMALL["shallow"], "kept": (0, 5, 9)})
    assert plain_form(pruned) is None


def test_turns_are_taken_and_fast_works_repeated() -> None:
    order: list[str] = []
    works = {name: Timed(10, lambda name=name: order.append(name)) for name in "ab"}
    speeds = in_turns(works, 3, least=1e-9)
    assert order == ["a", "a", "b", "b", *"ababab"]
    assert [len(values) for values in speeds.values()] == [3, 3]
    assert all(speed > 0 for values in speeds.values() for speed in values)


@pytest.mark.slow
def test_all_sides_of_a_model(tiny_28: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_LEAST", 0.01)
    model = load_model(tiny_28)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    threads = torch.get_num_threads()
    record = bench_speed(model, SpeedSettings(batch=4, interpreted=2, turns=2))
    found = {(side["what"], side["side"]): side for side in record["sides"]}
    assert set(found) == {
        *(("training", side) for side in (PLAIN, OURS, HALF)),
        ("search", FAKE),
        *(("inference", side) for side in (PLAIN, OURS, COMPILED, INTERPRETER)),
    }
    assert record["left_out"] == {}
    assert found["inference", INTERPRETER]["images"] == 2
    assert found["inference", COMPILED]["images"] == 4
    for side in found.values():
        speed = side["images_per_second"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    assert record["settings"]["threads"] == 1
    assert torch.get_num_threads() == threads
    assert all(bool((before[key] == value).all()) for key, value in model.state_dict().items())


def test_sides_that_cannot_be_measured_say_why(monkeypatch: pytest.MonkeyPatch, tiny_28: Path) -> None:
    def no_compiler(*_: object, **__: object) -> None:
        raise ToolMissing("no C compiler")

    monkeypatch.setattr(job, "NativeModel", no_compiler)
    monkeypatch.setattr(job, "plain_form", lambda model: None)
    record = bench_speed(load_model(tiny_28), SpeedSettings(batch=2, interpreted=1, turns=1))
    assert record["left_out"][COMPILED] == "no C compiler"
    assert PLAIN in record["left_out"]
    assert {side["side"] for side in record["sides"]} == {OURS, HALF, FAKE, INTERPRETER}


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="turns: Input should be greater than or equal to 1"):
        SpeedSettings(turns=0)
    with pytest.raises(ConfigError, match="bits: Input should be less than or equal to 16"):
        SpeedSettings(bits=17)
