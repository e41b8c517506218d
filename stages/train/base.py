"""Stage BASE: pretrains a small image-to-video DiT without tracks, which is for nano what Wan is for the paper.

It trains by flow matching with text dropout, on frame groups (groups.py) and then on whole clips. `make nano-base` runs
this stage and ships the weights in msmodel/assets/nano/dit.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from msmodel import flow
from msmodel.batch import Batch
from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from msmodel.rollout import fresh_noise
from stages.contracts import Context, Resources, Stage
from stages.data.loader import LoaderConfig
from stages.records import Checkpoint, ShardSet
from stages.train.conditioning import dropped_text, keep, without_any_tracks
from stages.train.groups import GroupedConfig
from stages.train.loop import train
from stages.train.method import Loader, Loss, RngStreams, TrainableModule, Validation, at_least, scheduled
from stages.train.optim import make_optimizer
from stages.train.publish import fresh, frozen_decoder, heldout_batch, open_loader, publish
from stages.train.sampling import Decode, contact_sheet_of_latents, first_conditions, flow_loss, sample_teacher

PROBE_TIMES = (0.95, 0.8, 0.5)


@dataclass(frozen=True)
class BaseConfig(GroupedConfig):
    """Settings of the pretraining of the nano base. The paper has no counterpart, because it starts from Wan."""

    group: ClassVar[str] = "base"

    steps: int = 1500  # optimizer steps after those on frame groups
    lr: float = 1e-3
    warmup_steps: int = 50
    cooldown_steps: int = 300
    ema_decay: float = 0.995
    text_dropout: float = 0.1  # probability that a clip's prompt is left empty
    probe_clips: int = 8  # held-out clips that the loss is measured on
    picture_clips: int = 2  # held-out clips on the contact sheet
    picture_steps: int = 10  # Euler steps of the contact sheet's videos
    scenes: int = 500  # scenes rendered by `make nano-base`; the user's own `make data` renders data.train_scenes

    @property
    def total_steps(self) -> int:
        return self.group_steps + self.steps

    def checks(self) -> list[str]:
        out = super().checks() + at_least(
            self, {"steps": 0, "probe_clips": 1, "picture_clips": 0, "picture_steps": 1, "scenes": 0}
        )
        if not 0.0 <= self.text_dropout <= 1.0:
            out.append(f"text_dropout: {self.text_dropout} is not a probability")
        return out


@dataclass(frozen=True)
class BaseRun:
    """Settings that stage BASE reads. All of them are hashed into its key."""

    model: ModelConfig
    base: BaseConfig


@dataclass(frozen=True)
class ClipInputs:
    """Inputs of stage BASE: shards to train on, held-out shards to validate on, and the loader's settings."""

    train: ShardSet
    heldout: ShardSet
    loader: LoaderConfig = field(default_factory=LoaderConfig)


class BaseMethod:
    """Flow matching with image and text only. It trains one module, "dit"."""

    name = "base"

    def __init__(self, dit: nn.Module, model: ModelConfig, cfg: BaseConfig, heldout: Batch, decode: Decode, seed: int):
        self.dit, self.model, self.cfg, self.decode = dit, model, cfg, decode
        self.heldout, self.held_cond = heldout, without_any_tracks(heldout, model)
        self.held_eps = fresh_noise(heldout.latents, RngStreams(seed, step=-1).own("noise"))
        self._trainable = TrainableModule(dit, make_optimizer(dit, cfg))

    def trainable_modules(self) -> dict[str, TrainableModule]:
        return {"dit": self._trainable}

    def update_schedule(self, step: int) -> tuple[str, ...]:
        return ("dit",)

    def lr(self, module: str, group: str, step: int) -> float:
        return scheduled(self.cfg.lr, self.cfg, step)

    def loss(self, module: str, batch: Batch, rng: RngStreams) -> Loss:
        batch = batch.to(self.heldout.latents.device)
        cond = without_any_tracks(batch, self.model)
        cond = replace(
            cond, text=keep(cond.text, self.cfg.text_dropout, rng.own("dropout"), dropped_text(batch, self.model))
        )
        latents = batch.latents
        if self.cfg.grouped(rng.step):
            latents, cond = self.cfg.draw_groups(latents, cond, rng)
        t = flow.sample_t(latents.shape[0], self.model.dit.shift, rng.own("time")).to(latents.device)
        eps = fresh_noise(latents, rng.own("noise"))
        return Loss(flow_loss(self.dit, latents, cond, t, eps, self.model))

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Returns heldout/tXXX, the loss of the held-out clips at each of PROBE_TIMES, and a contact sheet."""
        latents, n = self.heldout.latents, self.cfg.picture_clips
        metrics = {}
        for time in PROBE_TIMES:
            t = torch.full((latents.shape[0],), time, device=latents.device)
            loss = flow_loss(self.dit, latents, self.held_cond, t, self.held_eps, self.model)
            metrics[f"heldout/t{round(100 * time):03d}"] = float(loss)
        if not n:
            return Validation(metrics)
        cond = first_conditions(self.held_cond, n)
        sampled = sample_teacher(self.dit, cond, self.held_eps[:n], self.cfg.picture_steps, None, self.model)
        return Validation(
            metrics, {"base": contact_sheet_of_latents({"real": latents[:n], "base": sampled}, self.decode)}
        )


def backbone(dit: WanDiT) -> WanDiT:
    """Returns a copy of `dit` without track channels, for publication, so that any track head can be added to it."""
    tracks = dit.cfg.track_channels
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns about the empty track head
        bare = WanDiT(replace(dit.cfg, dit=replace(dit.cfg.dit, track_channels=0, track_encoding="head")))
    state = {n: v for n, v in dit.state_dict().items() if not n.startswith("track_head.")}
    state["patch_embedding.weight"] = state["patch_embedding.weight"][:, : dit.cfg.in_channels - tracks]
    bare.load_state_dict(state | {n: v for n, v in bare.state_dict().items() if n.startswith("track_head.")})
    return bare


def fit(cfg: BaseRun, dit: WanDiT, loader: Loader, heldout: Batch, decode: Decode, ctx: Context) -> dict[str, float]:
    """Trains `dit` in place and leaves it with the averaged weights. Returns the last held-out figures."""
    dit.track_head.requires_grad_(False)  # its input is zero; weight decay would still shrink it
    method = BaseMethod(dit, cfg.model, cfg.base, heldout.to(ctx.device), decode, ctx.seed)
    return train(method, loader, cfg.base, ctx.seed, ctx)


def run(cfg: BaseRun, inputs: ClipInputs, ctx: Context) -> Checkpoint:
    """Returns checkpoint "base": the averaged weights, without track channels."""
    dit = fresh(WanDiT, cfg.model, ctx.seed).to(ctx.device)
    cfg.base.set_checkpointing(dit)
    micro_steps = cfg.base.micro_steps(ctx.world_size)
    loader = open_loader((inputs.train,), cfg.base.batch, inputs.loader, ctx, micro_steps)
    heldout = heldout_batch(inputs.heldout, cfg.base.probe_clips)
    metrics = fit(cfg, dit, loader, heldout, frozen_decoder(cfg.model.vae, ctx.device), ctx)
    return publish("base", backbone(dit), cfg.base.total_steps, ctx, metrics=metrics)


BASE = Stage(name="base", version=2, how="distributed", run=run, resources=Resources(threads=2))
