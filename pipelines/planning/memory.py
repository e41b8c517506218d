"""Where a rank keeps what a stage asks for: ZeRO stage, offload, and the engine's own buffers.

Bytes a parameter under DeepSpeed in bfloat16 (ZeRO 1 at least): weights 2, gradients 2, float32 master and two moments 12,
average 4. ZeRO 1 shards master, moments and average over the ranks, 2 the gradients, 3 the weights. In float32 (a CPU, or
Muon): weights 4, gradients 4, moments 8 (Muon's matrices 4), and a master of 4 where they are sharded. Frozen models are whole,
but for DMD's teacher (dmd.teacher): offloaded it is on the device while it scores, sharded it is there in pieces, and while it
scores with the weights at work and those gathered ahead. All other moments of a step are without it, or without those.
Sources: Rajbhandari et al. 2020, and DeepSpeed 0.19's runtime/zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from infra.engine import AHEAD, BUCKET

from .loads import Load, sampling_load, stream_load, training, training_load, weights_type

LIVE = 1_000_000_000  # stage3_max_live_parameters: gathered weights that may stay until they are used again


@dataclass(frozen=True)
class Layout:
    """How trainings are laid out over ranks. engine: deepspeed, or torch (unsharded, whatever zero_stage says)."""

    ranks: int
    gpu: bool
    zero_stage: int
    offload: str
    ema: str
    engine: str = "deepspeed"

    def stage(self, whole_tensors: bool, half: bool) -> int:
        """The ZeRO stage in force: at least 1 in bfloat16; 0 without DeepSpeed or where the optimizer needs whole weights."""
        if whole_tensors or self.engine == "torch":
            return 0
        return max(self.zero_stage, int(half))


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device, and `host` in CPU memory. activations: what a micro-step needs besides all the others,
    the weights of DMD's teacher that come for its score only among them.
    buffers: the engine's, during the backward pass. update: the optimizer's, after it. observe: what looking at the held-out
    clips needs; neither comes on top of activations. peak: the largest sum."""

    name: str
    weights: float
    gradients: float
    optimizer: float
    ema: float
    vae: float
    inputs: float
    cache: float
    activations: float
    buffers: float
    update: float
    observe: float
    host: float

    @property
    def fixed(self) -> float:
        return self.weights + self.optimizer + self.ema + self.vae + self.inputs

    @property
    def moments(self) -> dict[str, float]:
        """Bytes on the device at the worst moment of each kind."""
        return {
            "training": self.fixed + self.gradients + self.cache + self.activations + self.buffers,
            "the optimizer's update": self.fixed + self.gradients + self.update,
            "looking at held-out clips": self.fixed - self.inputs + self.observe + self.buffers,
        }

    @property
    def peak(self) -> float:
        return max(self.moments.values())


def layout(cfg: Any, ranks: int, gpu: bool) -> Layout:
    c = cfg.compute
    return Layout(ranks, gpu, c.zero_stage, c.offload, c.ema, c.engine)


def training_memory(cfg: Any, name: str, where: Layout) -> Memory:
    """Memory of a rank in one training."""
    own = training(cfg, name)
    whole = own.optimizer == "muon"
    stage = where.stage(whole, weights_type(own, where.gpu) == torch.bfloat16)
    piled = own.micro_steps(where.ranks) == 1 and stage < 2
    return place(training_load(cfg, name, where.gpu, keep=piled), where, piled)


def inference_memory(cfg: Any, where: Layout) -> list[Memory]:
    """Of the teacher that makes trajectories, and of a streaming student. One GPU holds all of either."""
    return [place(sampling_load(cfg, where.gpu), where), place(stream_load(cfg, where.gpu), where)]


def place(load: Load, where: Layout, piled: bool = False) -> Memory:
    """piled: load.train counts the gradients of the model whose turn it is, which are all there are at once."""
    n, models = load.parameters, len(load.averages)
    stage, half = where.stage(bool(load.muon), load.half), load.half
    over = {s: 1.0 / where.ranks if stage >= s else 1.0 for s in (1, 2, 3)}
    each = 2 if half else 4
    weights = float(each) * n * models * over[3]
    frozen, guest, host = _frozen(load, where)
    train = max(load.train, load.taught + guest) if guest else load.train
    gradients = each * n * (min(models, 1) if piled else models) * over[2]
    moments = 8 * n - 4 * load.muon + (4 * n if stage else 0)
    optimizer = moments * models * over[1]
    ema = 4.0 * n * sum(load.averages) * over[1]
    step = _update(load, where, stage)
    away = dict.fromkeys(("optimizer", "weights", "ema"), 0.0)
    if models and where.offload != "none" and stage:
        away["optimizer"] = optimizer + 4 * n * models * over[1]  # and the float32 gradients that the CPU updates from
        optimizer = step = 0.0
        if where.offload == "all":
            away["weights"], weights = weights, 0.0
    if where.ema == "cpu":
        away["ema"], ema = ema, 0.0
    cache = min(load.cache, load.train)
    activations = train - cache - (gradients if piled else 0)
    return Memory(
        name=load.name,
        weights=weights + frozen,
        gradients=gradients,
        optimizer=optimizer,
        ema=ema,
        vae=load.vae,
        inputs=load.inputs,
        cache=cache,
        activations=max(activations, 0.0),
        buffers=_buffers(load, stage),
        update=step,
        observe=load.observe,
        host=host + sum(away.values()),
    )


def _frozen(load: Load, where: Layout) -> tuple[float, float, float]:
    """Bytes of the frozen models: on the device all the time; there as guests while DMD's teacher scores; in CPU memory."""
    each = 2.0 if where.gpu else 4.0
    whole = each * load.parameters * load.frozen
    if load.place == "shard" and where.ranks > 1:
        return whole / where.ranks, min(whole, each * (AHEAD + 2 * load.largest)), 0.0
    if load.place == "offload" and where.gpu:
        return 0.0, whole, whole
    return whole, 0.0, 0.0


def _buffers(load: Load, stage: int) -> float:
    """DeepSpeed's during a backward pass: the bucket in which gradients are reduced, and under ZeRO 3 gathered weights."""
    if not load.averages or not stage:
        return 0.0
    each = 2.0 if load.half else 4.0
    return each * (min(BUCKET, load.parameters) + (min(LIVE, load.parameters) if stage == 3 else 0))


def _update(load: Load, where: Layout, stage: int) -> float:
    """The optimizer's step: float32 gradients of the shard and AdamW's square roots, which on a GPU it makes for all weights at
    once. Without ZeRO DeepSpeed copies all gradients into one tensor to reduce them, also where there is one rank."""
    if not load.averages:
        return 0.0
    if stage:
        return 8.0 * load.parameters / where.ranks
    at_once = 4.0 * load.parameters if where.gpu else 0.0
    return max(at_once, 4.0 * min(BUCKET, load.parameters) if where.engine == "deepspeed" else 0.0)
