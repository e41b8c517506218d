"""Optimizers of the trainings: AdamW as in the paper, or Muon for the transformer's matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from stages.train.method import LoopConfig


class Joined(torch.optim.Optimizer):
    """Several optimizers that step as one.

    Parameter groups and state are shared: setting a group's learning rate or a weight's momentum here sets it in the
    optimizer that it belongs to. whole_tensors: the optimizers need unsharded weights, so ZeRO 1 and above cannot be
    used.
    """

    whole_tensors = True

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "no part here evaluates a loss again"
        for part in self.parts:
            part.step()


def make_optimizer(
    module: nn.Module, cfg: LoopConfig, lr: float | None = None, head: str = ""
) -> torch.optim.Optimizer:
    """Returns the optimizer cfg.optimizer of the trainable parameters.

    Its groups are named "body" and, for parameters whose names start with `head`, "head". "muon": orthogonalised
    momentum (Jordan et al. 2024) for the two-dimensional weights inside the layers, scaled to AdamW's update size (Liu
    et al. 2025), so that one learning rate serves both; embeddings, head, norms and biases keep AdamW.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    rate = cfg.lr if lr is None else lr
    matrices = [p for n, p in named if n.startswith("blocks.") and p.ndim == 2] if cfg.optimizer == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [(n, p) for n, p in named if id(p) not in taken]
    groups = [
        {"name": "body", "params": [p for n, p in rest if not (head and n.startswith(head))]},
        {"name": "head", "params": [p for n, p in rest if head and n.startswith(head)]},
    ]
    decay = cfg.weight_decay
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=cfg.betas, weight_decay=decay)
    if not matrices:
        return adamw
    whole: list[dict[str, Any]] = [{"name": "body", "params": matrices}]
    return Joined([torch.optim.Muon(whole, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"), adamw])
