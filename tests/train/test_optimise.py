"""The schedule, the parameter groups and the average of weights."""

from collections.abc import Callable

import pytest
import torch

from caplet.errors import ConfigError
from caplet.train.optimise import learning_rate, make_optimizer, update_average
from caplet.train.settings import TrainSettings
from caplet.train.task import build_decoder, build_model

Make = Callable[..., TrainSettings]


def test_one_cycle_rises_to_the_peak_and_falls_to_the_end(tiny: Make) -> None:
    settings = tiny(lr=1.0, warmup=0.25, final_lr=0.01)
    rates = [learning_rate(settings, step, 101) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[25] == max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.01)
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 0.99])
def test_short_runs_have_sane_rates(tiny: Make, steps: int, warmup: float) -> None:
    settings = tiny(lr=1.0, warmup=warmup)
    assert all(0.0 <= learning_rate(settings, step, steps) <= 1.0 for step in range(steps))


def test_constant_schedule(tiny: Make) -> None:
    assert {learning_rate(tiny(schedule="constant", lr=0.5), step, 9) for step in range(9)} == {0.5}


def test_groups_hold_every_parameter_once_and_decay_only_weights(tiny: Make) -> None:
    settings = tiny(decoder="conv", weight_decay=0.1, lr_multipliers={"digit": 0.5, "decoder": 2.0})
    model = build_model(settings)
    decoder = build_decoder(settings, model)
    assert decoder is not None
    optimizer = make_optimizer(settings, model, decoder)
    seen = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in (*model.parameters(), *decoder.parameters()))
    rate = {id(p): (g["multiplier"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    named = dict(model.named_parameters()) | {f"decoder.{n}": p for n, p in decoder.named_parameters()}
    assert rate[id(named["digit.weight"])] == (0.5, 0.1)
    assert rate[id(named["digit.bias"])] == (0.5, 0.0)
    assert rate[id(named["primary.weight"])] == (1.0, 0.1)
    assert rate[id(named["decoder.expand.weight"])] == (2.0, 0.1)
    assert rate[id(named["decoder.expand.bias"])] == (2.0, 0.0)


def test_an_unknown_block_is_refused(tiny: Make) -> None:
    settings = tiny(lr_multipliers={"digits": 0.5})
    with pytest.raises(ConfigError, match=r"no block 'digits' \(it has conv1, primary, digit\)"):
        make_optimizer(settings, build_model(settings), None)


def test_the_average_is_the_recurrence_with_a_warmed_up_decay(tiny: Make) -> None:
    settings = tiny()
    model, average = build_model(settings), build_model(settings)
    average.load_state_dict(model.state_dict())
    expected = model.digit.weight.detach().double()
    for step in range(200):
        draws = torch.Generator().manual_seed(step)
        with torch.no_grad():
            model.digit.weight.add_(torch.randn(model.digit.weight.shape, generator=draws))
        update_average(average, model, 0.9, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.digit.weight.detach().double()
    torch.testing.assert_close(average.digit.weight.double(), expected, rtol=1e-5, atol=1e-5)


def test_without_averaging_the_average_is_the_model(tiny: Make) -> None:
    settings = tiny()
    model, average = build_model(settings), build_model(settings)
    update_average(average, model, 0.0, 0)
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), model.parameters(), strict=True))


def test_batch_norm_statistics_are_averaged_and_counters_copied() -> None:
    model, average = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    assert model.running_mean is not None
    assert model.num_batches_tracked is not None
    model.running_mean.fill_(1.0)
    model.num_batches_tracked.fill_(7)
    update_average(average, model, 0.9, 1000)
    torch.testing.assert_close(average.running_mean, torch.full((2,), 0.1))
    assert average.num_batches_tracked == torch.tensor(7)
