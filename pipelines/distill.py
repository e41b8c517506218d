"""make distill: the teacher becomes a causal few-step student, and a small decoder keeps up with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.data import data
from pipelines.run import (
    Run,
    without_student,
)
from pipelines.stamps import weights_stamp
from pipelines.teacher import teacher
from stages.data.shards import require_shards
from stages.records import Checkpoint
from stages.train.adapt import ADAPT, AdaptInputs, AdaptRun
from stages.train.dmd import DMD, DmdInputs, DmdRun
from stages.train.ode_pairs import ODE_PAIRS, OdeInputs, OdeRun
from stages.train.tiny_vae import TINY_VAE, TinyVAEInputs, TinyVAERun

STAGES = (ODE_PAIRS, ADAPT, DMD, TINY_VAE)


@dataclass(frozen=True)
class Distilled:
    """adapted: the student before distribution matching, to compare with."""

    adapted: Checkpoint
    student: Checkpoint
    tiny_vae: Checkpoint


def distill(run: Run) -> Distilled:
    """Teacher -> its trajectories -> causal adaptation -> distribution matching; latents -> small decoder."""
    shards, taught = data(run), teacher(run)
    with run.making("distill"):
        cfg = run.cfg
        train = shards.clips(cfg.data.distill_clips)
        for stage, read in ((DMD, train), (TINY_VAE, shards.train)):
            require_shards(read, cfg.ranks(stage), cfg.loader.workers)
        ode = OdeRun(without_student(cfg, "chunk", "steps"), cfg.ode, cfg.guidance)
        ode_inputs = OdeInputs(train, shards.heldout, taught)
        pairs = run.step(ODE_PAIRS, ode, replace(ode_inputs, loader=cfg.loader), key_inputs=ode_inputs)
        adapted = run.step(ADAPT, AdaptRun(cfg.model, cfg.adapt), AdaptInputs(taught, pairs))
        dmd = DmdRun(cfg.model, cfg.dmd, cfg.guidance)
        dmd_inputs = DmdInputs(train, shards.heldout, taught, adapted)
        student = run.step(DMD, dmd, replace(dmd_inputs, loader=cfg.loader), key_inputs=dmd_inputs)
        tiny = TinyVAERun(without_student(cfg), cfg.tiny_vae)
        inputs = TinyVAEInputs(shards.train, shards.heldout)
        start = weights_stamp(cfg.tiny_vae.init, "tiny_vae")
        with_loader = replace(inputs, loader=cfg.loader)
        tiny_vae = run.step(cfg.sized(TINY_VAE), tiny, with_loader, key_inputs=(inputs, start))
        return Distilled(adapted, student, tiny_vae)
