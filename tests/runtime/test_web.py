"""The export for browsers and node: its codes are the interpreter's, with SIMD and without; the page says so itself."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caplet.errors import ArtefactError, ToolMissing
from caplet.fixed.rounding import Rounding
from caplet.program import interpreter
from caplet.program.c.emit import EmitSettings
from caplet.program.ops import Routing
from caplet.program.program import Program
from caplet.runtime import web
from sample_programs import SampleSettings, sample_backbone, sample_deep, sample_shallow

pytestmark = pytest.mark.slow(2)

pytest.importorskip("ziglang", reason="the Python package ziglang is not installed")
NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

CASES = {
    "shallow": (sample_shallow, SampleSettings(weight_bits=5), "fast", 1000),
    "deep-stochastic": (
        sample_deep,
        SampleSettings(4, 7, Rounding.STOCHASTIC, channel_shifts=True, log_weights=True),
        "small",
        40,
    ),
    "backbone-16": (sample_backbone, SampleSettings(16, 16, channel_shifts=True), "fast", 40),
    "one-iteration": (sample_deep, SampleSettings(9, 8, Rounding.TRUNCATE, iterations=1, selected=True), "fast", 40),
}
RUN = """
import fs from "node:fs";
import { load, simdSupported } from "./caplet-model.js";
const images = fs.readFileSync("images.bin");
const models = [await load({ simd: true }), await load({ simd: false })];
const size = models[0].rows * models[0].columns * models[0].channels;
const codes = models.map(() => []), classes = [], steps = [];
for (let at = 0; at < images.length; at += size) {
  const pixels = images.subarray(at, at + size);
  models.forEach((model, i) => {
    const found = model.classify(pixels, { routing: at < 3 * size });
    codes[i].push(...found.codes);
    if (i === 0) classes.push(found.class);
    if (i === 0 && found.routing) steps.push(found);
  });
}
const words = [];
for (const pixels of [new Uint8Array(3), "text", new Array(size).fill(256), new Float32Array(size)]) {
  try { models[0].classify(pixels); } catch (error) { words.push(`${error.name}: ${error.message}`); }
}
const { simd, labels, iterations } = models[0];
const tests = models.map((model) => model.selfTest());
console.log(JSON.stringify({ codes, classes, steps, words, simd, labels, iterations, tests, probe: simdSupported() }));
"""


def images_for(program: Program, count: int) -> np.ndarray:
    images = np.random.default_rng(11).integers(0, 256, size=(count, *program.image_shape), dtype=np.uint8)
    images[0], images[-1] = 0, 255
    return images


def in_node(folder: Path, program: Program, images: np.ndarray) -> dict[str, Any]:
    assert NODE is not None
    (folder / "images.bin").write_bytes(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
    (folder / "run.mjs").write_text(RUN)
    done = subprocess.run([NODE, "run.mjs"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def with_iterations(program: Program, count: int) -> Program:
    """The Program with fewer iterations of its class capsules' routing."""
    shorter = (
        replace(op, iterations=count) if isinstance(op, Routing) and op.activation == program.output else op
        for op in program.ops
    )
    return replace(program, ops=tuple(shorter))


@needs_node
@pytest.mark.parametrize("case", CASES)
def test_codes_in_node_are_the_interpreters(case: str, tmp_path: Path) -> None:
    make, sample, ram, count = CASES[case]
    program = make(4, sample)
    export = web.emit_web(program, tmp_path, EmitSettings(ram=ram))
    images = images_for(program, count)
    found, expected = in_node(tmp_path, program, images), interpreter.run(program, images)
    assert found["probe"]
    assert found["simd"]
    for codes in found["codes"]:
        assert np.array_equal(codes, expected.capsules.reshape(-1))
    assert found["classes"] == expected.predictions.tolist()
    assert [test["passed"] for test in found["tests"]] == [True, True]
    assert found["tests"][0]["codes"] == 3 * expected.capsules[0].size
    assert [word.split(":")[0] for word in found["words"]] == ["RangeError", "TypeError", "RangeError", "TypeError"]
    assert found["iterations"] == (sample.iterations if sample.iterations > 1 else 0)
    if found["iterations"]:
        for image in found["steps"]:
            steps = image["routing"]
            assert steps[-1]["lengths"] == image["lengths"], "the last iteration is the result"
            assert len(steps) == found["iterations"]
            shares = np.array([step["coupling"] for step in steps])
            assert np.allclose(shares.sum(axis=1), 1)
            assert np.allclose(shares[0], 1 / program.classes)
            assert not np.allclose(shares[-1], shares[0])
        shorter = interpreter.run(with_iterations(program, found["iterations"] - 1), images[:3])
        scale = 2.0 ** -program.tensors[program.lengths].format.frac_bits
        lengths = [image["routing"][-2]["lengths"] for image in found["steps"]]
        assert np.allclose(lengths, np.sqrt(shorter.lengths * scale))
    for name in web.FEATURES:
        size = (tmp_path / "wasm" / f"{name}.wasm").stat().st_size
        assert size < 80_000, f"{name}.wasm: {size:,} bytes of code"
    package = json.loads((tmp_path / "package.json").read_text())
    assert all((tmp_path / name).exists() for name in package["files"])
    assert {package["main"], package["types"]} <= {f"./{name}" for name in export.files}


