"""make distill: distils the teacher into a causal few-step student, and trains a small decoder that is as fast.

The setting `distill.method` chooses how the adapted student is distilled, by its name in METHODS.
stages/train/method.py describes how to add a method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipelines.data import data
from pipelines.run import Run, without_student
from pipelines.stamps import weights_stamp
from pipelines.teacher import teacher
from stages.contracts import Stage
from stages.data.shards import require_shards
from stages.records import Checkpoint, ShardSet
from stages.train.adapt import ADAPT, AdaptInputs, AdaptRun
from stages.train.dmd import DMD, DmdInputs, DmdRun
from stages.train.ode_pairs import ODE_PAIRS, OdeInputs, OdeRun
from stages.train.tiny_vae import TINY_VAE, TinyVAEInputs, TinyVAERun


@dataclass(frozen=True)
class Distilled:
    """Models that `make distill` makes. adapted: the student before distillation, for comparison."""

    adapted: Checkpoint
    student: Checkpoint
    tiny_vae: Checkpoint


@dataclass(frozen=True)
class Start:
    """Inputs of a distillation method: clips, the teacher, and the causal student after adaptation."""

    train: ShardSet
    heldout: ShardSet
    teacher: Checkpoint
    adapted: Checkpoint


@dataclass(frozen=True)
class DistillationMethod:
    """A distillation method: its stage, and the function that runs it and returns the checkpoint "student"."""

    stage: Stage
    train: Callable[[Run, Start], Checkpoint]


def dmd(run: Run, start: Start) -> Checkpoint:
    """Trains the student by distribution matching."""
    cfg = DmdRun(run.cfg.model, run.cfg.dmd, run.cfg.guidance)
    inputs = DmdInputs(start.train, start.heldout, start.teacher, start.adapted)
    return run.step(DMD, cfg, replace(inputs, loader=run.cfg.loader), key_inputs=inputs)


METHODS = {"dmd": DistillationMethod(DMD, dmd)}
STAGES = (ODE_PAIRS, ADAPT, *(method.stage for method in METHODS.values()), TINY_VAE)


def unused_stages(method: str) -> set[str]:
    """Returns the names of the stages of the other distillation methods."""
    return {other.stage.name for name, other in METHODS.items() if name != method}


def distill(run: Run) -> Distilled:
    """Runs the stages from the teacher to the student: its trajectories, causal adaptation, the chosen distillation.

    The small decoder is trained on latents of the training clips.
    """
    shards, teacher_checkpoint = data(run), teacher(run)
    with run.making("distill"):
        cfg = run.cfg
        method, train = METHODS[cfg.distill.method], shards.clips(cfg.data.distill_clips)
        for stage, read in ((method.stage, train), (TINY_VAE, shards.train)):
            require_shards(read, cfg.ranks(stage), cfg.loader.workers)
        ode = OdeRun(without_student(cfg, "chunk", "steps"), cfg.ode, cfg.guidance)
        ode_inputs = OdeInputs(train, shards.heldout, teacher_checkpoint)
        pairs = run.step(ODE_PAIRS, ode, replace(ode_inputs, loader=cfg.loader), key_inputs=ode_inputs)
        adapted = run.step(ADAPT, AdaptRun(cfg.model, cfg.adapt), AdaptInputs(teacher_checkpoint, pairs))
        student = method.train(run, Start(train, shards.heldout, teacher_checkpoint, adapted))
        tiny = TinyVAERun(without_student(cfg), cfg.tiny_vae)
        inputs = TinyVAEInputs(shards.train, shards.heldout)
        start = weights_stamp(cfg.tiny_vae.init, "tiny_vae")
        with_loader = replace(inputs, loader=cfg.loader)
        tiny_vae = run.step(cfg.sized(TINY_VAE), tiny, with_loader, key_inputs=(inputs, start))
        return Distilled(adapted, student, tiny_vae)
