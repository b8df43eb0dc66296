"""Options that settings classes make: a value that is none of the kind is exit code 2, one out of range exit code 3."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from caplet.bench.settings import BenchSettings, PapersSettings, SpeedSettings
from caplet.cli.compress import CompressOptions
from caplet.cli.shared import DataOptions, FileOptions, ImageOptions, ImportOptions, RunOptions
from caplet.jobs.compress.settings import CompressSettings, Limits, Pruning, Quantizing
from caplet.jobs.prune.settings import BackboneTuning, PruneSettings, TuningOptions
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.sweep.settings import SweepSettings
from caplet.prune.choices import BackbonePruneSettings
from caplet.quant.choices import SensitivitySettings
from caplet.settings import Settings
from caplet.train.settings import FinetuneSettings, TrainSettings
from caplet.workers.settings import WorkerSettings
from conftest import Caplet

QUANTIZE, PRUNE, SENSITIVITY = (f"{name} absent.pt" for name in ("quantize", "prune", "sensitivity"))
BACKBONE, FINETUNE, COMPRESS = "prune-backbone absent.pt --macs 0.5", "finetune absent.pt", "compress absent.pt"
BAD: list[tuple[type[Settings], str, str, int]] = [
    (QuantizeSettings, QUANTIZE, "--method wrong", 2),
    (QuantizeSettings, QUANTIZE, "--seed -1", 3),
    (PruneSettings, PRUNE, "--allocation wrong", 2),
    (PruneSettings, PRUNE, "--keep 0", 3),
    (TuningOptions, f"{PRUNE} --keep 0.5", "--batch-size 0", 3),
    (BackbonePruneSettings, BACKBONE, "--primary wrong", 2),
    (BackbonePruneSettings, BACKBONE, "--candidates 0", 3),
    (BackboneTuning, BACKBONE, "--epochs -1", 3),
    (BackboneTuning, BACKBONE, "--epochs 0.5", 2),
    (SensitivitySettings, SENSITIVITY, "--rounding up", 2),
    (SensitivitySettings, SENSITIVITY, "--widths 0", 3),
    (SensitivitySettings, SENSITIVITY, "--widths 2-", 3),
    (FinetuneSettings, FINETUNE, "--steps x", 2),
    (FinetuneSettings, FINETUNE, "--epochs 0", 3),
    (TrainSettings, "train --recipe digits", "--freeze=1", 2),
    (TrainSettings, "train --recipe digits", "--model wrong", 3),
    (CompressSettings, COMPRESS, "--target wrong", 2),
    (CompressSettings, COMPRESS, "--channels 2", 3),
    (Limits, COMPRESS, "--max-drop -1", 3),
    (Pruning, COMPRESS, "--prune wrong", 2),
    (Quantizing, COMPRESS, "--method wrong", 2),
    (CompressOptions, COMPRESS, "--jobs 0", 3),
    (BenchSettings, "bench absent.pt absent.pt", "--precision half", 2),
    (BenchSettings, "bench absent.pt absent.pt", "--turns 0", 3),
    (SpeedSettings, "bench speed shallow", "--bits wide", 2),
    (SpeedSettings, "bench speed shallow", "--bits 17", 3),
    (PapersSettings, "bench papers --list", "--threads 0", 3),
    (RunOptions, QUANTIZE, "--force=1", 2),
    (FileOptions, "train --recipe digits", "--size wide", 2),
    (ImageOptions, "verify absent.caplet", "--size wide", 2),
    (ImportOptions, "inspect absent.pt", "--image-size wide", 2),
    (ImportOptions, "check absent.pt", "--image-size 0", 3),
    (DataOptions, "eval absent.pt", "--calibration-size all", 2),
    (WorkerSettings, SENSITIVITY, "--workers two", 2),
    (WorkerSettings, SENSITIVITY, "--workers 0", 3),
    (SweepSettings, "sweep", "--trials few", 2),
    (SweepSettings, "sweep", "--epochs 0", 3),
]


@pytest.mark.parametrize(("kind", "command", "option", "code"), BAD)
def test_a_bad_value(
    caplet: Caplet,
    kind: type[Settings],
    command: str,
    option: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = caplet(*command.split(), *option.split())
    assert done.code == code, done.err
    name, _, value = option.replace("=", " ").partition(" ")
    assert (name if code == 2 else name.removeprefix("--").replace("-", "_")) in done.err
    assert "absent.pt" not in done.err, "settings are checked before any file is read"
    assert code == 2 or value in done.error()
    assert list(tmp_path.iterdir()) == []


def with_an_option(kind: type[Settings]) -> Iterator[type[Settings]]:
    for sub in kind.__subclasses__():
        if any(isinstance(field.json_schema_extra, dict) for field in sub.model_fields.values()):
            yield sub
        yield from with_an_option(sub)


def test_every_settings_class_of_the_command_line_has_one() -> None:
    found = {kind for kind in with_an_option(Settings) if kind.__module__.startswith("caplet.")}
    tried = {base for kind, *_ in BAD for base in kind.__mro__}
    assert {kind.__name__ for kind in found - tried} <= {"QatSettings"}
