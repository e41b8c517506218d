"""Exponential moving average of a module's parameters, kept in float32 whatever the module trains in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """shadow = d * shadow + (1 - d) * parameter, with d = min(decay, (1 + n) / (10 + n)) at update n.

    The warm-up of d lets short trainings forget their start; `decay` in [0, 1), 0 follows the parameters exactly.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema: decay {decay} is not in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.shadow: dict[str, Tensor] = {n: p.detach().float().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """One update from the module's present parameters."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        for name, parameter in module.named_parameters():
            self.shadow[name].lerp_(parameter.detach().float(), 1.0 - decay)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrites the module's parameters by the average, in the module's own dtype."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.shadow[name])

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module carries the average inside the block and its own parameters again after it."""
        own = {n: p.detach().clone() for n, p in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(own[name])

    def load(self, shadow: Mapping[str, Tensor], updates: int) -> None:
        """Takes up a saved average. Raises ValueError if it belongs to another module."""
        if shadow.keys() != self.shadow.keys():
            odd = sorted(shadow.keys() ^ self.shadow.keys())[:3]
            raise ValueError(f"ema: saved names differ from the module's ({odd}...): delete the saves and start again")
        for name, value in shadow.items():
            self.shadow[name].copy_(value)
        self.updates = updates
