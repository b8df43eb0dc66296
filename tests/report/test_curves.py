from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from caplet.report.curves import learning_curves

ROW = {"loss": 0.5, "calibration_loss": 0.6, "calibration_accuracy": 0.7}


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_picture_of_the_history(epochs: int) -> None:
    history = [{"epoch": epoch, **ROW} for epoch in range(1, epochs + 1)]
    png = learning_curves(history, "tiny on digits")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        assert picture.size == (840, 480)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert learning_curves(history, "tiny on digits") == png
