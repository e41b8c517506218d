"""Where a rank keeps what a stage asks for: ZeRO stage, offload, and the engine's own buffers.

Bytes a parameter under DeepSpeed in bfloat16 (ZeRO 1 at least): weights 2, gradients 2, float32 master and two moments 12,
average 4. ZeRO 1 shards master, moments and average over the ranks, 2 the gradients, 3 the weights. In float32 (a CPU, or
Muon): weights 4, gradients 4, moments 8 (Muon's matrices 4), and a master of 4 where they are sharded. Frozen models are whole,
but for DMD's teacher (dmd.teacher_placement): offloaded it is on the device while it scores, sharded it is there in pieces, and
while it scores with the weights at work and those gathered ahead. All other moments of a step are without it, or without those.
Models come to the device in float32, whatever they are trained in. Where the optimizer is offloaded, ZeRO 2 and 3 keep their
gradients beside it. Sources: Rajbhandari et al. 2020, and DeepSpeed 0.19's runtime/zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from infra.engine import AHEAD, BUCKET
from pipelines.commands.plan.loads import (
    Load,
    sampling_load,
    stream_load,
    training,
    training_load,
    weights_type,
)

LIVE = 1_000_000_000  # stage3_max_live_parameters: gathered weights that may stay until they are used again
LOADED = 8.0  # bytes of CPU memory a parameter while weights are loaded: the model's, and the file's beside them


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
    """Bytes on one rank's device, and `host`: the most in CPU memory beside it, where the device is a GPU.

    activations: what a micro-step needs besides all the others, the weights of DMD's teacher that come for its score only among
    them. buffers: in which gradients are reduced, during the backward pass, and `staying`, the part of them that is there all
    the time. gathered: ZeRO 3's whole weights, in any pass. update: the optimizer's, after the backward pass. observe: what
    looking at the held-out clips needs. loading: all there is while the models are loaded. saving: copies of the state. whole:
    ZeRO 3's averaged model at the end, which is looked at once more. peak: the largest sum.
    """

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
    gathered: float
    update: float
    observe: float
    staying: float
    loading: float
    saving: float
    whole: float
    host: float

    @property
    def fixed(self) -> float:
        return self.weights + self.optimizer + self.ema + self.vae + self.inputs

    @property
    def moments(self) -> dict[str, float]:
        """Bytes on the device at the worst moment of each kind."""
        working = self.cache + self.activations + self.buffers + self.gathered
        looking = self.fixed - self.inputs + self.observe + self.staying
        return {
            "training": self.fixed + self.gradients + working,
            "the optimizer's update": self.fixed + self.gradients + self.update + self.staying,
            "looking at held-out clips": looking + self.gathered,
            **({"the last look": looking + self.whole} if self.whole else {}),
            "loading the models": self.loading,
            "saving": self.fixed + self.saving + self.staying,
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
    remembered = 8 * n - 4 * load.muon
    optimizer = (remembered + (4 * n if stage else 0)) * models * over[1]
    ema = 4.0 * n * sum(load.averages) * over[1]
    update = _update(load, where, stage)
    away = dict.fromkeys(("optimizer", "weights", "ema"), 0.0)
    if models and where.offload != "none" and stage:
        # with the float32 gradients that the CPU updates from, and a bfloat16 copy of what moves to and fro
        away["optimizer"] = optimizer + (4 + each) * n * models * over[1]
        optimizer = update = 0.0
        if stage > 1:
            gradients = 0.0
        if where.offload == "all":
            away["weights"], weights = weights, 0.0
    if where.ema == "cpu":
        away["ema"], ema = ema, 0.0
    cache = min(load.cache, load.train)
    activations = train - cache - (gradients if piled else 0)
    share = (4 * n + remembered) / where.ranks if models else 0.0  # what a rank writes of one model into a save
    bucket = _bucket(load, where, stage)
    whole = float(each * n * sum(load.averages)) if stage == 3 else 0.0
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
        buffers=bucket * (models if stage == 3 else 1),
        gathered=float(each * min(LIVE, n)) if stage == 3 and models else 0.0,
        update=update,
        observe=load.observe,
        staying=bucket * models if stage == 3 else 0.0,
        loading=4.0 * n * models + (2 if where.gpu else 4) * n * load.frozen + load.vae + load.inputs,
        saving=share if stage and not where.gpu else 0.0,  # whole tensors on the CPU are written from where they are
        whole=whole,
        host=max(host + sum(away.values()) + share, LOADED * n) if models and where.gpu else 0.0,
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


def _bucket(load: Load, where: Layout, stage: int) -> float:
    """In which DeepSpeed reduces gradients. ZeRO 3 keeps one for every model, cut to its size; 1 and 2 make theirs for each
    backward pass, and of a CPU's memory only what is written to counts."""
    if not load.averages or not stage:
        return 0.0
    size = BUCKET if where.gpu and stage < 3 else min(BUCKET, load.parameters)
    return (2.0 if load.half else 4.0) * size


def _update(load: Load, where: Layout, stage: int) -> float:
    """The optimizer's step: float32 gradients of the shard and AdamW's square roots, which on a GPU it makes for all weights at
    once. Without ZeRO DeepSpeed copies all gradients into one tensor to reduce them, also where there is one rank."""
    if not load.averages:
        return 0.0
    if stage:
        return 8.0 * load.parameters / where.ranks
    at_once = 4.0 * load.parameters if where.gpu else 0.0
    return max(at_once, 4.0 * min(BUCKET, load.parameters) if where.engine == "deepspeed" else 0.0)
