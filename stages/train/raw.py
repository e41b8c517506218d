"""The weights of a finished training before averaging, from its saves: what is published is their average."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from stages.train.state import SavedTensors, saves

KEPT = ("weight", "fixed")  # of a save's names KIND/TENSOR: what is trained, and all other tensors of the module


def raw_weights(workdir: Path) -> tuple[int, dict[str, Tensor]]:
    """Returns (step, weights by name) of the newest save, as they were trained, in float32, of the module that is published.

    Raises ValueError where there is no save, or where it does not hold that module whole.
    """
    found = saves(workdir)
    if not found:
        raise ValueError(f"no saved training states in {workdir}")
    module = published_module(found[-1])
    try:
        saved = SavedTensors(found[-1], f"{module}.state")
        step = int(json.loads((found[-1] / "save.json").read_text())["step"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{found[-1]} does not hold {module} whole ({error})") from error
    parts = (name.partition("/") for name in saved)
    return step, {tensor: saved[f"{kind}/{tensor}"] for kind, _, tensor in parts if kind in KEPT}


def published_module(save: Path) -> str:
    """Returns the name of the module that the training of a save publishes: the one whose average it keeps.

    Raises ValueError where there is not exactly one.
    """
    names = sorted({path.name.partition(".ema-")[0] for path in save.glob("*.ema-*.safetensors")})
    if len(names) != 1:
        raise ValueError(f"{save} holds averages of {', '.join(names) or 'no module'}; expected exactly one module")
    return names[0]
