"""Reads weights from the saves of a training: those before averaging, which are not published, and their average."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from stages.train.state import SavedTensors, saves

KEPT = ("weight", "fixed")  # kinds in a save's names KIND/TENSOR: trained weights, and all other tensors of the module


def raw_weights(workdir: Path) -> tuple[int, dict[str, Tensor]]:
    """Returns (step, weights by name) of the newest save: the published module's weights in float32 before averaging.

    Raises ValueError if there is no save, or if it does not hold all of that module.
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


def averaged_weights(save: Path) -> dict[str, Tensor]:
    """Returns the weights of the published module as a save holds them: float32 averages, and what is not trained."""
    module = published_module(save)
    fixed = {name: t for name, t in SavedTensors(save, f"{module}.state").items() if name.startswith("fixed/")}
    return {name.partition("/")[2]: t for name, t in fixed.items()} | dict(SavedTensors(save, f"{module}.ema"))


def published_module(save: Path) -> str:
    """Returns the name of the module that the training of a save publishes: the one whose average it keeps.

    Raises ValueError if there is not exactly one.
    """
    names = sorted({path.name.partition(".ema-")[0] for path in save.glob("*.ema-*.safetensors")})
    if len(names) != 1:
        raise ValueError(f"{save} holds averages of {', '.join(names) or 'no module'}; expected exactly one module")
    return names[0]
