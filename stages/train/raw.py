"""The weights of a finished training before averaging, from its saves: what is published is their average."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stages.train.state import saves


def raw_weights(workdir: Path, learner: str) -> tuple[int, dict[str, Tensor]]:
    """(step, weights by name) of the newest save, as they were trained: what is published is their average.

    Raises ValueError where there is no save, or where no single file of it holds the learner's weights whole.
    """
    found = saves(workdir)
    if not found:
        raise ValueError(f"no saved training states in {workdir}")
    state = torch.load(found[-1] / "rank-00000.pt", map_location="cpu", weights_only=True)
    weights = state["engines"].get(learner, {}).get("module", {})
    if not weights or not all(x.numel() for x in weights.values()):
        raise ValueError(f"{found[-1]} holds the weights of {learner} in parts, not whole")
    return int(state["step"]), dict(weights)
