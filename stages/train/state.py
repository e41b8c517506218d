"""Saved training states: written aside, renamed when whole, the last two kept.

SAVES/step-00000100/ holds ema.<learner>.safetensors and, for each rank, rank-00000.pt: engines, loader position, random
state, step. The .pt files are our own plain data and tensors, read with weights_only=True.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stages.spec import Context, Engine, StageError
from stages.train.ema import Ema
from stages.train.method import Learner, Loader

KEEP = 2


@dataclass(frozen=True)
class Training:
    """Everything of a training that changes from step to step, by learner. emas: only where an average is kept."""

    learners: Mapping[str, Learner]
    engines: Mapping[str, Engine]
    emas: Mapping[str, Ema]
    loader: Loader


def saves(workdir: Path) -> list[Path]:
    """Whole saves, oldest first."""
    return sorted(p for p in (workdir / "saves").glob("step-*") if p.is_dir())


def save(training: Training, step: int, ctx: Context) -> Path:
    """Saves the state after `step` steps; every rank calls it. Returns the save's folder."""
    final = ctx.workdir / "saves" / f"step-{step:08d}"
    aside = final.with_name(f".writing-{step:08d}")
    if ctx.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    ctx.barrier()
    torch.save(_rank_state(training, step, ctx), aside / f"rank-{ctx.rank:05d}.pt")
    if ctx.rank == 0:
        for name, ema in training.emas.items():
            shadow = {n: x.cpu().contiguous() for n, x in ema.shadow.items()}
            save_file(shadow, aside / f"ema.{name}.safetensors")
    ctx.barrier()
    if ctx.rank == 0:
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        for old in saves(ctx.workdir)[:-KEEP]:
            shutil.rmtree(old)
    ctx.barrier()
    return final


def resume(training: Training, ctx: Context) -> int:
    """Takes up the newest save in ctx.workdir; returns the number of steps already done (0: a fresh start)."""
    found = saves(ctx.workdir)
    if not found:
        return 0
    folder = found[-1]
    path = folder / f"rank-{ctx.rank:05d}.pt"
    ranks = len(list(folder.glob("rank-*.pt")))
    if ranks != ctx.world_size:
        raise StageError(
            f"{folder} was saved by {ranks} processes and cannot be resumed by {ctx.world_size}: "
            f"resume with {ranks}, or delete {folder.parent} to start this training again"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, engine in training.engines.items():
        engine.load_state_dict(state["engines"][name])
    for name, ema in training.emas.items():
        ema.load(load_file(folder / f"ema.{name}.safetensors"), state["ema_updates"][name])
    training.loader.load_state_dict(state["loader"])
    _restore_random(state["random"])
    ctx.say(f"resumed after step {state['step']} from {folder}")
    return int(state["step"])


def _rank_state(training: Training, step: int, ctx: Context) -> dict[str, Any]:
    return {
        "step": step,
        "engines": {n: e.state_dict() for n, e in training.engines.items()},
        "ema_updates": {n: e.updates for n, e in training.emas.items()},
        "loader": training.loader.state_dict(),
        "random": _random(ctx.device),
    }


def _random(device: torch.device) -> dict[str, torch.Tensor]:
    """Global random state, for whatever draws outside a generator (stages draw from method.Draws)."""
    out = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        out["cuda"] = torch.cuda.get_rng_state(device)
    return out


def _restore_random(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
