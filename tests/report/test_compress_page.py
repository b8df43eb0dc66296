"""The page about a compression: everything it has to show, with the numbers of the run's records."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from caplet import api
from caplet.jobs.compress.settings import checked
from caplet.jobs.report import write_report
from conftest import MEASURE, Page, look_up, read_page

pytestmark = pytest.mark.slow  # the compression takes seconds

SETTINGS: dict[str, Any] = {
    "data": "digits",
    "prune": {"probes": [0.5], "probe_steps": 5, "least_steps": 60},
    "quantize": {"probes": [8, 4], "reconstruct": []},
    "verify": {"images": 3, "timed": 8},
    "web": True,
}


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compression with one limit that is kept and one that is not."""
    folder, file = tmp_path_factory.mktemp("compress") / "run", trained / "model.safetensors"
    limits = {"max_drop": 20.0, "flash": "12KB", "ram": "8KB"}
    settings = checked({**SETTINGS, "model": str(file), "limits": limits})
    api.compress(api.load_float(file), api.load_data("digits", calibration_size=120), folder, settings)
    return folder


@pytest.fixture(scope="module")
def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return read_page(run / "report.html")


def test_the_card_says_what_was_reached(page: Page, metrics: dict[str, Any]) -> None:
    limits = metrics["limits"]
    asked = [name for name, limit in limits.items() if limit["asked"] is not None]
    assert sorted(asked) == ["flash", "max_drop", "ram"]
    assert metrics["missed"] == ["flash"], "the page has to show a limit that is not met"
    assert page.text.count("✗ not met") >= len(metrics["missed"])
    assert ("Limits met" if metrics["met"] else "Limits not met") in page.text
    for engine in metrics["verified"]:
        assert f"{engine['target']}: {engine['codes']:,} of {engine['codes']:,} codes of 3 images" in page.text
    for give in metrics["outlook"]:
        assert give in page.text


def test_a_link_leads_to_the_page_for_browsers(run: Path) -> None:
    pytest.importorskip("ziglang")
    (link,) = re.findall(r'<a href="(web/[^"]*)"', (run / "report.html").read_text(encoding="utf-8"))
    assert "caplet-core.js" in (run / link).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def own(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page about the compression itself, without its stages."""
    return read_page(write_report([run], tmp_path_factory.mktemp("own") / "page.html"))


def test_every_traced_number_is_the_recorded_one(own: Page, run: Path) -> None:
    traced = {source: value for source, value, _ in own.numbers if source}
    assert {"metrics.json:compressed.test.percent", "metrics.json:limits.flash.found"} <= set(traced)
    assert {source: look_up(run, source) for source in traced} == traced


def test_every_figure_can_be_downloaded(page: Page, own: Page, metrics: dict[str, Any]) -> None:
    figures = {
        *("measured", "trade-off", "pairs", "networks", "speed", "widths", "memory-fast", "memory-small"),
        *("confusion", "noise", "search", "front", "rounds", "fine-tuning", "survivors", "sensitivity"),
    }
    assert {f"{name}.csv" for name in figures} <= set(page.downloads)
    head, *rows = page.downloads["pairs.csv"]
    made = [row for row in rows if row[0] == "made"]
    assert [int(row[head.index("flash")]) for row in made] == [each["values"]["flash"] for each in metrics["attempts"]]
    assert len(rows) == len(made) + len(metrics["choice"]["pairs"])
    head, *rows = page.downloads["measured.csv"]
    curve, widths = metrics["choice"]["curve"][1:], metrics["choice"]["widths"]
    assert [float(row[head.index("loss (points)")]) for row in rows] == pytest.approx(
        [point["drop"] for point in (*curve, *widths)], abs=0.006
    )
    head, *rows = own.downloads["confusion.csv"]
    right = [row for row in rows if row[0] == row[1]]
    assert sum(int(row[head.index("float")]) for row in right) == metrics["float"]["test"]["correct"]
    assert sum(int(row[head.index("integers")]) for row in right) == metrics["compressed"]["test"]["correct"]
    noise = {row[0] for row in page.downloads["noise.csv"][1:]}
    assert any(name.endswith("[1]") for name in noise), "routing iterations are told apart"


def test_nothing_is_left_out(page: Page) -> None:
    titles = ("Pruning or narrower integers", "Networks that were made", "Speed", "Widths", "Memory over time")
    titles += ("Confusion before and after", "Changed predictions", "Noise by point and iteration", "Sensitivity")
    titles += ("Search", "Stopped because", "What remains", "Learning curves", "Provenance", "SHA-256")
    assert [title for title in titles if title not in page.text] == []
    assert "Not on this page" not in page.text


def test_the_page_is_small_and_alone(page: Page, run: Path) -> None:
    assert (run / "report.html").stat().st_size < 3_000_000
    assert "script" not in page.tags
    assert all(link.startswith(("data:", "#", "web/")) for link in page.links)
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_a_browser_shows_it(run: Path, tmp_path: Path, chromium: str, width: int) -> None:
    (tmp_path / "page.html").write_bytes((run / "report.html").read_bytes())
    (tmp_path / "measure.html").write_text(MEASURE.format(src="page.html", width=width))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command += ["--window-size=1400,3200", "--dump-dom", (tmp_path / "measure.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    wide, pictures, broken = map(int, done.stdout.partition("<title>")[2].partition("</title>")[0].split())
    assert wide <= width
    assert pictures >= 15
    assert broken == 0
