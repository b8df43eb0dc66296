"""``--device``: the same option of every command that trains, prunes or measures."""

from pathlib import Path

import pytest
import torch

from conftest import Caplet

COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("--recipe", "digits"),
    "finetune": ("trained:digits", "--data", "digits"),
    "prune": ("trained:digits", "--data", "digits", "--keep", "0.5"),
    "prune-backbone": ("trained:digits", "--data", "digits", "--macs", "0.5"),
    "quantize": ("trained:digits", "--data", "digits"),
    "compress": ("trained:digits", "--data", "digits"),
    "sensitivity": ("trained:digits", "--data", "digits"),
}


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there(command: str, caplet: Caplet, tmp_path: Path) -> None:
    done = caplet(command, *COMMANDS[command], "--device", "mps", "--out", tmp_path / "run", "--quiet")
    assert "device 'mps' cannot be used: there is none (--device: here is" in done.error()
    assert not (tmp_path / "run").exists()
