"""The report: its numbers are those of the run's records, and it needs nothing but itself."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from caplet import api
from caplet.data import Splits
from caplet.errors import ArtefactError
from caplet.jobs.report import write_report
from caplet.report.cards import card
from caplet.report.content import Table
from caplet.runs.finished import RunRecords, read_run
from caplet.runs.folder import RUNNING, typed
from caplet.runs.records import FinetuneMetrics, Kept
from conftest import MEASURE, Page, look_up, read_page


@pytest.fixture(scope="module")
def run(quantized: Path, digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantization that was verified on the interpreter."""
    folder = tmp_path_factory.mktemp("report") / "compressed & small"
    shutil.copytree(quantized, folder)
    program = api.load_program(folder / "model_satisfied.caplet")
    results = api.verify_engines(program, digits.test.images[:5].numpy(), ("interpreter",))
    api.record_verified(folder, program, "digits", results)
    return folder


@pytest.fixture(scope="module")
def page(run: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_page(write_report([run, trained], tmp_path_factory.mktemp("page") / "new" / "page.html"))


def test_every_traced_number_is_the_recorded_one(run: Path, trained: Path, tmp_path: Path) -> None:
    seen = set()
    for folder in (run, trained):
        for source, value, text in read_page(write_report([folder], tmp_path / "page.html")).numbers:
            if not source:
                continue
            seen.add(source)
            assert value == look_up(folder, source), source
            shown = re.search(r"[+-]?[\d,]+\.?\d*", text)
            assert shown is not None
            decimals = len(shown[0].partition(".")[2])
            factor = {"KB": 1e3, "MB": 1e6, "min": 60}.get(text.rpartition(" ")[2], 1)
            assert float(shown[0].replace(",", "")) == pytest.approx(value / factor, abs=0.51 * 10**-decimals), text
    assert seen >= {
        "metrics.json:float.test.percent",
        "metrics.json:models.0.test.percent",
        "metrics.json:models.0.paired.loss",
        "metrics.json:models.0.file_bytes",
        "details.json:models.satisfied.memory.fast.bytes",
        "metrics.json:test.percent",
    }


def test_the_verdict_names_limits_intervals_and_exactness(page: Page, run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    test, verified = metrics["models"][0]["test"], json.loads((run / "verify.json").read_text())["engines"][0]
    assert metrics["met"]
    assert "Limits met" in page.text
    assert page.text.count("✓ met") == 2, "the tolerance and the weights"
    assert "at most 5 pp" in page.text
    assert f"{test['low']:.2f} to {test['high']:.2f} %, n = {test['n']}" in page.text
    assert verified["differing"] == 0
    assert f"interpreter: {verified['codes']:,} of {verified['codes']:,} codes of 5 images" in page.text


def test_the_downloads_hold_the_records(page: Page, run: Path, trained: Path) -> None:
    details = json.loads((run / "details.json").read_text())["models"]["satisfied"]
    head, *rows = page.downloads["widths.csv"]
    bits = {row[head.index("point")]: int(row[head.index("bits")]) for row in rows}
    assert bits == {row["point"]: row["bits"] for row in details["tensors"] if row["role"] != "table"}
    steps = json.loads((run / "search.json").read_text())["steps"]
    head, *rows = page.downloads["search.csv"]
    assert [int(row[head.index("correct")]) for row in rows] == [step["correct"] for step in steps]
    plan = details["memory"]["small"]
    assert [int(row[2]) for row in page.downloads["memory-small.csv"][1:]] == [b["offset"] for b in plan["buffers"]]
    assert f"{plan['bytes']:,} bytes" in page.text
    metrics = json.loads((run / "metrics.json").read_text())
    head, *rows = page.downloads["confusion.csv"]
    right = [row for row in rows if row[0] == row[1]]
    assert sum(int(row[2]) for row in right) == metrics["float"]["test"]["correct"]
    assert sum(int(row[3]) for row in right) == metrics["models"][0]["test"]["correct"]
    counts = json.loads((run / "flips.json").read_text())["counts"]
    pair = metrics["models"][0]["paired"]
    assert (counts["lost"], counts["won"]) == (pair["n10"], pair["n01"])
    assert len(page.downloads["changed-answers.csv"]) == 1 + sum(counts.values())
    history = json.loads((trained / "metrics.json").read_text())["history"]
    assert len(page.downloads["learning-curves.csv"]) == 1 + len(history)


def test_the_page_needs_nothing_else(page: Page, run: Path) -> None:
    assert "script" not in page.tags
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    target = write_report([run])
    assert target == run / "report.html"
    assert target.stat().st_size < 3_000_000
    text = target.read_text(encoding="utf-8")
    assert "compressed &amp; small" in text
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(", text)


def test_what_is_missing_is_said(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(run, folder)
    for name in ("details.json", "flips.json", "predictions.json", "verify.json"):
        (folder / name).unlink()
    found = read_page(write_report([folder]))
    for word in ("Widths", "Memory over time", "Confusion", "Changed predictions", "bit-exactness"):
        assert f"{word}: " in found.text
    assert "widths.csv" not in found.downloads
    assert "search.csv" in found.downloads


def test_a_verification_of_another_model_does_not_count(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stale"
    shutil.copytree(run, folder)
    record = json.loads((folder / "verify.json").read_text())
    (folder / "verify.json").write_text(json.dumps({**record, "sha256": "0" * 64}))
    text = read_page(write_report([folder])).text
    assert "Bit-exact" not in text
    assert "run on another model" in text


def test_engines_of_several_verifications_are_kept(run: Path, digits: Splits, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    shutil.copytree(run, folder)
    program = api.load_program(folder / "model_satisfied.caplet")
    native = api.verify_engines(program, digits.test.images[:3].numpy(), ("interpreter",))
    api.record_verified(folder, program, "again", native)
    assert [row["data"] for row in json.loads((folder / "verify.json").read_text())["engines"]] == ["again"]
    other = json.loads((folder / "verify.json").read_text())
    other["engines"][0]["target"] = "native"
    (folder / "verify.json").write_text(json.dumps(other))
    api.record_verified(folder, program, "digits", native)
    rows = json.loads((folder / "verify.json").read_text())["engines"]
    assert [(row["target"], row["data"]) for row in rows] == [("native", "again"), ("interpreter", "digits")]


def test_a_missed_target_is_not_called_met(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "missed"
    shutil.copytree(run, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {"met": False, "reason": "no plan keeps the target", "budget_bytes": 10.0}
    metrics["models"][0]["calibration"]["correct"] = 1
    (folder / "metrics.json").write_text(json.dumps(metrics))
    text = read_page(write_report([folder])).text
    assert "Limits not met" in text
    assert text.count("✗ not met") == 2
    assert "no plan keeps the target" in text


@pytest.mark.parametrize(("remove", "message"), [("metrics.json", "not finished"), ("settings.json", "holds no run")])
def test_unfinished_runs_are_refused(run: Path, tmp_path: Path, remove: str, message: str) -> None:
    folder = tmp_path / "part"
    shutil.copytree(run, folder)
    (folder / "metrics.json").unlink()
    (folder / remove).unlink(missing_ok=True)
    with pytest.raises(ArtefactError, match=message):
        write_report([folder])


def test_a_run_that_goes_on_is_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "running"
    shutil.copytree(run, folder)
    (folder / RUNNING).touch()
    with pytest.raises(ArtefactError, match="not finished"):
        write_report([folder])
    with pytest.raises(ArtefactError, match="no such folder"):
        write_report([tmp_path / "nowhere"])
    (folder / RUNNING).unlink()
    for name in ("metrics.json", "settings.json"):
        (folder / name).write_text("{}")
    with pytest.raises(ArtefactError, match="no run of training"):
        read_run(folder)
    (folder / "settings.json").write_text('{"job": {"a": 1}}')
    with pytest.raises(ArtefactError, match="no run of training"):
        read_run(folder)


@pytest.mark.parametrize("broken", [{"steps": 3}, {"reference": {}}, {"needed": None}])
def test_records_of_another_form_are_refused(run: Path, tmp_path: Path, broken: dict[str, Any]) -> None:
    folder = tmp_path / "other"
    shutil.copytree(run, folder)
    record = json.loads((folder / "search.json").read_text())
    (folder / "search.json").write_text(json.dumps({**record, **broken}))
    with pytest.raises(ArtefactError, match=r"(run in .*|record of )other is not what this version of caplet writes"):
        write_report([folder])
    (folder / "search.json").write_text("{")
    with pytest.raises(ArtefactError, match="not valid JSON"):
        write_report([folder])


def test_a_layer_of_impossible_size_is_refused() -> None:
    kept = {"spaces": {"conv1.channels": {"kind": "channels", "of": 10**12, "kept": [0]}}, "votes": {}}
    with pytest.raises(ArtefactError, match=r"conv1\.channels\.of: Input should be less than or equal to 1048576"):
        typed(Kept, kept, "what remains")


def test_a_folder_of_runs_is_all_of_them(run: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "b")
    shutil.copytree(trained, tmp_path / "a")
    page = read_page(write_report([tmp_path]))
    assert page.ids == ["run-1", "run-2"]
    assert {"learning-curves.csv", "widths.csv"} <= set(page.downloads)


def test_sensitivities_and_fronts_are_drawn(trained: Path, tmp_path: Path) -> None:
    model, data = api.load_float(trained / "model.safetensors"), api.load_data("digits", calibration_size=120)
    settings = api.SensitivitySettings(widths=(3, 6), draws=2, images=10)
    found = api.sensitivity(model, data, tmp_path / "s", settings)
    request = api.QuantizeSettings(
        method=api.Method.ILP, accept="measured", tolerance=5.0, granularity=api.Granularity.BLOCK
    )
    api.quantize(model, data, tmp_path / "q", request)
    page = read_page(write_report([tmp_path / "s", tmp_path / "q"]))
    head, *rows = page.downloads["sensitivity.csv"]
    first = found.metrics["points"][0]
    assert len(rows) == len(found.metrics["points"])
    assert float(rows[0][head.index("loss_change_mean")]) == first["loss_change"]["mean"]
    front = json.loads((tmp_path / "q" / "search.json").read_text())["front"]
    assert [float(row[0]) for row in page.downloads["front.csv"][1:]] == [point["weight_bytes"] for point in front]


def test_names_of_classes_cannot_break_a_download_or_the_page(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "names"
    shutil.copytree(run, folder)
    record = json.loads((folder / "predictions.json").read_text())
    record["classes"][3] = '<i>"a, b"</i>'
    (folder / "predictions.json").write_text(json.dumps(record))
    page = read_page(write_report([folder]))
    assert "i" not in page.tags
    assert '<i>"a, b"</i>' in page.text
    assert '<i>"a, b"</i>' in {row[0] for row in page.downloads["confusion.csv"]}
    assert Table("t", ("a",), (("x",),)).csv() == "a\r\nx\r\n"


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_a_browser_shows_it(run: Path, trained: Path, tmp_path: Path, chromium: str, width: int) -> None:
    """No console message, no broken image, and nothing wider than the window: on a phone, a tablet, a desk."""
    write_report([run, trained], tmp_path / "page.html")
    (tmp_path / "measure.html").write_text(MEASURE.format(src="page.html", width=width))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command += ["--window-size=1400,3200", "--dump-dom", (tmp_path / "measure.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    wide, pictures, broken = map(int, title.groups())
    assert wide <= width
    assert pictures >= 8
    assert broken == 0


def test_numbers_of_a_finetuned_float_model_name_their_record() -> None:
    test = {"correct": 9, "n": 10, "percent": 90.0, "low": 59.6, "high": 98.2}
    pair = {"n": 10, "n10": 1, "n01": 0, "loss": 10.0, "low": -9.0, "high": 29.0, "p_value": 1.0}
    metrics = {"test": test, "paired": pair, "float": {"test": test}, "finetune": {"steps": 4, "history": []}}
    found = card(RunRecords("tuned", "finetune", "", typed(FinetuneMetrics, metrics, "metrics")))
    assert found is not None
    sources = [number.source for _, number, _ in found.facts]
    assert sources == ["metrics.json:float.test.percent", "metrics.json:test.percent", "metrics.json:paired.loss"]
