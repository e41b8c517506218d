"""Computes the demands of each stage on one rank: the models that it holds, and the peak bytes of its phases.

Legend: b batch, z latent channels, t latent frames, h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from msmodel.config import CLIP_TOKENS, ModelConfig
from pipelines.commands.plan.pieces import How, Pieces, cost, decoded, drawn, largest, parameters, vae_bytes
from stages.train.adapt import AdaptConfig
from stages.train.dmd import DmdConfig
from stages.train.teacher import TeacherConfig

TRAININGS = ("teacher", "adapt", "dmd")
ROWS = {"teacher": 3, "adapt": 2, "dmd": 2}  # videos of each clip in the contact sheets


@dataclass(frozen=True)
class Load:
    """The demands of one stage on one rank.

    parameters: of one model. averages: one entry per trained model, which tells whether an average of it is kept.
    frozen: number of models that only run. muon: parameters of one model that Muon trains. half: whether the weights
    are in bfloat16. vae, inputs: bytes of the frozen VAE and of the held-out inputs, which are allocated all the time.
    train: peak bytes of tensors in a micro-step. observe: peak bytes in a validation on the held-out clips. cache:
    bytes of keys and values in `train`. place: the place of DMD's teacher (dmd.teacher_placement); other frozen models
    are on the device, unsharded. teacher_score: peak bytes of tensors up to the teacher's score, if the teacher is not always
    on the device. largest: elements of the largest weight. chunkwise: number of trained models that a step calls chunk by
    chunk, whose weights are not sharded (ComputeConfig.stage_of).
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
    place: str = "device"
    teacher_score: float = 0.0
    largest: int = 0
    chunkwise: int = 0


Training = TeacherConfig | AdaptConfig | DmdConfig


def training(cfg: Any, name: str) -> Training:
    """Returns the settings of one of TRAININGS. cfg: configs.settings.Config."""
    return vars(cfg)[name]


def weights_type(cfg: Training, gpu: bool) -> torch.dtype:
    """Returns the type of a training's weights: bfloat16 on a GPU, except with Muon, which trains in float32."""
    return torch.bfloat16 if gpu and cfg.optimizer != "muon" else torch.float32


def training_load(cfg: Any, name: str, gpu: bool, keep: bool) -> Load:
    """Returns the demands of one training. keep: whether full gradients accumulate in the backward pass (How)."""
    model, own = cfg.model, training(cfg, name)
    count, matrices = parameters(model)
    dtype = weights_type(own, gpu)
    how = How(own.batch, dtype, own.checkpoint_layers, keep, own.keep_attention)
    train, a_clip, latents, clips = _ASKED[name](cfg, how)
    video = 12.0 * model.clip.frames * model.clip.height * model.clip.width
    sheet = decoded(model).peak + (ROWS[name] - 1) * video if own.picture_clips else 0.0
    place = own.teacher_placement if isinstance(own, DmdConfig) else "device"
    return Load(
        name=name,
        parameters=count,
        averages=(True, False) if name == "dmd" else (True,),
        frozen=int(name == "dmd"),
        muon=matrices if own.optimizer == "muon" else 0,
        half=dtype == torch.bfloat16,
        vae=vaes(model) * vae_bytes(model.vae),
        inputs=clips * input_bytes(model, latents),
        train=max(train, own.batch * input_bytes(model, 2) + drawn(model, tracks(cfg)).peak),
        observe=max(clips * a_clip, own.picture_clips * sheet),
        cache=0.0 if name == "teacher" else cache_bytes(model, own.batch, dtype),
        place=place,
        teacher_score=0.0 if place == "device" else _teacher_score(cfg, how),
        largest=largest(model),
        chunkwise=int(name != "teacher"),
    )


# Bytes of a micro-step, bytes of the validation on one held-out clip, tensors of latents in the inputs of such a clip,
# number of held-out clips. Without gradients the bytes are proportional to the number of clips.
Asked = tuple[float, float, int, int]


def _teacher(cfg: Any, how: How) -> Asked:
    look = cost(cfg.model, replace(how, batch=1), Pieces.probed).peak
    return cost(cfg.model, how, Pieces.flow_step).peak, look, 2, cfg.teacher.probe_clips


