"""A training to kill while it writes its second save: python -m tests.unit.stages.train.slow_saves FOLDER."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.train import state
from tests.fakes import FakeContext
from tests.unit.stages.train.methods import METHODS, small


def slow(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a file of the second save in half, and then never ends."""
    save_file(dict(tensors), path)
    if "00000004" in path.parent.name:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        (path.parents[2] / "half-written").touch()
        time.sleep(3600)


if __name__ == "__main__":
    torch.set_num_threads(1)
    state.save_file = slow
    METHODS["base"](FakeContext(Path(sys.argv[1])), small(), save_steps=2)
