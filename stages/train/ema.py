"""Exponential moving average of trained weights, kept in float32 whatever the module trains in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """shadow = d * shadow + (1 - d) * weight, with d = min(decay, (1 + n) / (10 + n)) at update n.

    master_weights: the float32 weights by name, or this rank's shards of them
    (stages.contracts.Engine.master_weights): the average is
    sharded as they are. The warm-up of d lets short trainings forget their start; `decay` in [0, 1), 0 follows the weights
    exactly.
    """

    def __init__(self, master_weights: Mapping[str, Tensor], decay: float, device: torch.device) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema: decay {decay} is not in [0, 1)")
        self.decay, self.device = decay, device
        self.updates = 0
        self.shadow = {n: w.detach().to(device, torch.float32, copy=True) for n, w in master_weights.items()}

    @torch.no_grad()
    def update(self, master_weights: Mapping[str, Tensor]) -> None:
        """One update from the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        for name, weight in master_weights.items():
            self.shadow[name].lerp_(weight.detach().to(self.device, torch.float32), 1.0 - decay)
        self.updates += 1
