"""Computes the time of every stage, from its FLOPs, its communication and the assumptions of `plan`; and the disk space.

A stage that computes on fewer GPUs, or on CPUs, keeps the others waiting: its hours count on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from configs.plan import GPUS
from msmodel.config import CLIP_TOKENS
from pipelines.commands.plan import steps
from pipelines.commands.plan.communication import Passes, frozen_traffic, training_traffic
from pipelines.commands.plan.loads import (
    case,
    inference_type,
    latent_values,
    losses,
    steady_chunks,
    tracks,
    training,
)
from pipelines.commands.plan.memory import Layout, layout
from pipelines.commands.plan.steps import parameters
from stages import eval as ev
from stages.eval.items import ADAPTED, CLIP_KINDS
from stages.records import Checkpoint
from stages.train.dmd import DmdConfig
from stages.train.sampling import Guidance
from stages.train.state import KEEP
from stages.train.tiny_vae import TinyVAEConfig

CHUNKWISE = ("student", "generator")  # modules that a step calls chunk by chunk
CUT_PASSES, RENDER_PASSES, PACK_PASSES = 3, 3, 1  # frames decoded, resized or encoded for each frame of a clip


@dataclass(frozen=True)
class Row:
    """One stage. amount: what it does, as text. flops: of all of it. computing, talking, waiting: seconds on the GPUs, of
    communication between them, and of the CPUs while they wait."""

    name: str
    amount: str
    flops: float = 0.0
    computing: float = 0.0
    talking: float = 0.0
    waiting: float = 0.0

    @property
    def seconds(self) -> float:
        return self.computing + self.talking + self.waiting


def rows(cfg: Any, ranks: int, gpu: bool) -> list[Row]:
    """Returns every stage of `make data teacher distill eval`, in the order in which they run."""
    where = layout(cfg, ranks, gpu)
    trained = [_training(cfg, name, where) for name in ("teacher", "adapt", "dmd", "tiny_vae")]
    return [*_data(cfg, where), trained[0], _sampling(cfg, where), *trained[1:], *_evaluation(cfg, where)]


def speed(cfg: Any, ranks: int, gpu: bool) -> float:
    """Returns the assumed FLOP/s of all ranks together (the settings `plan`)."""
    own = cfg.plan
    if gpu:
        return ranks * own.mfu * GPUS[own.gpu].flops
    return ranks * (cfg.compute.threads or 2) * own.cpu_gflops * 1e9


def _float32_speed(cfg: Any, ranks: int, gpu: bool) -> float:
    """Returns the assumed FLOP/s of the VAE, which computes in float32."""
    return ranks * cfg.plan.vae_mfu * GPUS[cfg.plan.gpu].flops if gpu else speed(cfg, ranks, gpu)


def _on_cpus(cfg: Any, where: Layout, frames: float) -> float:
    """Returns the seconds in which all cores decode, resize or encode so many frames of the clip's size."""
    cores = where.ranks * cfg.plan.cores_per_gpu if where.gpu else where.ranks
    return frames / (cores * cfg.plan.frames_per_second)


def _data(cfg: Any, where: Layout) -> list[Row]:
    """Returns the stages of `make data` for plan.clips clips of the user's videos, and the rendered scenes."""
    data, own, ranks, gpu = cfg.data, cfg.plan, where.ranks, where.gpu
    scenes = (data.train_scenes + data.heldout_scenes) * data.motions
    clips, every = own.clips, own.clips + scenes
    text, image = steps.text_encoded(cfg.text, inference_type(gpu))[0], steps.image_encoded(cfg.dit.clip_dim)[0]
    vae = steps.encoded(cfg.model).flops
    encoding = every * (vae + image.flops) / _float32_speed(cfg, ranks, gpu) + every * text.flops / speed(
        cfg, ranks, gpu
    )
    frames = cfg.clip.frames
    return [
        Row("cut", f"{clips:,} clips", waiting=_on_cpus(cfg, where, CUT_PASSES * frames * clips)),
        Row("track", f"{clips:,} clips", computing=clips * _tracking_seconds(cfg, gpu) / ranks),
        Row("encode", f"{every:,} clips", every * (vae + text.flops + image.flops), encoding),
        Row("render", f"{scenes:,} clips", waiting=_on_cpus(cfg, where, RENDER_PASSES * frames * scenes)),
        Row("shard, pack", f"{every:,} clips", waiting=_on_cpus(cfg, where, PACK_PASSES * frames * every)),
    ]


