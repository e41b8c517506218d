"""Checks a configuration: collects each group's own problems(), and inconsistencies between groups."""

from __future__ import annotations

from typing import Any

from configs.tree import Config
from msmodel.image_encoder import folder_problems
from stages.train.adapt import ADAPT
from stages.train.base import BASE
from stages.train.dmd import DMD, DmdRun
from stages.train.method import LoopConfig
from stages.train.ode_pairs import OdeRun
from stages.train.teacher import TEACHER, TeacherRun
from stages.train.tiny_vae import TINY_VAE

DISTILLATIONS = (DMD,)  # the stages that distill.method can name
TRAININGS = (BASE, TEACHER, ADAPT, *DISTILLATIONS, TINY_VAE)  # each reads the group of its name


def problems_of(cfg: Config) -> list[str]:
    """Returns every inconsistency of every group, as 'group.field: what is wrong and how to fix it'."""
    runs = (OdeRun(cfg.model, cfg.ode, cfg.guidance), DmdRun(cfg.model, cfg.dmd, cfg.guidance))
    groups: tuple[Any, ...] = (
        cfg.model,
        cfg.data,
        cfg.loader,
        TeacherRun(cfg.model, cfg.teacher),
        *runs,
        *(group for group in vars(cfg).values() if isinstance(group, LoopConfig)),
        cfg.eval,
        cfg.sweep,
        cfg.bench,
        cfg.tracker_bench,
        cfg.bench_data,
        cfg.export,
        cfg.compute,
        cfg.plan,
        cfg.demo,
    )
    found = [f"seed: {cfg.seed} is below zero"] if cfg.seed < 0 else []
    found += (
        _unshardable(cfg)
        + _indivisible(cfg)
        + _unknown_method(cfg)
        + folder_problems(cfg.image_encoder, cfg.dit.clip_dim)
    )
    for group in groups:
        try:
            found += group.problems()
        except ZeroDivisionError:
            found.append(f"{type(group).__name__}: a size, stride, patch or step count is zero; set it to 1 or more")
    return list(dict.fromkeys(found))


def _unshardable(cfg: Config) -> list[str]:
    """Returns the problems of trainings whose optimizer needs unsharded weights while ZeRO shards them, and of a
    sharded teacher without DeepSpeed."""
    out = []
    if cfg.dmd.teacher_placement == "shard" and cfg.compute.engine != "deepspeed":
        out.append("dmd.teacher_placement: shard needs compute.engine=deepspeed")
    if not cfg.compute.zero_stage:
        return out
    trainings = (c for c in vars(cfg).values() if isinstance(c, LoopConfig) and c.optimizer == "muon")
    return out + [
        f"{c.group}.optimizer: muon needs whole weights, and compute.zero_stage={cfg.compute.zero_stage} shards "
        f"them: set compute.zero_stage=0 or {c.group}.optimizer=adamw"
        for c in trainings
    ]


def _unknown_method(cfg: Config) -> list[str]:
    """Returns the problem of a distillation method that does not exist."""
    known = [stage.name for stage in DISTILLATIONS]
    if cfg.distill.method in known:
        return []
    return [f"distill.method: {cfg.distill.method!r} is not one of {', '.join(known)}"]


def _indivisible(cfg: Config) -> list[str]:
    """Returns the problems of trainings whose global batch is not divisible among the workers."""
    out = []
    for stage in TRAININGS:
        c = vars(cfg)[stage.name]
        if c.batch > 0:
            out += [f"{c.group}.{p}" for p in c.indivisible(cfg.ranks(stage))]
    return out
