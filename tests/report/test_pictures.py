"""Pictures that commands leave in run folders: SVG files that need nothing else."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from caplet.report.charts import Series, chart
from caplet.report.noise import sensitivity_pictures
from caplet.report.pruning import pruning_curves, remaining_units
from caplet.report.training import learning_curves
from caplet.runs.records import Kept, KeptUnits

ROW = {"loss": 0.5, "calibration_loss": 0.6, "calibration_accuracy": 0.7}
SVG = "{http://www.w3.org/2000/svg}"


def read(picture: bytes) -> ElementTree.Element:
    """The picture's root; it has a size, says what it shows, and its colours are written out."""
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    assert root.get("aria-label")
    assert {"viewBox", "width", "height"} <= set(root.attrib)
    text = picture.decode()
    assert not re.search(r"var\(|color-mix|--mix|@import|url\(|href", text)
    rules = root.findtext(f"{SVG}style") or ""
    styled = set(re.findall(r"\.([\w-]+)", rules))
    plain = (element for element in root.iter() if "style" not in element.attrib)
    words = {word for element in plain for word in element.get("class", "").split()}
    assert words <= styled | {"fit", "label", "dot", "tile", "tick"}, "every class has a colour"
    return root


def texts(root: ElementTree.Element) -> set[str]:
    return {element.text or "" for element in root.iter(f"{SVG}text")}


@pytest.mark.parametrize("epochs", [1, 3])
def test_learning_curves(epochs: int) -> None:
    history = [{"epoch": epoch, **ROW} for epoch in range(1, epochs + 1)]
    picture = learning_curves(history, "tiny on <digits> & more", epochs)
    root = read(picture)
    assert {"tiny on <digits> & more", "loss per image", "correct (%)", "kept", "training", "calibration"} <= texts(
        root
    )
    dots = [element for element in root.iter(f"{SVG}circle") if element.get("r") == "2.5"]
    assert len(dots) == 3 * epochs, "training loss, calibration loss, calibration accuracy"
    assert learning_curves(history, "tiny on <digits> & more", epochs) == picture


def test_pruning_curves_have_a_line_for_every_score() -> None:
    points = [{"kept": kept, "macs": kept**2, "accuracy": 0.9 * kept} for kept in (1.0, 0.5, 0.25)]
    names = ("taylor", "length", "agreement", "weight", "random")
    record = {"scores": {name: {"points": points, "area": 0.5} for name in names}, "reference": 0.9}
    root = read(pruning_curves(record, "scores"))
    assert {f"{name} (area 0.500)" for name in names} <= texts(root)
    styles = [element.get("class") for element in root.iter(f"{SVG}path")]
    assert len(styles) == 2 * len(names)
    assert len(set(styles)) == len(names)


def test_remaining_units_are_dark() -> None:
    spaces = {"conv": KeptUnits("channels", 4, [0, 2]), "votes": KeptUnits("capsules", 4, [1])}
    root = read(remaining_units(Kept(spaces, {"primary": [[0, 1], [0, 0]]}), "what remains"))
    fills = [element.get("style", "") for element in root.iter(f"{SVG}rect") if element.get("class") == "tile"]
    dark, light = fills[0], fills[1]
    assert fills == [dark, light, dark, light, light, dark, light, light]
    assert dark != light


def test_sensitivity_pictures() -> None:
    def row(point: str, bits: int, ratio: float | None) -> dict[str, Any]:
        found = {name: {"mean": 0.1, "low": 0.0, "high": 0.2} for name in ("sqnr", "loss_change", "accuracy_change")}
        found |= {"saturation": found["sqnr"], "output_sqnr": {"mean": ratio, "low": ratio, "high": ratio}}
        return {"point": point, "bits": bits, "n": 3, **found}

    root = read(sensitivity_pictures([row("conv.weight", 4, 20.4), row("digit.votes", 4, None)], "one at a time"))
    assert {"conv.weight", "digit.votes", "20", "exact", "4 bits"} <= texts(root)


def test_a_legend_that_is_too_long_is_wrapped() -> None:
    series = [Series(f"a rather long name {index}", ((0.0, 1.0), (1.0, 2.0)), "s0") for index in range(4)]
    one, four = (chart("t", ("x", "y"), lines) for lines in (series[:1], series))
    assert four.height > one.height
    assert all(float(element.get("x", "0")) < four.width for element in four.root.iter("text"))
