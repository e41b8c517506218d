"""Computes the memory of one rank from the demands of a stage: ZeRO stage, offload, and the engine's own buffers.

Bytes per parameter under DeepSpeed in bfloat16 (at least ZeRO 2): weights 2, float32 gradients 4, float32 master weights
and two moments 12, average 4. ZeRO 1 shards master weights, moments and average over the ranks, ZeRO 2 also the gradients,
ZeRO 3 also the weights, but not those of the causal student (ComputeConfig.stage_of). In float32 (on a CPU, or with
Muon): weights 4, gradients 4, moments 8 (4 for the matrices that Muon trains), and master weights 4 where they are
sharded.

Frozen models are not sharded, except DMD's teacher (dmd.teacher_placement). Offloaded, it is on the device only while
it scores. Sharded, every rank holds a shard of it, and while it scores also the gathered weights of the active layer
and the prefetched ones. Other moments of a step do not contain the offloaded teacher or the gathered weights.

Models are moved to the device in float32, whatever type they are trained in. Where the optimizer is offloaded, ZeRO 2
and 3 keep the gradients in CPU memory too. Sources: Rajbhandari et al. 2020 (ZeRO), and runtime/zero of DeepSpeed 0.19.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from infra.engine import AHEAD, BUCKET, LIVE
from pipelines.commands.plan.loads import Load, inference_loads, sampling_load, training, training_load, weights_type

LOADED = 8.0  # bytes of CPU memory per parameter while weights are loaded: those of the model and those of the file


@dataclass(frozen=True)
class Layout:
    """How trainings are distributed over ranks. engine: "deepspeed", or "torch" (unsharded, zero_stage is ignored)."""

    ranks: int
    gpu: bool
    zero_stage: int
    offload: str
    ema: str
    engine: str = "deepspeed"

    def stage(self, whole_tensors: bool, half: bool) -> int:
        """Returns the effective ZeRO stage: at least 2 in bfloat16 (half), and 0 with plain torch or where the
        optimizer needs unsharded weights (whole_tensors)."""
        if whole_tensors or self.engine == "torch":
            return 0
        return max(self.zero_stage, 2 * int(half))


@dataclass(frozen=True)
class Memory:
    """The memory of one rank in one stage, in bytes on its device.

    cache: keys and values. activations: everything else that a micro-step needs, including weights of DMD's teacher
    that are on the device only while it scores. buffers: buffers for the reduction of gradients in the backward pass.
    staying: the part of the buffers that is allocated all the time. gathered: full weights that ZeRO 3 gathers in any
    pass. update: temporary tensors of the optimizer's step, after the backward pass. observe: the validation on
    held-out clips. loading: everything while the models are loaded. saving: the copy of this rank's part of a save,
    where the device is a CPU. whole: the gathered averaged model of ZeRO 3 in the last validation. host: the peak in
    CPU memory, where the device is a GPU. peak: the largest sum of simultaneous parts.
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
        """Returns the bytes that are on the device during the whole training, except gradients."""
        return self.weights + self.optimizer + self.ema + self.vae + self.inputs

    @property
    def moments(self) -> dict[str, float]:
        """Returns {phase: peak bytes on the device}."""
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
    """Returns the layout that the settings `compute` define."""
    c = cfg.compute
    return Layout(ranks, gpu, c.zero_stage, c.offload, c.ema, c.engine)


def training_memory(cfg: Any, name: str, where: Layout) -> Memory:
    """Returns the memory of a rank in one training."""
    own = training(cfg, name)
    where = replace(where, ranks=own.ranks(where.ranks))
    whole = own.optimizer == "muon"
    stage = where.stage(whole, weights_type(own, where.gpu) == torch.bfloat16)
    piled = own.micro_steps(where.ranks) == 1 and stage < 2
    return place(training_load(cfg, name, where.gpu, keep=piled), where, piled)


def inference_memory(cfg: Any, where: Layout) -> list[Memory]:
    """Returns the memory of the stages that only run models, none of which are sharded, and of a streaming student."""
    return [place(load, where) for load in inference_loads(cfg, where.gpu)]


def sampling_memory(cfg: Any, where: Layout) -> Memory:
    """Returns the memory of the teacher that samples trajectories."""
    return place(sampling_load(cfg, where.gpu), where)


