"""Refuses a command before its first stage starts, where the GPUs of this machine do not hold one of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.commands.plan.loads import TRAININGS
from pipelines.commands.plan.memory import inference_memory, layout, training_memory
from pipelines.commands.plan.tables import misfits, remedy
from pipelines.distill import unused_stages

STAGES = {  # of each target, those that are planned; a target makes its missing inputs first
    "data": ("encode",),
    "teacher": ("encode", "teacher"),
    "distill": ("encode", "teacher", "ode_pairs", "adapt", "dmd", "tiny_vae"),
}
STAGES["eval"] = STAGES["sweep"] = (*STAGES["distill"], "eval_generate", "streaming")


def gpu_bytes() -> float:
    """Returns the memory of this machine's smallest GPU, 0 where there is none."""
    if not torch.cuda.is_available():
        return 0.0
    return float(min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())))


def refusal(cfg: Any, targets: Sequence[str]) -> str:
    """Returns why the targets cannot be made on this machine's GPUs, with the nearest settings that fit; "" where they
    can, where there is no GPU, and with plan.enforce=false."""
    names = {stage for target in targets for stage in STAGES.get(target, ())} - unused_stages(cfg.distill.method)
    limit, ranks = gpu_bytes() * (1 - cfg.plan.spare), max(cfg.compute.workers, 1)
    if not cfg.plan.enforce or not limit or not names:
        return ""
    where = layout(cfg, ranks, gpu=True)
    memories = [training_memory(cfg, name, where) for name in TRAININGS if name in names]
    lines = misfits([*memories, *(m for m in inference_memory(cfg, where) if m.name in names)], limit)
    if not lines:
        return ""
    fix = remedy(cfg, ranks, limit)
    return "\n  ".join(
        [f"{len(lines)} of the stages do not fit:", *lines, fix, "plan.enforce=false starts all the same"]
    )