def _training(cfg: Any, name: str, where: Layout) -> Row:
    """Returns a training, with its validations, which every rank computes."""
    own, given = training(cfg, name), case(cfg, name, where.gpu)
    ranks = own.ranks(where.ranks)
    micro, shares = own.micro_steps(ranks), steps.updates(given)
    costs = losses(given)
    flops = own.total_steps * micro * ranks * sum(shares[m] * cost.flops for m, cost in costs.items())
    looked = (own.total_steps // own.validate_steps + 1) * steps.validation(given).flops
    sent = own.total_steps * _sent(cfg, name, replace(where, ranks=ranks))
    clips = own.batch * micro * ranks
    return Row(
        name,
        f"{own.total_steps:,} steps of {own.batch} x {micro} x {ranks} = {clips} clips",
        flops,
        flops / speed(cfg, ranks, where.gpu) + looked / speed(cfg, 1, where.gpu),
        _talking(cfg, replace(where, ranks=ranks), sent),
        _loading(cfg, own, clips, replace(where, ranks=ranks)),
    )


def _sent(cfg: Any, name: str, where: Layout) -> float:
    """Returns the bytes that a rank sends in a step."""
    own, given = training(cfg, name), case(cfg, name, where.gpu)
    n, each = steps.parameters_of(given), given.dtype.itemsize
    stage = where.stage(own.optimizer == "muon", each == 2)
    micro, shares, total = own.micro_steps(where.ranks), steps.updates(given), 0.0
    for module, cost in losses(given).items():
        sharded = stage if module not in CHUNKWISE else min(stage, 2)  # as ComputeConfig.stage_of
        step = training_traffic(n, where.ranks, sharded, Passes(micro, cost.passes), each).total
        if isinstance(own, DmdConfig) and own.teacher_placement == "shard":
            step += frozen_traffic(n, where.ranks, Passes(micro, cost.frozen_passes), each).total
        total += shares[module] * step
    return total


def _talking(cfg: Any, where: Layout, sent: float) -> float:
    """Returns the seconds of sending, none of which is hidden; between machines the slower link counts."""
    own = cfg.plan
    inside, between = own.node_gb_per_second * 1e9, own.network_gb_per_second * 1e9
    return sent / (inside if where.ranks <= own.node_gpus else min(inside, between)) if where.gpu else 0.0


def _loading(cfg: Any, own: Any, clips: int, where: Layout) -> float:
    """Returns the seconds in which the tiny VAE waits for its crops beyond what it computes: each is decoded from its
    video, of half of which on average nothing is used."""
    if not isinstance(own, TinyVAEConfig) or not where.gpu:
        return 0.0
    frames = own.total_steps * clips * cfg.clip.frames / 2
    reading = frames / (
        where.ranks * max(cfg.loader.decode_workers, cfg.loader.workers, 1) * cfg.plan.frames_per_second
    )
    training = own.total_steps * clips * losses(case(cfg, "tiny_vae", True))["decoder"].flops / own.batch
    return max(0.0, reading - training / speed(cfg, where.ranks, True))


def _sampling(cfg: Any, where: Layout) -> Row:
    """Returns the sampling of ODE pairs from the teacher."""
    own, clips = cfg.ode, cfg.ode.batch * where.ranks
    rounds = sum(-(-count // clips) for count in (own.pairs, own.heldout_pairs))
    dtype = inference_type(where.gpu)
    one = steps.sampled(cfg.model, cfg.guidance, own.batch, tracks(cfg), dtype, own.solver_steps).flops
    flops = rounds * where.ranks * one
    amount = f"{own.pairs + own.heldout_pairs:,} trajectories of {own.solver_steps} steps"
    return Row("ode_pairs", amount, flops, flops / speed(cfg, where.ranks, where.gpu))


def _evaluation(cfg: Any, where: Layout) -> list[Row]:
    """Returns the stages of `make eval`. Those that run once use one GPU."""
    own, ranks, gpu = cfg.eval, where.ranks, where.gpu
    dtype, points, model = inference_type(gpu), tracks(cfg), cfg.model
    sampled = dict.fromkeys(("real", "vae", "teacher", "student", ADAPTED), 0)
    for item in _items(cfg):
        sampled[item.model] += len(item.clips)
    rolled, decoded = sampled["student"] + sampled[ADAPTED], steps.decoded_in_parts(model).flops
    teacher = steps.sampled(model, own.generate.guidance, 1, points, dtype, own.generate.steps).flops
    flops = sampled["teacher"] * teacher + rolled * steps.rolled(model, points, dtype).flops
    made = rolled + sampled["teacher"] + sampled["vae"]
    generating = flops / speed(cfg, ranks, gpu) + made * decoded / _float32_speed(cfg, ranks, gpu)
    timed = (
        steps.sampled(model, Guidance(), 1, points, dtype, own.speed.teacher_steps).flops * own.speed.teacher_rollouts
    )
    timed += 2 * chunk_flops(cfg, gpu) * (own.speed.warmup_rollouts * model.chunks + own.speed.chunks)
    runs = own.long_run.clips * (1 + len(own.long_run.other_caches)) * own.long_run.horizons
    long = chunk_flops(cfg, gpu) * (runs * model.chunks + 2 * own.long_run.chunks)
    drifting = runs * (decoded / _float32_speed(cfg, 1, gpu) + _tracking_seconds(cfg, gpu))
    return [
        Row("eval_generate", f"{made:,} clips", flops + made * decoded, generating),
        Row("eval_measure", f"{sum(sampled.values()):,} clips", 0.0, made * _tracking_seconds(cfg, gpu) / ranks),
        Row("eval_speed", "on one GPU" if gpu else "once", timed, timed / speed(cfg, 1, gpu)),
        Row("eval_long_run", f"{runs:,} horizons", long + runs * decoded, long / speed(cfg, 1, gpu) + drifting),
    ]


def _tracking_seconds(cfg: Any, gpu: bool) -> float:
    """Returns the seconds in which the clip of a model is tracked, on a GPU; where there is none it is not estimated."""
    return cfg.plan.track_seconds if gpu else 0.0


def _items(cfg: Any) -> list[ev.EvalItem]:
    """Returns the items of an evaluation with as many held-out clips as are asked for."""
    own = cfg.eval.select
    motions = (("tracks", ""), *((name, "") for name in own.counterfactuals))
    clips = tuple(
        ev.EvalClip(f"{kind}{i}", kind, "", motions if i < own.counterfactual_clips else motions[:1])
        for kind in CLIP_KINDS
        for i in range(own.clips)
    )
    weights = Checkpoint("", "", 0, "")
    return ev.plan(ev.Selection("", clips, ""), own.batch, weights, weights, weights)


def chunk_flops(cfg: Any, gpu: bool) -> float:
    """Returns the FLOPs of one chunk of a stream with a full cache, without decoding."""
    steady, dtype = steady_chunks(cfg.model), inference_type(gpu)
    before, after = (steps.streamed(cfg.model, tracks(cfg), dtype, n).flops for n in (steady - 1, steady))
    return after - before


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
