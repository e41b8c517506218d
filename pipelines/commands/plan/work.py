"""Computes the work (FLOPs), time and disk space of a preset's stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from configs.plan import GPUS
from msmodel.config import CLIP_TOKENS
from pipelines.commands.plan.loads import (
    TRAININGS,
    cached_frames,
    inference_type,
    latent_values,
    steady_chunks,
    tracks,
    training,
    weights_type,
)
from pipelines.commands.plan.pieces import How, Pieces, cost, drawn, parameters
from stages.train.state import KEEP


@dataclass(frozen=True)
class Work:
    """The work of one stage over all ranks.

    steps: number of steps. clips, tokens, flops: clips, video tokens and FLOPs per step. micro: text "batch x
    micro-steps x ranks".
    """

    name: str
    steps: int
    clips: int
    micro: str
    tokens: float
    flops: float

    @property
    def total(self) -> float:
        return self.steps * self.flops


def works(cfg: Any, ranks: int, gpu: bool) -> list[Work]:
    """Returns the work of the trainings and of the sampling of ODE pairs, in the order in which the stages run."""
    found = {name: _training(cfg, name, ranks, gpu) for name in TRAININGS}
    return [found["teacher"], _sampling(cfg, ranks, gpu), found["adapt"], found["dmd"]]


def _training(cfg: Any, name: str, ranks: int, gpu: bool) -> Work:
    own = training(cfg, name)
    micro = own.micro_steps(ranks)
    clips = own.batch * micro * ranks
    how = How(own.batch, weights_type(own, gpu), own.checkpoint_layers, keep_attention=own.keep_attention)
    encoded = 1 + 1 / cfg.dmd.ratio if name == "dmd" else 1  # how often the tracks of a clip are encoded per step
    flops = clips * (_A_BATCH[name](cfg, how) / own.batch + encoded * drawn(cfg.model, tracks(cfg)).flops)
    return Work(name, own.total_steps, clips, f"{own.batch} x {micro} x {ranks}", clips * cfg.model.tokens, flops)


def _teacher(cfg: Any, how: How) -> float:
    """Returns the FLOPs of a micro-batch of the teacher, averaged over its steps: on whole clips, on parts of clips
    with context, and on frame groups."""
    model, own = cfg.model, cfg.teacher

    def step(frames: int = 0) -> float:
        return cost(model, how, Pieces.flow_step, frames).flops

    mean = step()
    if own.context_share:
        piece = min(model.latent_frames, cached_frames(model) + model.student.chunk)
        mean += own.context_share * (step(piece) - mean)
    if own.group_steps:
        groups = own.groups_per_clip * (step(2) + step(1 + own.group_later)) / 2
        mean += own.group_steps / own.total_steps * (groups - mean)
    return mean


def _adapt(cfg: Any, how: How) -> float:
    """Returns the FLOPs of a micro-batch of the causal adaptation. Steps with the student's own sink and window are
    averaged with steps with sampled ones, which are estimated by the mean of the smallest and the largest."""
    student, own = cfg.model.student, cfg.adapt
    drawn = [replace(student, sink=own.sinks[i], window=own.windows[i]) for i in range(2)]
    usual, least, most = (cost(cfg.model, how, Pieces.adapt_step, s).flops for s in (student, *drawn))
    return own.own_share * usual + (1 - own.own_share) * (least + most) / 2


def _dmd(cfg: Any, how: How) -> float:
    """Returns the FLOPs of a micro-batch of DMD: one step of the critic plus 1 / dmd.ratio of a step of the generator.

    The exit step is sampled uniformly. Every denoising step before it adds the same FLOPs to both: those that it adds
    to a rollout.
    """
    last, w = cfg.student.steps - 1, cfg.guidance
    critic = cost(cfg.model, how, Pieces.critic_step, last).flops
    generator = cost(cfg.model, how, Pieces.generator_step, last, w.text, w.track).flops
    longest, shortest = (cost(cfg.model, replace(how, batch=1), Pieces.rolled, e).flops for e in (last, 0))
    spared = how.batch * (longest - shortest) / 2
    return critic - spared + (generator - spared) / cfg.dmd.ratio


_A_BATCH = {"teacher": _teacher, "adapt": _adapt, "dmd": _dmd}


def _sampling(cfg: Any, ranks: int, gpu: bool) -> Work:
    """Returns the work of the sampling of ODE pairs from the teacher."""
    own, w = cfg.ode, cfg.guidance
    rounds = sum(-(-count // (own.batch * ranks)) for count in (own.pairs, own.heldout_pairs))
    clips = own.batch * ranks
    one = own.solver_steps * cost(cfg.model, How(1, inference_type(gpu)), Pieces.guided, w.text, w.track).flops
    one += drawn(cfg.model, tracks(cfg)).flops
    name = f"{own.batch} x 1 x {ranks}"
    return Work("ode_pairs", rounds, clips, name, clips * cfg.model.tokens, clips * one)


def chunk_flops(cfg: Any, gpu: bool) -> float:
    """Returns the FLOPs of one chunk of a stream with a full cache, without decoding."""
    steady = steady_chunks(cfg.model)
    how = How(1, inference_type(gpu))
    before, after = (cost(cfg.model, how, Pieces.streamed, n).flops for n in (steady - 1, steady))
    of_tracks = [drawn(cfg.model, tracks(cfg), frames).flops for frames in (1, 1 + cfg.student.chunk)]
    return after - before + of_tracks[1] - of_tracks[0]


def speed(cfg: Any, ranks: int, gpu: bool) -> float:
    """Returns the assumed FLOP/s of all ranks together (the settings `plan`)."""
    own = cfg.plan
    if gpu:
        return ranks * own.mfu * GPUS[own.gpu].flops
    return ranks * (cfg.compute.threads or 2) * own.cpu_gflops * 1e9


@dataclass(frozen=True)
class Disk:
    """Disk space in bytes. clip: latents, image, text and tracks of one clip in a shard, without its video. pairs: all
    ODE pairs. saves: the saved states of each training that exist at the same time."""

    clip: float
    pairs: float
    saves: dict[str, float]


def disk(cfg: Any) -> Disk:
    """Returns the disk space, computed from the arrays that the stages write (stages/data/encode.py and track.py,
    stages/train/ode_pairs.py and state.py)."""
    model, points = cfg.model, tracks(cfg)
    ids = 3 if model.dit.track_encoding == "rgb_vae" else model.dit.track_id_dim
    latents, text = 2.0 * latent_values(model), 2.0 * model.text.length * model.text.dim
    image = latents / model.latent_frames if model.image_alone else latents
    text += 2.0 * CLIP_TOKENS * model.dit.clip_dim  # text and image tokens are stored with every clip and pair
    paths = 9.0 * model.clip.frames * points  # bytes: float32 x and y, and one for visibility
    clip = latents + image + text + paths
    pair = (model.student.steps + 1) * latents + image + text + paths + 2.0 * points * ids
    count, _ = parameters(model)
    averages = {"teacher": (1, 1), "adapt": (1, 1), "dmd": (2, 1)}
    # A save holds float32 weights, two moments per trained model, and the average. While one is written, KEEP others exist.
    saves = {n: (KEEP + 1) * 4.0 * count * (3 * trained + ema) for n, (trained, ema) in averages.items()}
    return Disk(clip, (cfg.ode.pairs + cfg.ode.heldout_pairs) * pair, saves)
