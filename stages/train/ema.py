"""Exponential moving average of trained weights, kept in float32 whatever the precision of the module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """Exponential moving average: shadow = d * shadow + (1 - d) * weight.

    At update n, d = min(decay, (1 + n) / (10 + n)), a warm-up that lets short trainings forget their initial weights.
    master_weights: the float32 weights by name, or this rank's shards of them (stages.contracts.Engine.master_weights);
    the average is sharded in the same way. decay: in [0, 1), else ValueError; 0 follows the weights exactly.
    """

    def __init__(self, master_weights: Mapping[str, Tensor], decay: float, device: torch.device) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema: decay {decay} is not in [0, 1)")
        self.decay, self.device = decay, device
        self.updates = 0
        self.shadow = {n: w.detach().to(device, torch.float32, copy=True) for n, w in master_weights.items()}

    @torch.no_grad()
    def update(self, master_weights: Mapping[str, Tensor]) -> None:
        """Updates the average with the current weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        for name, weight in master_weights.items():
            self.shadow[name].lerp_(weight.detach().to(self.device, torch.float32), 1.0 - decay)
        self.updates += 1