def _adapt(cfg: Any, how: How) -> Asked:
    own, most = cfg.model.student, cfg.adapt
    widest = replace(own, sink=max(own.sink, most.sinks[1]), window=max(own.window, most.windows[1]))
    step = cost(cfg.model, how, Pieces.adapt_step, widest).peak
    look = cost(cfg.model, replace(how, batch=1), Pieces.adapt_step, own, False).peak
    return step, look, own.steps + 1, most.heldout_pairs


def _dmd(cfg: Any, how: How) -> Asked:
    last, w = cfg.student.steps - 1, cfg.guidance
    generator = cost(cfg.model, how, Pieces.generator_step, last, w.text, w.track).peak
    critic = cost(cfg.model, how, Pieces.critic_step, last).peak
    look = cost(cfg.model, replace(how, batch=1), Pieces.rolled, last).peak
    return max(generator, critic), look, 2, cfg.dmd.heldout_clips


def _teacher_score(cfg: Any, how: How) -> float:
    return cost(
        cfg.model, how, Pieces.teacher_scored, cfg.student.steps - 1, cfg.guidance.text, cfg.guidance.track
    ).peak


_ASKED = {"teacher": _teacher, "adapt": _adapt, "dmd": _dmd}


def sampling_load(cfg: Any, gpu: bool) -> Load:
    """Returns the demands of the teacher that samples trajectories."""
    model, own, w = cfg.model, cfg.ode, cfg.guidance
    one = cost(model, How(1, inference_type(gpu)), Pieces.guided, w.text, w.track).peak
    states = 4.0 * own.batch * (model.student.steps + 1) * latent_values(model)
    vae, step = (vaes(model) - 1) * vae_bytes(model.vae), max(own.batch * one, drawn(model, tracks(cfg)).peak)
    return Load("ode_pairs", parameters(model)[0], (), 1, 0, gpu, vae, states, step, 0.0, 0.0)


def stream_load(cfg: Any, gpu: bool) -> Load:
    """Returns the demands of the student that generates one stream, including the VAE."""
    model, dtype = cfg.model, inference_type(gpu)
    cache = cache_bytes(model, 1, dtype)
    frames = model.student.chunk + int(model.image_alone)
    decoding = cache + max(decoded(model, frames).peak, drawn(model, tracks(cfg), frames).peak)
    peak = max(cost(model, How(1, dtype), Pieces.streamed, steady_chunks(model)).peak, decoding)
    vae = vaes(model) * vae_bytes(model.vae)
    return Load("streaming", parameters(model)[0], (), 1, 0, gpu, vae, 0.0, peak, 0.0, cache)


def inference_type(gpu: bool) -> torch.dtype:
    """Returns the type of the weights in inference: bfloat16 on a GPU, else float32."""
    return torch.bfloat16 if gpu else torch.float32


def steady_chunks(model: ModelConfig) -> int:
    """Returns the number of chunks of a stream up to and including the first one with a full cache."""
    return model.student.sink + model.student.window + 1


def cached_frames(model: ModelConfig) -> int:
    """Returns the number of latent frames whose keys and values a full cache holds."""
    return model.student.chunk * (model.student.sink + model.student.window) + int(model.image_alone)


def cache_bytes(model: ModelConfig, batch: int, dtype: torch.dtype) -> float:
    """Returns the bytes of the keys and values in a full cache."""
    tokens = cached_frames(model) * model.tokens_per_frame
    return 2.0 * batch * model.dit.layers * model.dit.dim * tokens * dtype.itemsize


def latent_values(model: ModelConfig) -> int:
    """Returns the number of elements in the latents of one clip."""
    return model.vae.z_channels * model.latent_frames * model.latent_height * model.latent_width


def tracks(cfg: Any) -> int:
    """Returns the largest number of tracks of a clip."""
    return cfg.data.grid_rows * cfg.data.grid_cols


def vaes(model: ModelConfig) -> int:
    """Returns the number of VAEs in memory: one that decodes, and with rgb_vae a second that encodes the canvas of
    tracks."""
    return 2 if model.dit.track_encoding == "rgb_vae" else 1


def input_bytes(model: ModelConfig, latents: int) -> float:
    """Returns the float32 bytes of one clip's inputs to a model, together with `latents` tensors of latents."""
    image = model.mask_channels + model.image_channels or model.vae.z_channels
    channels = latents * model.vae.z_channels + image + model.track_feature_channels
    cells = model.latent_frames * model.latent_height * model.latent_width
    return 4.0 * (channels * cells + model.text.length * model.text.dim + CLIP_TOKENS * model.dit.clip_dim)
