"""What each stage asks of one rank: models held, bytes of its largest moments, FLOPs of a step.

Legend: b batch, z latent channels, t latent frames, h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from msmodel.config import ModelConfig
from stages.train.adapt import AdaptConfig
from stages.train.dmd import DmdConfig
from stages.train.method import LoopConfig
from stages.train.sampling import Guidance
from stages.train.teacher import TeacherConfig

from .pieces import How, Pieces, cost, decoded, parameters, vae_on_meta, weights_bytes
from .trace import Cost

TRAININGS = ("teacher", "adapt", "dmd")
ROWS = {"teacher": 3, "adapt": 2, "dmd": 2}  # videos of each clip in the contact sheets


@dataclass(frozen=True)
class Load:
    """averages: one entry a trained model, whether an average of it is kept. frozen: models that only run. muon: parameters
    that Muon trains, of one model. half: weights in bfloat16. vae, inputs: bytes of the frozen VAE and of the held-out inputs,
    there all the time. train: bytes of tensors at the worst moment of a micro-step; observe: at that of a look at the held-out
    clips. cache: bytes of keys and values in it. flops: of a rank's micro-step, mean over the training.
    """

    name: str
    parameters: int
    averages: tuple[bool, ...]
    frozen: int
    muon: int
    half: bool
    vae: float
    inputs: float
    train: float
    observe: float
    cache: float
    flops: float


def training_load(cfg: Any, name: str, gpu: bool, keep: bool) -> Load:
    """cfg: pipelines.config.Config. name: of TRAININGS. keep: whether whole gradients pile up in the backward pass (How)."""
    model, own = cfg.model, {"teacher": cfg.teacher, "adapt": cfg.adapt, "dmd": cfg.dmd}[name]
    count, matrices = parameters(model)
    muon = matrices if own.optimizer == "muon" else 0
    half = gpu and not muon
    dtype = torch.bfloat16 if half else torch.float32
    how = How(own.batch, dtype, own.checkpoint_layers, keep)
    if name == "teacher":
        step, observe, latents, clips = _teacher(model, own, how)
    elif name == "adapt":
        step, observe, latents, clips = _adapt(model, own, how)
    else:
        step, observe, latents, clips = _dmd(model, own, how, cfg.guidance)
    if own.picture_clips:
        observe = max(observe, decoded(model, own.picture_clips, ROWS[name]).peak)
    return Load(
        name=name,
        parameters=count,
        averages=(True, False) if name == "dmd" else (True,),
        frozen=int(name == "dmd"),
        muon=muon,
        half=half,
        vae=weights_bytes(vae_on_meta(model.vae)),
        inputs=clips * input_bytes(model, latents),
        train=step.peak,
        observe=observe,
        cache=0.0 if name == "teacher" else cache_bytes(model, own.batch, dtype),
        flops=step.flops,
    )


Asked = tuple[
    Cost, float, int, int
]  # a micro-step, bytes of a look, latents kept beside each held-out clip, held-out clips


def _teacher(model: ModelConfig, cfg: TeacherConfig, how: How) -> Asked:
    clip = cost(model, how, Pieces.flow_step)
    plain = clip.flops
    if cfg.context_share:
        piece = min(model.latent_frames, int(model.image_alone) + cached_frames(model) + model.student.chunk)
        plain += cfg.context_share * (cost(model, how, Pieces.flow_step, piece).flops - plain)
    many = replace(how, batch=cfg.batch * cfg.groups_per_clip)
    few, most = (cost(model, many, Pieces.flow_step, 1 + later).flops for later in (1, cfg.group_later))
    grouped = cfg.group_steps / max(cfg.total_steps, 1)
    flops = (1 - grouped) * plain + grouped * (few + most) / 2
    probe = cost(model, replace(how, batch=cfg.probe_clips), Pieces.probed)
    return Cost(flops, clip.peak), probe.peak, 2, cfg.probe_clips


def _adapt(model: ModelConfig, cfg: AdaptConfig, how: How) -> Asked:
    own = model.student
    ends = [replace(own, sink=cfg.sinks[i], window=cfg.windows[i]) for i in range(2)]
    usual, narrow, wide = (cost(model, how, Pieces.adapt_step, context) for context in (own, *ends))
    drawn = (narrow.flops + wide.flops) / 2  # uniform between both
    flops = cfg.own_share * usual.flops + (1 - cfg.own_share) * drawn
    watched = replace(how, batch=cfg.heldout_pairs)
    return (
        Cost(flops, max(usual.peak, wide.peak)),
        cost(model, watched, Pieces.adapt_step, own, False).peak,
        own.steps + 1,
        cfg.heldout_pairs,
    )


def _dmd(model: ModelConfig, cfg: DmdConfig, how: How, w: Guidance) -> Asked:
    exits = (0, model.student.steps - 1)  # drawn uniformly; each step adds the same
    generator = [cost(model, how, Pieces.generator_step, e, w.text, w.track) for e in exits]
    critic = [cost(model, how, Pieces.critic_step, e) for e in exits]
    flops = sum(c.flops for c in critic) / 2 + sum(g.flops for g in generator) / 2 / cfg.ratio
    watched = cost(model, replace(how, batch=cfg.heldout_clips), Pieces.rolled)
    return Cost(flops, max(c.peak for c in (*generator, *critic))), watched.peak, 2, cfg.heldout_clips


def ode_load(cfg: Any, gpu: bool) -> Load:
    """flops: of one batch of trajectories."""
    model, own, w = cfg.model, cfg.ode, cfg.guidance
    how = How(own.batch, torch.bfloat16 if gpu else torch.float32)
    found = cost(model, how, Pieces.guided, w.text, w.track)
    states = 4.0 * own.batch * (model.student.steps + 1) * latent_values(model)
    return Load(
        "ode_pairs",
        parameters(model)[0],
        (),
        1,
        0,
        gpu,
        0.0,
        states,
        found.peak,
        0.0,
        0.0,
        found.flops * own.solver_steps,
    )


def stream_load(cfg: Any, gpu: bool) -> Load:
    """The student at work on one stream, with the whole VAE. flops: of one chunk, decoding left out."""
    model, dtype = cfg.model, torch.bfloat16 if gpu else torch.float32
    steady = model.student.sink + model.student.window + 1
    before, after = (cost(model, How(1, dtype), Pieces.streamed, n) for n in (steady, steady + 1))
    cache = cache_bytes(model, 1, dtype)
    decoding = decoded(model, 1, 1, model.student.chunk + int(model.image_alone)).peak
    vae = weights_bytes(vae_on_meta(model.vae))
    peak, flops = max(after.peak, cache + decoding), after.flops - before.flops
    return Load("streaming", parameters(model)[0], (), 1, 0, gpu, vae, 0.0, peak, 0.0, cache, flops)


def cached_frames(model: ModelConfig) -> int:
    """Latent frames whose keys and values a full cache holds."""
    return model.student.chunk * (model.student.sink + model.student.window) + int(model.image_alone)


def cache_bytes(model: ModelConfig, batch: int, dtype: torch.dtype) -> float:
    """Keys and values of a full cache."""
    tokens = cached_frames(model) * model.tokens_per_frame
    return 2.0 * batch * model.dit.layers * model.dit.dim * tokens * dtype.itemsize


def latent_values(model: ModelConfig) -> int:
    """Numbers in the latents of one clip."""
    return model.vae.z_channels * model.latent_frames * model.latent_height * model.latent_width


def input_bytes(model: ModelConfig, latents: int) -> float:
    """One clip as a model is given it, float32, with `latents` tensors of latents beside."""
    image = model.mask_channels + model.image_channels or model.vae.z_channels
    channels = latents * model.vae.z_channels + image + model.track_feature_channels
    cells = model.latent_frames * model.latent_height * model.latent_width
    return 4.0 * (channels * cells + model.text.length * model.text.dim)


def training(cfg: Any, name: str) -> LoopConfig:
    return {"teacher": cfg.teacher, "adapt": cfg.adapt, "dmd": cfg.dmd}[name]
