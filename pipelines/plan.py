"""make plan: what would run, what is cached, and an estimate of size, memory and work. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.progress import duration
from msmodel.causal import CausalDiT
from msmodel.dit import WanDiT
from msmodel.tensor_files import EMBEDDED, HUB_ID
from stages.spec import Stage
from stages.train.publish import RANDOM

from .config import Config
from .wiring import Line, NotMade, Run

CPU_FLOPS, GPU_FLOPS = 60e9, 250e12  # sustained in training: one core with AVX2, fp32; one H100, bf16


@dataclass(frozen=True)
class Estimate:
    """parameters: of the DiT. flops_*: of one training step or one clip. bytes_*: weights, gradients and moments."""

    parameters: int
    tokens: int
    flops: dict[str, float]
    memory: dict[str, float]
    cache_bytes: int


def dry_run(run: Run, targets: Mapping[str, Any], stages: Mapping[str, tuple[Stage, ...]]) -> list[Line]:
    """The table's lines: found steps, the first step that would run of each target, and those that follow it."""
    lines: list[Line] = []
    for make in targets.values():
        try:
            make(run)
        except NotMade as missing:
            lines.append(missing.line)
    waiting: dict[tuple[str, str], Line] = {(line.target, line.stage): line for line in lines}
    done = {(line.target, line.stage) for line in run.lines}
    for target, names in stages.items():
        for stage in names:
            place = (target, stage.name)
            if place not in done and place not in waiting:
                note = "after the step above it"
                waiting[place] = Line(target, stage.name, "would run", 0.0, run.store.root / stage.name, note)
    order = [(target, stage.name) for target, names in stages.items() for stage in names]
    places = {place: number for number, place in enumerate(order)}  # a step of another target's stands where it was met
    return sorted([*run.lines, *waiting.values()], key=lambda line: places.get((line.target, line.stage), -1))


def estimate(cfg: Config) -> Estimate:
    """From the shapes alone: the models are built without memory. FLOPs: 2 a weight and token, plus attention; training
    takes three forward passes."""
    model = cfg.model
    with torch.device("meta"):
        teacher, student = WanDiT(model), CausalDiT(model)
    count = sum(p.numel() for p in teacher.parameters())
    forward = _forward(cfg, count, model.tokens)
    later = (1 + cfg.teacher.group_later) / 2  # on average
    groups = _forward(cfg, count, (1 + later) * model.tokens_per_frame) * cfg.teacher.groups_per_clip
    rollout = cfg.student.steps + 1  # denoising steps and the pass that writes the cache
    whole = cfg.teacher.total_steps - cfg.teacher.group_steps
    flops = {
        "teacher": 3
        * (forward * whole + groups * cfg.teacher.group_steps)
        * cfg.teacher.batch
        * cfg.teacher.accumulate,
        "ode_pairs": 3 * forward * cfg.ode.solver_steps * (cfg.ode.pairs + cfg.ode.heldout_pairs),
        "adapt": 3 * forward * cfg.adapt.batch * cfg.adapt.accumulate * cfg.adapt.total_steps,
        "dmd": (rollout + 3 + 6 / cfg.dmd.ratio) * forward * cfg.dmd.batch * cfg.dmd.accumulate * cfg.dmd.total_steps,
    }
    held = sum(p.numel() for p in student.parameters())
    each = bytes_per_parameter(cfg)
    frozen = 2 if _gpus(cfg) else 4
    memory = {"teacher": each * count, "adapt": each * held, "dmd": each * (count + held) + frozen * count}
    slots = cfg.student.sink + cfg.student.window
    cached = 2 * model.dit.layers * model.dit.dim * model.tokens_per_frame * cfg.student.chunk * slots * 4
    return Estimate(count, model.tokens, flops, memory, cached)


def bytes_per_parameter(cfg: Config) -> float:
    """Weights, gradients and AdamW's moments in one process. CPU: fp32, 16 bytes. GPU: bf16 weights and gradients, fp32
    master and moments; ZeRO 1 shards the latter over the workers, ZeRO 2 the gradients too."""
    if not _gpus(cfg):
        return 16.0
    workers = max(cfg.compute.workers, 1)
    return 2.0 + 14.0 / workers if cfg.compute.zero_stage == 2 else 4.0 + 12.0 / workers


def describe(cfg: Config, found: Estimate) -> list[str]:
    """The estimate for people. Activations come on top of the memory stated."""
    model, gpus = cfg.model, _gpus(cfg)
    speed = GPU_FLOPS * gpus if gpus else CPU_FLOPS * (cfg.compute.threads or 2)
    where = f"{gpus} GPU{'s' if gpus > 1 else ''} like an H100" if gpus else f"{cfg.compute.threads or 2} CPU threads"
    return [
        f"clip {cfg.clip.width}x{cfg.clip.height}, {cfg.clip.frames} frames at {cfg.clip.fps:g} fps = {model.latent_frames} "
        f"latent frames, {model.tokens_per_frame} tokens a frame, {found.tokens} a clip, {model.chunks} chunks",
        f"DiT {found.parameters / 1e6:.1f} M parameters, {model.in_channels} input channels; "
        f"student c{cfg.student.chunk}s{cfg.student.sink}w{cfg.student.window}, cache {found.cache_bytes / 1e6:.1f} MB a clip",
        "weights, gradients and moments in one process (activations come on top): "
        + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in found.memory.items()),
        f"rough time on {where} at {speed / 1e9:,.0f} GFLOP/s: "
        + ", ".join(f"{name} {duration(flops / speed)}" for name, flops in found.flops.items()),
    ]


def hints(cfg: Config) -> list[str]:
    """What a dry run can see will stop a target later."""
    init = cfg.teacher.init
    if init == RANDOM or init.startswith(EMBEDDED) or Path(init).expanduser().exists():
        return []
    if HUB_ID.fullmatch(init):
        return [
            f"note: teacher.init={init} is no folder or file here: `make teacher` fetches it from Hugging Face's hub, or takes "
            f'it from the cache. Without a network name a folder, as in ARGS="teacher.init=/path/to/transformer"'
        ]
    return [f"note: teacher.init={init} does not exist, and is no hub id: `make teacher` would stop at it"]


def _gpus(cfg: Config) -> int:
    """GPUs that the trainings would use: a preset for many workers is meant for GPUs, wherever it is planned."""
    here = torch.cuda.device_count()
    return cfg.compute.workers or min(here, 1) if here or cfg.compute.workers > 1 else 0


def _forward(cfg: Config, parameters: int, tokens: float) -> float:
    """FLOPs of one forward pass over one clip of so many tokens."""
    return 2.0 * parameters * tokens + 4.0 * cfg.dit.layers * cfg.dit.dim * tokens**2
