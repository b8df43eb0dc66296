"""The main job through the command line: train, quantize, eval, inspect; exit codes; interruption and resumption."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Caplet, Process

TRAIN = (
    *("train", "--recipe", "digits", "--limit", "240"),
    *("--set", "epochs=3", "--set", "calibration_size=120"),
)
EFFORT = ("seconds", "images_per_second", "cost", "susceptibility_cost", "full_passes")
"""What depends on the machine, and what a run reports of its last part."""


def settled(value: Any) -> Any:
    """A record without what measures effort."""
    if isinstance(value, dict):
        return {key: settled(item) for key, item in value.items() if key not in EFFORT}
    return [settled(item) for item in value] if isinstance(value, list) else value


def record(folder: Path, name: str) -> Any:
    return settled(json.loads((folder / name).read_text()))


MEASURED = ("--tolerance", 5, "--accept", "measured")


def quantize(model: Path, out: Path, *more: object) -> tuple[object, ...]:
    return (
        "quantize",
        model / "model.safetensors",
        "--method",
        "qcapsnets",
        "--calibration-size",
        120,
        "--tolerance",
        5,
        "--accept",
        "measured",
        "--out",
        out,
        *more,
    )


def check_equal_quantization(first: Path, second: Path) -> None:
    names = {name for name in os.listdir(first) if name.startswith(("model_", "plan", "splits", "settings"))}
    names |= {"predictions.json", "flips.json", "details.json"}
    assert {"model_satisfied.caplet", "plan_satisfied.json", "splits.json", "settings.json"} <= names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for name in ("metrics.json", "search.json"):
        assert record(first, name) == record(second, name)


def check_equal_training(first: Path, second: Path) -> None:
    for name in ("model.safetensors", "splits.json", "settings.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert record(first, "metrics.json") == record(second, "metrics.json")


def test_train_prints_one_object_and_leaves_a_run(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    done = caplet(*TRAIN, "--out", tmp_path / "run", "--json")
    assert done.code == 0
    found = done.json()
    assert found["model"] == str(tmp_path / "run" / "model.safetensors")
    assert found["test"]["n"] == 240
    assert found["test"]["low"] < found["test"]["percent"] < found["test"]["high"]
    assert len(re.findall(r"^epoch +\d", done.err, re.MULTILINE)) == 3, "progress goes to stderr"
    written = {*os.listdir(tmp_path / "run")} - {".lock"}
    assert written == {
        *("settings.json", "environment.json", "splits.json", "metrics.json"),
        *("model.safetensors", "train.csv", "train.ckpt", "curves.svg", "predictions.json"),
    }
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["recipe"], settings["data"]["limit"], settings["seed"]) == ("digits", 240, 0)
    check_equal_training(trained, tmp_path / "run")


def test_quantize_prints_one_object_and_leaves_a_run(
    caplet: Caplet, trained: Path, quantized: Path, tmp_path: Path
) -> None:
    done = caplet(*quantize(trained, tmp_path / "run", "--json"))
    assert done.code == 0
    found = done.json()
    assert found["folder"] == str(tmp_path / "run")
    assert found["met"] is True
    assert [model["role"] for model in found["models"]] == ["satisfied"]
    assert "step 1:" in done.err
    shipped = found["models"][0]
    assert shipped["file_bytes"] == (tmp_path / "run" / "model_satisfied.caplet").stat().st_size
    assert shipped["test"]["n"] == shipped["paired"]["n"] == 359
    assert shipped["weight_reduction"] > 5
    check_equal_quantization(quantized, tmp_path / "run")


@pytest.mark.slow
def test_without_a_method_smaller_plans_are_fitted(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    options = ("--calibration-size", 120, *MEASURED, "--json")
    done = caplet("quantize", trained / "model.safetensors", "--out", tmp_path / "run", *options)
    assert done.code == 0
    found = done.json()
    assert (found["method"], found["met"]) == ("ilp", True)
    assert found["models"][0]["reconstruction"]["parts"] == ["scales", "per-channel", "bias", "rounding"]
    assert "fitted, plan " in done.err
    assert found["models"][0]["on_calibration"]["accepted"]
    done = caplet("quantize", trained / "model.safetensors", "--out", tmp_path / "quick", "--effort", "quick", *options)
    assert done.json()["models"][0]["reconstruction"] is None
    assert done.json()["models"][0]["weight_reduction"] < found["models"][0]["weight_reduction"]


def test_without_json_there_is_a_table(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    done = caplet(*quantize(trained, tmp_path / "a [b] ü", "--quiet"))
    assert done.code == 0
    assert str(tmp_path / "a [b] ü" / "model_satisfied.caplet") in done.out.splitlines()[-4]
    assert "…" not in done.out
    assert done.err == f"model: {tmp_path / 'a [b] ü' / 'model_satisfied.caplet'}\n"


@pytest.mark.parametrize("engine", ["auto", "interpreter"])
def test_eval_measures_what_quantize_reported(caplet: Caplet, quantized: Path, engine: str) -> None:
    done = caplet("eval", quantized / "model_satisfied.caplet", "--engine", engine, "--json")
    assert done.code == 0
    assert done.json()["accuracy"] == record(quantized, "metrics.json")["models"][0]["test"]


def test_eval_of_a_float_model(caplet: Caplet, trained: Path, quantized: Path) -> None:
    found = caplet("eval", trained / "model.safetensors", "--json").json()
    assert found["engine"] == "torch"
    assert found["accuracy"] == record(quantized, "metrics.json")["float"]["test"]
    text = caplet("eval", trained / "model.safetensors", "--split", "calibration", "--limit", 50)
    assert "of 50 (torch" in text.out


def test_inspect_counts_what_the_run_recorded(caplet: Caplet, quantized: Path) -> None:
    path = quantized / "model_satisfied.caplet"
    found = caplet("inspect", path, "--json").json()
    total = found["groups"][-1]
    counted = record(quantized, "metrics.json")["models"][0]["memory"][-1]
    assert (total["group"], counted["group"]) == ("total", "total")
    assert total["activation_bits"] == counted["activation_bits"]
    assert total["weight_bits"] == counted["weight_bits"]
    assert found["file_bytes"] == path.stat().st_size
    for arguments in ([path], [path, "--points"], ["shallow-digits"]):
        done = caplet("inspect", *arguments)
        assert done.code == 0
        assert "digit" in done.out


def test_models_and_recipes_are_listed(caplet: Caplet) -> None:
    rows = caplet("models", "--json").json()["models"]
    assert {"shallow", "shallow-digits", "q7-mnist", "deep"} <= {row["name"] for row in rows}
    assert "digits" in caplet("train", "--list", "--json").json()["recipes"]
    assert "digits" in caplet("train", "--list").out.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["models", "more"],
        ["quantize"],
        ["quantize", "m.pt", "--tolerance", "much"],
    ],
)
def test_wrong_usage_is_exit_code_2(caplet: Caplet, arguments: list[str]) -> None:
    done = caplet(*arguments)
    assert done.code == 2
    assert "Usage: caplet" in done.err


@pytest.mark.parametrize(
    ("arguments", "choice"),
    [
        (["quantize", "m.pt", "--method", "magic"], "--method 'magic': the choice is qcapsnets, progressive, ilp"),
        (["eval", "m.pt", "--engine", "warp"], "--engine 'warp': the choice is auto, native, interpreter"),
        (["eval", "m.pt", "--split", "all"], "--split 'all': the choice is test, calibration, train"),
    ],
)
def test_a_wrong_choice_is_one_line_and_exit_code_2(caplet: Caplet, arguments: list[str], choice: str) -> None:
    done = caplet(*arguments)
    assert (done.code, done.err) == (2, f"caplet: error: {choice}\n")
    assert done.out == ""


def test_a_missed_target_is_exit_code_5_with_the_best_results(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    done = caplet(*quantize(trained, tmp_path, "--tolerance", 0, "--budget", "5100", "--json"))
    assert done.code == 5
    assert done.err.splitlines()[-1].startswith("caplet: error: no plan found keeps both")
    found = done.json()
    assert found["met"] is False
    assert {model["role"] for model in found["models"]} == {"memory", "accuracy"}
    for model in found["models"]:
        assert (tmp_path / model["file"]).stat().st_size == model["file_bytes"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--method", "progressive", "--activation-budget", 700], "the activations take"),
        (["--method", "progressive", "--budget", 5100], "the weights take"),
        (
            ["--method", "ilp", "--tolerance", 0, "--budget", 5100],
            "even the plan of least noise within the budgets loses",
        ),
    ],
)
def test_targets_that_cannot_be_met_say_what_binds(
    caplet: Caplet, trained: Path, tmp_path: Path, arguments: list[object], reason: str
) -> None:
    done = caplet(*quantize(trained, tmp_path, "--granularity", "network", *arguments, "--json"))
    assert done.code == 5
    assert reason in done.err.splitlines()[-1]
    found = done.json()
    assert found["met"] is False
    assert reason in found["reason"]
    assert (tmp_path / found["models"][0]["file"]).stat().st_size == found["models"][0]["file_bytes"]
    role = {"progressive": "accuracy", "ilp": "memory"}[str(arguments[1])]  # the integer program keeps its budgets
    assert (found["models"][0]["role"], (tmp_path / f"plan_{role}.json").exists()) == (role, True)


def test_too_few_calibration_images_are_told_with_how_many_would_do(
    caplet: Caplet, trained: Path, tmp_path: Path
) -> None:
    done = caplet(*quantize(trained, tmp_path, "--calibration-size", 8))
    assert done.code in (0, 5)
    (line,) = [line for line in done.err.splitlines() if "cannot resolve a tolerance of 5" in line]
    assert "20 images would allow one" in line
    assert len([line for line in done.err.splitlines() if "no calibration image is of class" in line]) == 1
    assert "of classes without calibration images the search cannot see what it loses" in done.err


def test_images_that_the_search_has_not_seen_decide(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    """The network was trained with another calibration split than the 700 images here, so they are familiar to it."""
    fresh = ("--accept", "confidence", "--calibration-size", 700)
    done = caplet(*quantize(trained, tmp_path / "run", *fresh, "--json"))
    assert done.code == 0
    found, model = done.json()["promise"], done.json()["models"][0]
    assert found["images"] == {"about": "calibration images", "available": 420, "familiar": True}
    assert found["expected"]["accepted"]
    assert found["expected"]["loss"] <= found["expected"]["limit"] <= found["tolerance"] == 5
    assert found["kept"] == (model["paired"]["loss"] <= 5)
    assert "280 images" in done.err
    assert caplet("report", tmp_path / "run").code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Asked: a loss of at most 5.00 points; expected on new images: " in page
    assert "Loss on new images" in page
    done = caplet(*quantize(trained, tmp_path / "run", *fresh, "--tolerance", 0.1, "--force"))
    assert done.code == 3
    assert "420 calibration images cannot show a loss of at most 0.1 points" in done.err
    assert "is the smallest tolerance they can" in done.err
    for words in (("--validation", "test"), ("--validation", tmp_path / "nowhere"), ("--tolerance", 0)):
        assert caplet(*quantize(trained, tmp_path / "other", *fresh, *words)).code == 3
        assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_where_no_plan_within_the_budget_is_accepted_it_says_what_would_be(
    caplet: Caplet, trained: Path, tmp_path: Path
) -> None:
    options = ("--calibration-size", 700, "--tolerance", 5, "--effort", "quick", "--out", tmp_path / "run")
    done = caplet("quantize", trained / "model.safetensors", *options, "--budget", "9kB", "--json")
    assert done.code == 5, done.err
    found = re.search(r"no plan within the budgets keeps the tolerance; ([\d,]+) bytes of weights and", done.err)
    assert found is not None, done.err
    needed = int(found[1].replace(",", ""))
    assert needed > 9000
    done = caplet("quantize", trained / "model.safetensors", *options, "--budget", needed, "--force", "--json")
    assert (done.code, done.json()["met"]) == (0, True)


@pytest.mark.slow
def test_the_split_that_a_network_never_saw_is_known_from_its_file(
    caplet: Caplet, trained: Path, tmp_path: Path
) -> None:
    size = record(trained, "splits.json")["calibration"]["count"]
    same = caplet(
        *("quantize", trained / "model.safetensors", "--effort", "quick"),
        *("--calibration-size", size, "--tolerance", 20, "--out", tmp_path),
    )
    assert f"training images decide, and {size - round(0.4 * size)} held-out ones must agree" in same.err, same.err
    assert "held-out images: loss " in same.err


def test_without_early_decisions_every_image_is_seen(
    caplet: Caplet, trained: Path, quantized: Path, tmp_path: Path
) -> None:
    done = caplet(*quantize(trained, tmp_path, "--exact", "--json"))
    assert done.code == 0
    search = json.loads((tmp_path / "search.json").read_text())
    assert {step["seen"] for step in search["steps"]} == {120}
    assert [step["cost"] for step in search["steps"]] == pytest.approx([1.0] * len(search["steps"]))
    early = json.loads((quantized / "search.json").read_text())
    assert early["result"]["widths"] == search["result"]["widths"]
    assert early["full_passes"]["total"] < search["full_passes"]["total"]
    parts = {name: cost for name, cost in search["full_passes"].items() if name != "total"}
    assert set(parts) == {"calibration", "tuning", "float", "sensitivities", "probes"}
    assert sum(parts.values()) == pytest.approx(search["full_passes"]["total"])


def test_force_replaces_every_result_of_the_earlier_run(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert caplet(*quantize(trained, tmp_path, "--force", "--json")).code == 0
    done = caplet(*quantize(trained, tmp_path, "--tolerance", 0, "--budget", "5100", "--force", "--json"))
    assert done.code == 5
    models = {name for name in os.listdir(tmp_path) if name.endswith(".caplet")}
    assert models == {model["file"] for model in done.json()["models"]}
    assert (tmp_path / "thesis.tex").exists()


def test_an_interrupted_quantization_is_exit_code_130_and_resumes(
    caplet: Caplet, trained: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caplet.quant.measure.log import EvaluationLog

    add, left = EvaluationLog.add, iter(range(4))

    def interrupted(self: EvaluationLog, *arguments: Any) -> None:
        add(self, *arguments)
        if next(left) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationLog, "add", interrupted)
        done = caplet(*quantize(trained, tmp_path, "--json"))
    assert done.code == 130
    assert done.out == ""
    assert "--resume" in done.err.splitlines()[-1]
    assert not (tmp_path / "metrics.json").exists()
    assert sum('"hits"' in line for line in (tmp_path / "probes.jsonl").read_text().splitlines()) == 4
    assert caplet(*quantize(trained, tmp_path, "--resume", "--json")).code == 0
    check_equal_quantization(quantized, tmp_path)


def killed(process: Process, arguments: tuple[object, ...], patch: str) -> None:
    """Run a command in a process of its own, which ``patch`` makes kill itself (SIGKILL) somewhere."""
    die = "import signal\ndef die():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    done = process(*arguments, before=die + patch)
    assert done.code == -signal.SIGKILL, done.err


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.slow
def test_a_killed_quantization_resumes_to_the_same_bytes(
    caplet: Caplet, process: Process, trained: Path, quantized: Path, tmp_path: Path
) -> None:
    patch = """
