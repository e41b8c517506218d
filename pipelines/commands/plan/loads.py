"""Computes the demands of each stage on one rank: the models that it holds, and the peak bytes of its phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from msmodel.config import ModelConfig
from pipelines.commands.plan import steps
from pipelines.commands.plan.steps import Case, parameters, vae_bytes
from pipelines.commands.plan.trace import Cost
from stages.train.dmd import DmdConfig
from stages.train.method import LoopConfig
from stages.train.tiny_vae import TinyVAEConfig

TRAININGS = ("teacher", "adapt", "dmd", "tiny_vae")
FLOAT32 = 4.0  # bytes


@dataclass(frozen=True)
class Load:
    """The demands of one stage on one rank.

    parameters: of one model. averages: one entry per trained model, which tells whether an average of it is kept.
    frozen: number of models that only run. muon: parameters of one model that Muon trains. half: whether the weights
    are in bfloat16. vae, inputs: bytes of the frozen VAE (and encoders) and of the held-out inputs, which are allocated
    all the time. train: peak bytes of tensors in a micro-step. observe: peak bytes of a validation, with its inputs.
    cache: bytes of keys and values in `train`. place: the place of DMD's teacher (dmd.teacher_placement); other frozen
    models are on the device, unsharded. teacher_score: peak bytes of tensors up to the teacher's score, if the teacher
    is not always on the device. largest: elements of the largest weight. chunkwise: number of trained
    models that a step calls chunk by chunk, whose weights are not sharded (ComputeConfig.stage_of).
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


def training(cfg: Any, name: str) -> LoopConfig:
    """Returns the settings of one of TRAININGS. cfg: configs.settings.Config."""
    own: LoopConfig = vars(cfg)[name]
    return own


def weights_type(cfg: LoopConfig, gpu: bool) -> torch.dtype:
    """Returns the type of a training's weights: bfloat16 on a GPU, except with Muon, which trains in float32."""
    return torch.bfloat16 if gpu and cfg.optimizer != "muon" else torch.float32


def case(cfg: Any, name: str, gpu: bool, keep: bool = False) -> Case:
    """Returns what is counted for one training. keep: see Case."""
    own = training(cfg, name)
    return Case(name, cfg.model, own, cfg.guidance, tracks(cfg), weights_type(own, gpu), keep)


def losses(case: Case) -> dict[str, Cost]:
    """Returns {module: mean cost of its micro-step} of the modules that a training updates."""
    return {module: steps.mean_loss(case, module) for module in steps.updates(case)}


def training_load(cfg: Any, name: str, gpu: bool, keep: bool) -> Load:
    """Returns the demands of one training. keep: whether full gradients accumulate in the backward pass (Case)."""
    model, own, given = cfg.model, training(cfg, name), case(cfg, name, gpu, keep)
    costs, tiny = losses(given).values(), isinstance(own, TinyVAEConfig)
    count, matrices = (steps.parameters_of(given), 0) if tiny else parameters(model)
    place = own.teacher_placement if isinstance(own, DmdConfig) else "device"
    score = max(cost.frozen_peak for cost in costs)
    return Load(
        name=name,
        parameters=count,
        averages=(True, False) if name == "dmd" else (True,),
        frozen=int(name == "dmd"),
        muon=matrices if own.optimizer == "muon" else 0,
        half=given.dtype == torch.bfloat16,
        vae=0.0 if tiny else vaes(model) * vae_bytes(model.vae),
        inputs=0.0 if tiny else steps.heldout_bytes(given),
        train=max(cost.peak for cost in costs),
        observe=steps.validation(given).peak,
        cache=0.0 if name not in ("adapt", "dmd") else cache_bytes(model, own.batch, given.dtype),
        place=place,
        teacher_score=0.0 if place == "device" else score,
        largest=0 if tiny else steps.largest(model),
        chunkwise=int(name in ("adapt", "dmd")),
    )


def inference_loads(cfg: Any, gpu: bool) -> list[Load]:
    """Returns the demands of the stages that only run models: encoding, sampling of pairs, evaluation, streaming."""
    model, dtype, points = cfg.model, inference_type(gpu), tracks(cfg)
    one, n, vae = cache_bytes(model, 1, dtype), parameters(model)[0], vaes(model) * vae_bytes(model.vae)
    text, image = steps.text_encoded(cfg.text, dtype), steps.image_encoded(model.dit.clip_dim)
    encoding = max(steps.encoded(model).peak, text[0].peak, image[0].peak)
    guided = steps.sampled(model, cfg.eval.generate.guidance, 1, points, dtype, cfg.eval.generate.steps)
    generating = max(guided.peak, steps.rolled(model, points, dtype).peak, steps.decoded_in_parts(model).peak)
    frames = model.student.chunk + int(model.image_alone)
    part = steps.decoded(model.vae, (1, model.vae.z_channels, frames, model.latent_height, model.latent_width)).peak
    streaming = max(steps.streamed(model, points, dtype, steady_chunks(model)).peak, one + part)
    held = vae_bytes(model.vae) + text[1] + image[1]
    return [
        Load("encode", 0, (), 0, 0, gpu, held, 0.0, encoding, 0.0, 0.0),
        sampling_load(cfg, gpu),
        Load("eval_generate", n, (), 1, 0, gpu, vae, 0.0, generating, 0.0, one),
        Load("streaming", n, (), 1, 0, gpu, vae, 0.0, streaming, 0.0, one),
    ]


def sampling_load(cfg: Any, gpu: bool) -> Load:
    """Returns the demands of the teacher that samples trajectories."""
    model, own, dtype = cfg.model, cfg.ode, inference_type(gpu)
    peak = steps.sampled(model, cfg.guidance, own.batch, tracks(cfg), dtype, own.solver_steps).peak
    states = FLOAT32 * own.batch * (model.student.steps + 1) * latent_values(model)
    vae = (vaes(model) - 1) * vae_bytes(model.vae)
    return Load("ode_pairs", parameters(model)[0], (), 1, 0, gpu, vae, states, peak, 0.0, 0.0)


def inference_type(gpu: bool) -> torch.dtype:
    """Returns the type of the weights in inference: bfloat16 on a GPU, else float32."""
    return torch.bfloat16 if gpu else torch.float32


def steady_chunks(model: ModelConfig) -> int:
    """Returns the number of chunks of a stream up to and including the first one with a full cache."""
    return model.student.sink + model.student.window + 1


def cache_bytes(model: ModelConfig, batch: int, dtype: torch.dtype) -> float:
    """Returns the bytes of the keys and values in a full cache."""
    frames = model.student.chunk * (model.student.sink + model.student.window) + int(model.image_alone)
    return 2.0 * batch * model.dit.layers * model.dit.dim * frames * model.tokens_per_frame * dtype.itemsize


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