@needs_node
def test_the_self_test_can_fail(tmp_path: Path) -> None:
    program = sample_shallow(4, SampleSettings())
    web.emit_web(program, tmp_path)
    core = tmp_path / "caplet-core.js"
    text = core.read_text()
    place = text.index('"codes": [') + len('"codes": [')
    stop = re.compile("[,\\]]").search(text, place)
    assert stop is not None
    core.write_text(f"{text[:place]}{int(text[place : stop.start()]) + 1}{text[stop.start() :]}")
    found = in_node(tmp_path, program, images_for(program, 2))
    assert [(test["passed"], test["differing"]) for test in found["tests"]] == [(False, 1), (False, 1)]


DRIVE = """<script>
const key = (name, times = 1) => {
  for (let i = 0; i < times; i++) {
    document.getElementById("draw").dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  }
};
const wait = () => new Promise((done) => setTimeout(done, 400));
const file = async (width, height, type) => {
  const made = Object.assign(document.createElement("canvas"), { width, height });
  const pen = made.getContext("2d");
  pen.fillStyle = "#c08040";
  pen.fillRect(0, 0, width / 2, height);
  const blob = await new Promise((done) => made.toBlob(done));
  const transfer = new DataTransfer();
  transfer.items.add(new File([type ? blob : "text"], type ? "some.png" : "some.txt", { type: type || "text/plain" }));
  const said = () => ["help", "error"].map((id) => document.getElementById(id).textContent);
  const before = said().join();
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer }));
  for (let i = 0; i < 3000 && said().join() === before; i++) await wait();  // images are decoded in real time
  return said();
};
(async () => {
  await wait();
  const blank = document.getElementById("answer").textContent;
  key(" "); key("ArrowRight", 6); key("ArrowDown", 6); key(" ");
  await wait();
  const log = { blank, drawn: document.getElementById("answer").textContent };
  log.exact = await file(COLUMNS, ROWS, "image/png");
  log.other = await file(90, 20, "image/png");
  log.text = await file(8, 8, "");
  log.rows = document.querySelectorAll("#classes li").length;
  log.cells = document.querySelectorAll("#routing td").length;
  log.wide = document.documentElement.scrollWidth > innerWidth;
  document.body.append(Object.assign(document.createElement("pre"), { id: "log", textContent: JSON.stringify(log) }));
})();
</script></body>"""


@needs_chromium
@pytest.mark.parametrize(("width", "labels"), [(500, ()), (820, ("<b>", "é", "a\u2028b", "</script>", "e"))])
def test_the_page_in_a_browser(width: int, labels: tuple[str, ...], tmp_path: Path) -> None:
    program = replace(sample_shallow(4, SampleSettings()), labels=labels)
    web.emit_web(program, tmp_path)
    _, rows, columns = program.image_shape
    page = tmp_path / "index.html"
    text = page.read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:|caplet-core\.js)", text), "the page loads nothing from elsewhere"
    page.write_text(text.replace("</body>", DRIVE.replace("COLUMNS", str(columns)).replace("ROWS", str(rows))))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(CHROMIUM), *options, f"--window-size={width},900", "--virtual-time-budget=4000000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=False)
    assert 'data-selftest="passed"' in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    assert "with SIMD and without SIMD" in done.stdout
    match = re.search('<pre id="log">(.*?)</pre>', done.stdout)
    assert match is not None, done.stdout[-3000:]
    log = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    names = labels or tuple(f"class {index}" for index in range(program.classes))
    assert log["blank"] == "Nothing drawn yet"
    assert log["drawn"] in names
    assert log["exact"] == [f"some.png: {columns} x {rows} pixels, taken as they are.", ""]
    assert "resized to" in log["other"][0]
    assert "stretched" in log["other"][0]
    assert log["text"][1].startswith("some.txt is no image; choose a PNG")
    assert log["rows"] == program.classes
    assert log["cells"] == 6 * program.classes + 1
    assert not log["wide"], "nothing makes the page wider than the window"


def test_it_is_refused_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = sample_shallow(4, SampleSettings())
    (tmp_path / "file").write_text("here")
    with pytest.raises(ArtefactError, match="not an empty folder"):
        web.emit_web(program, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolMissing, match="pip install ziglang"):
        web.emit_web(program, tmp_path / "new")
