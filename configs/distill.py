"""Settings of `make distill` that apply to no single training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DistillConfig:
    """Settings of the distillation of the adapted student.

    method: name of a distillation stage, which is also the name of its group of settings (pipelines/distill.py).
    """

    method: str = "dmd"