import json
from caplet.quant.measure.log import MeasurementLog
write = MeasurementLog._write
def cut(self, row, mode, count=[0]):
    count[0] += self.path.name == "probes.jsonl"
    if count[0] == 5:
        with open(self.path, "a") as stream:
            stream.write(json.dumps(row)[:100])
        die()
    write(self, row, mode)
MeasurementLog._write = cut
"""
    killed(process, quantize(trained, tmp_path), patch)
    assert (tmp_path / "probes.jsonl").read_text()[-1] != "\n"
    assert caplet(*quantize(trained, tmp_path, "--resume", "--json")).code == 0
    check_equal_quantization(quantized, tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_bytes(
    caplet: Caplet, process: Process, trained: Path, tmp_path: Path
) -> None:
    patch = """
replace, count = os.replace, [0]
def cut(source, target):
    if str(target).endswith("train.ckpt"):
        count[0] += 1
        if count[0] == 2:
            die()
    replace(source, target)
os.replace = cut
"""
    killed(process, (*TRAIN, "--out", tmp_path, "--quiet"), patch)
    assert len([name for name in os.listdir(tmp_path) if name.endswith(".part")]) == 2, "a checkpoint, the run's mark"
    assert caplet(*TRAIN, "--out", tmp_path, "--resume", "--quiet", "--json").code == 0
    check_equal_training(trained, tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_a_full_disk_keeps_the_model_that_was_there(
    caplet: Caplet, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    assert caplet(*quantize(trained, tmp_path, "--json")).code == 0
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".caplet"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        message = caplet(*quantize(trained, tmp_path, "--force", "--quiet", "--json")).error()
    assert "model_satisfied.caplet" in message
    assert "no space left" in message.lower()
    for name in ("model_satisfied.caplet", "plan_satisfied.json", "metrics.json"):
        assert (tmp_path / name).read_bytes() == before[name]
    assert {*os.listdir(tmp_path)} == {*before, ".run.part"}, "nothing new but the mark of a run that stopped"


def test_report_and_diff(caplet: Caplet, trained: Path, quantized: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = caplet("report", quantized, trained, "--out", page, "--json")
    assert (done.code, done.json()["bytes"]) == (0, page.stat().st_size)
    assert "no such folder" in caplet("report", tmp_path / "nowhere").error()
    found = caplet("diff", quantized, quantized, "--json").json()
    assert (found["pair"]["n10"], found["pair"]["n01"], found["agree"]) == (0, 0, 359)
    assert "not paired" in caplet("diff", quantized, trained).out
    assert "exact McNemar test p = 1" in caplet("diff", quantized, quantized).out


def test_trace_names_the_first_difference(caplet: Caplet, trained: Path, quantized: Path, tmp_path: Path) -> None:
    model, run = trained / "model.safetensors", tmp_path / "run"
    shutil.copytree(quantized, run)
    done = caplet("trace", run, "--model", model, "--levels", "float,fake,program", "--images", 2)
    assert done.code == 0
    assert "float and fake part first at input.image" in done.out
    assert re.search(r"fake and program: equal, [\d,]+ values of 2 images", done.out)
    found = caplet("trace", quantized / "model_satisfied.caplet", "--levels", "program,native", "--json").json()
    assert found["comparisons"][0]["first"] is None
    assert "--model" in caplet("trace", quantized).error()
    assert "0 to" in caplet("trace", quantized, "--levels", "program,native", "--sample", 10**6).error()


def test_check_before_any_work(caplet: Caplet, trained: Path, quantized: Path) -> None:
    done = caplet("check", trained / "model.safetensors", "--images", 100)
    assert done.code == 0
    assert "39,376 parameters" in done.out
    assert "8 bits everywhere" in done.out
    found = caplet("check", quantized / "model_satisfied.caplet", "--json").json()
    assert found["fits"][0]["bits"] is None
    assert "no such file" in caplet("check", quantized / "nothing.pt").error().lower()
