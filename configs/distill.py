"""Settings of `make distill` that belong to no single training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DistillConfig:
    """How the adapted student is distilled.

    method: the name of a distillation stage, which is also the name of its group of settings (pipelines/distill.py).
    """

    method: str = "dmd"