def place(load: Load, where: Layout, piled: bool = False) -> Memory:
    """Returns the memory of a rank for the demands of a stage under a layout.

    piled: whether load.train includes the full gradients of the model that is being trained. Only one model has
    gradients at a time.
    """
    n, models = load.parameters, len(load.averages)
    stage, half = where.stage(bool(load.muon), load.half), load.half
    over = {s: 1.0 / where.ranks if stage >= s else 1.0 for s in (1, 2, 3)}
    each = 2 if half else 4
    resident = load.chunkwise if stage == 3 and where.offload != "all" else 0  # trained under ZeRO 2 in place of 3
    sharded = models - resident if stage == 3 else 0
    weights = float(each) * n * (resident + (models - resident) * over[3])
    frozen, guest, host = _frozen(load, where)
    train = max(load.train, load.teacher_score + guest) if guest else load.train
    gradients = 4.0 * n * (min(models, 1) if piled else models) * over[2]
    remembered = 8 * n - 4 * load.muon
    optimizer = (remembered + (4 * n if stage else 0)) * models * over[1]
    ema = 4.0 * n * sum(load.averages) * over[1]
    update = _update(load, where, stage)
    away = dict.fromkeys(("optimizer", "weights", "ema"), 0.0)
    if models and where.offload != "none" and stage:
        # includes the accumulated gradients and those that the CPU's update reads, both float32
        away["optimizer"] = optimizer + 8 * n * models * over[1]
        optimizer = update = 0.0
        if stage > 1:
            gradients = 0.0
        if where.offload == "all":
            away["weights"], weights = weights, 0.0
    if where.ema == "cpu":
        away["ema"], ema = ema, 0.0
    cache = min(load.cache, load.train)
    activations = train - cache - (gradients if piled else 0)
    # bytes that a rank copies for a save: weights, moments and averages
    share = ((4 * n + remembered) * models + 4.0 * n * sum(load.averages)) / where.ranks
    staying = sharded * _bucket(load, 3)[0]
    backward = [_bucket(load, 3)[1]] * bool(sharded) + [sum(_bucket(load, min(stage, 2)))] * (sharded < models)
    whole = float(each * n * sum(load.averages)) if stage == 3 and not resident else 0.0
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
        buffers=staying + max(backward, default=0.0),
        gathered=float(each * min(LIVE, n)) if sharded else 0.0,
        update=update,
        observe=load.observe,
        staying=staying,
        loading=4.0 * n * models + (2 if where.gpu else 4) * n * load.frozen + load.vae + load.inputs,
        saving=0.0 if where.gpu else share,
        whole=whole,
        host=max(host + sum(away.values()) + max(share, 4.0 * n), LOADED * n) if models and where.gpu else 0.0,
    )


def _frozen(load: Load, where: Layout) -> tuple[float, float, float]:
    """Returns the bytes of the frozen models: (on the device all the time, on it only while DMD's teacher scores, in
    CPU memory)."""
    each = 2.0 if where.gpu else 4.0
    whole = each * load.parameters * load.frozen
    if load.place == "shard" and where.ranks > 1:
        return whole / where.ranks, min(whole, each * (AHEAD + 2 * load.largest)), 0.0
    if load.place == "offload" and where.gpu:
        return 0.0, whole, whole
    return whole, 0.0, 0.0


def _bucket(load: Load, stage: int) -> tuple[float, float]:
    """Returns the bytes of the bucket that holds gradients of one model until DeepSpeed reduces them, and those of the
    copies in a reduction.

    ZeRO 3 keeps one bucket of float32 gradients per model, and in a reduction one copy. ZeRO 1 and 2 allocate one of the
    weights' type for each backward pass; from bfloat16 a reduction makes a copy in that type and one in float32.
    """
    if not load.averages or not stage:
        return 0.0, 0.0
    size = min(BUCKET, load.parameters)
    if not load.half:
        return 4.0 * size, 0.0
    return (4.0 * size, 4.0 * size) if stage == 3 else (2.0 * size, 6.0 * size)


def _update(load: Load, where: Layout, stage: int) -> float:
    """Returns the bytes of temporary tensors in the optimizer's step.

    With ZeRO they are the float32 gradients of the shard and AdamW's square roots. Without ZeRO they are the larger of
    two: on a GPU AdamW's square roots, which it computes for all weights at once, and under DeepSpeed one tensor into
    which the gradients are copied for their reduction, even on a single rank.
    """
    if not load.averages:
        return 0.0
    if stage:
        return 8.0 * load.parameters / where.ranks
    at_once = 4.0 * load.parameters if where.gpu else 0.0
    return max(at_once, 4.0 * min(BUCKET, load.parameters) if where.engine == "deepspeed" else 0.0)
