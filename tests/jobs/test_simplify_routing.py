"""``simplify_routing`` in a quantization run: simpler integers, measured against the float model that was given."""

import json
from pathlib import Path

from caplet import api
from caplet.data import Splits
from caplet.jobs.quantize.job import SIMPLIFIED, quantize
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.run import evaluate
from caplet.program.ops import Routing
from quantize_requests import as_measured


def routing_of(program: api.Program) -> Routing:
    (routing,) = (op for op in program.ops if isinstance(op, Routing))
    return routing


def test_a_simpler_routing_ships(trained: Path, digits: Splits, tmp_path: Path) -> None:
    model = api.load_float(trained / "model.safetensors")
    result = quantize(model, digits, tmp_path / "a", as_measured(tolerance=30.0, simplify_routing=True))
    record = json.loads((tmp_path / "a" / SIMPLIFIED).read_text())
    assert record["trials"][-1]["accepted"]
    assert record["config"]["iterations"] < 3
    assert result.float_test == evaluate(model, digits.test).accuracy  # the model given, not the simplified one
    assert routing_of(result.models[0].program).iterations == record["config"]["iterations"]
    needed = result.metrics["float"]["calibration"]["percent"] - (record["tolerance"] - record["loss"])
    assert result.met
    assert result.models[0].calibration.percent >= needed - 1e-9


def test_off_by_default_and_without_a_trace_where_nothing_is_accepted(
    trained: Path, digits: Splits, tmp_path: Path
) -> None:
    assert not QuantizeSettings().simplify_routing
    model = api.load_float(trained / "model.safetensors")
    result = quantize(model, digits, tmp_path / "a", as_measured(tolerance=0.0, simplify_routing=True))
    record = json.loads((tmp_path / "a" / SIMPLIFIED).read_text())
    if not any(trial["accepted"] for trial in record["trials"]):  # a better model may always be taken
        assert all(routing_of(shipped.program).iterations == 3 for shipped in result.models)
