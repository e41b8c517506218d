"""Losses of four steps of each training method, fixed seed and tiny model. Run this file to write them again:

python -m tests.golden.train_losses
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import torch

from tests.fakes import FakeContext
from tests.unit.stages.train.methods import METHODS, small

FILE = Path(__file__).with_suffix(".json")
GOLDEN = ("teacher", "adapt", "dmd")


def measured() -> dict[str, dict[str, list[float]]]:
    """method -> series -> values of each step, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in GOLDEN:
            ctx = FakeContext(Path(folder) / name)
            METHODS[name](ctx, small(), validate_steps=100)
            series = sorted({k for _, m in ctx.emitted for k in m if k.startswith(("loss/", "heldout/"))})
            out[name] = {k: ctx.series(k) for k in series}
    torch.set_num_threads(threads)
    return out


if __name__ == "__main__":
    sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    FILE.write_text(json.dumps({"made_after_commit": sha.stdout.strip(), "values": measured()}, indent=1) + "\n")
