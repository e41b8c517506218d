"""The weights of a finished training before averaging, from its saves: what is published is their average."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from stages.train.state import SavedTensors, saves

KEPT = ("weight", "fixed")  # of a save's names KIND/TENSOR: what is trained, and all other tensors of the module


def raw_weights(workdir: Path, module: str) -> tuple[int, dict[str, Tensor]]:
    """(step, weights by name) of the newest save, as they were trained, in float32.

    Raises ValueError where there is no save, or where it does not hold the module whole.
    """
    found = saves(workdir)
    if not found:
        raise ValueError(f"no saved training states in {workdir}")
    try:
        saved = SavedTensors(found[-1], f"{module}.state")
        step = int(json.loads((found[-1] / "save.json").read_text())["step"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{found[-1]} does not hold {module} whole ({error})") from error
    parts = (name.partition("/") for name in saved)
    return step, {tensor: saved[f"{kind}/{tensor}"] for kind, _, tensor in parts if kind in KEPT}
