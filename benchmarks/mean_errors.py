"""What it brings to leave out the mean errors that bias correction takes up, when plans to be fitted are chosen.

    python benchmarks/mean_errors.py ../shared/models/shallow_fmnist.pt --data fashion-mnist --root ../shared/data \
        --noises 1e-4 4e-4 --record shallow-fmnist

For each total noise the integer program gives the plan of least memory, with and without those errors; it is fitted,
and the change of the class capsules' lengths is measured on the first training images. The test split stays closed.
"""

import argparse
import json
import os
import shlex
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from caplet.api import load_model
from caplet.data import load_data
from caplet.data.imageset import to_float
from caplet.fixed import Rounding
from caplet.jobs.quantize.accept import footprint
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.quant.choices import Granularity
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.measure.log import MeasurementCache
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.memory import count_memory
from caplet.quant.reconstruct import reconstruct
from caplet.quant.reconstruct.equalization import folded
from caplet.quant.reconstruct.fitted_noise import FittedNoise
from caplet.quant.reconstruct.linear_maps import corrected_maps
from caplet.quant.reconstruct.scale_search import ChannelFormats
from caplet.quant.reconstruct.settings import ReconstructSettings, parse_parts
from caplet.quant.search.ilp import IlpSearch
from caplet.quant.search.search import Request, Workbench
from caplet.quant.simulate.fake_quant import fake_quantized

RECORDS = Path(__file__).parent / "records"


def lengths_of(model: CapsNet, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([lengths(model(to_float(part))) for part in torch.split(images, 100)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--noises", nargs="+", type=float, default=[1e-4])
    parser.add_argument("--images", type=int, default=1000, help="training images that measure")
    parser.add_argument("--record", help="name of the record to write")
    arguments = parser.parse_args()

    model, splits = load_model(arguments.model), load_data(arguments.data, root=arguments.root)
    found, images = splits.calibration, splits.train.images[: arguments.images]
    settings = ReconstructSettings(parse_parts("scales,per-channel,bias,rounding"))
    calibration, cache = calibrate(model, found.images), MeasurementCache(None, "noises", {})
    source = Tuner(model, calibration, found.evenly_spaced(64).images)
    formats = ChannelFormats(folded(model), calibration, source)
    fitted = FittedNoise(model, found.evenly_spaced(640).images, formats, settings, cache.answer)
    evaluator = Evaluator(model, found.images, found.labels)
    reference = lengths_of(model, images)
    rows: list[dict[str, Any]] = []
    for left_out in (False, True):
        corrected = corrected_maps(model) if left_out else frozenset[str]()
        bench = Workbench(evaluator, formats, partial(footprint, model), lambda step: None, cache, fitted, corrected)
        search = IlpSearch(bench, Request(tolerance=0.2, granularity=Granularity.TENSOR), Rounding.CARRY)
        for noise in arguments.noises:
            plan = search.within(noise)
            assert plan is not None
            with patch.object(reconstruct, "corrected_maps", lambda model, corrected=corrected: corrected):
                fit = reconstruct.Reconstructor(model, found.images, settings).fit(plan)
            with fake_quantized(fit.model, fit.plan):
                after = lengths_of(fit.model, images)
            memory = count_memory(model, plan).total
            rows.append(
                {
                    "mean_errors_left_out": left_out,
                    "noise_asked": noise,
                    "noise_of_the_fit": float((after - reference).square().mean()),
                    "weight_reduction": memory.weight_reduction,
                    "activation_reduction": memory.activation_reduction,
                    "same_class": float((after.argmax(1) == reference.argmax(1)).float().mean()),
                }
            )
            print(rows[-1], flush=True)
    if arguments.record:
        record = {
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.now(UTC).date().isoformat(),
            "cores": os.cpu_count(),
            "images": len(images),
            "rows": rows,
        }
        path = RECORDS / f"{record['date']}-mean-errors-{arguments.record}.json"
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
