"""Stage DMD: Self-Forcing distribution matching on whole rolled-out clips.

Sources: MotionStream, section 3.3; DMD2; Self Forcing. The generator is the causal student. It rolls out a clip through
the rolling cache, with the gradient through one exit step. Its gradient is the difference of two scores at a random
time. The real score is the frozen teacher with joint guidance. The fake score is the critic, which follows the
generator by flow matching on fresh rollouts. The critic is updated at every step, the generator at every `ratio`-th.

Legend: b batch, z latent channels, t latent frames, h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from msmodel import flow, guidance, losses
from msmodel.batch import Batch, Conditioning
from msmodel.causal import CausalDiT
from msmodel.config import OPTION, ModelConfig
from msmodel.dit import WanDiT
from msmodel.rollout import fresh_noise, rollout
from stages.contracts import Context, Resources, Stage
from stages.data.loader import LoaderConfig
from stages.records import Checkpoint, ShardSet
from stages.train.conditioning import Augment, condition, draw_tracks
from stages.train.loop import train
from stages.train.method import Loader, Loss, RngStreams, StepsConfig, TrainableModule, Validation, at_least, scheduled
from stages.train.optim import make_optimizer
from stages.train.publish import (
    frozen_decoder,
    frozen_teacher,
    heldout_batch,
    open_loader,
    publish,
    student_from,
    trainable_teacher,
)
from stages.train.sampling import Decode, Guidance, contact_sheet_of_latents, flow_loss, restore_image, scored_frames

GENERATOR, CRITIC = "generator", "critic"
TEACHER_PLACEMENTS = ("device", "shard", "offload")  # each takes less GPU memory than the one before
SPREAD = (0.4, 2.0)  # allowed std of rollouts over that of held-out latents; outside, they are flat colour or noise


@dataclass(frozen=True)
class DmdConfig(StepsConfig):
    """Settings of distribution matching.

    Paper: 400 steps, batch 64, generator 2e-6, critic 4e-7, 5 critic updates per generator update, EMA.

    t_low, t_high: clamp of the time at which scores are compared. keep_steps: steps after which the averaged generator
    is written to kept/step-NNNNNNNN in the step's folder, a student like the last one: the paper's 400 steps may count
    either module's updates. teacher_placement: where the frozen teacher is stored, which changes no result; "device"
    keeps all of it on every rank's device, "shard" splits it over the ranks and gathers it layer by layer while it
    scores, "offload" keeps it in CPU memory except during generator updates, which alone need it.
    """

    group: ClassVar[str] = "dmd"

    steps: int = 2000  # critic updates
    keep_steps: tuple[int, ...] = field(default=(400,), metadata=OPTION)
    ratio: int = 5  # critic updates per generator update
    lr: float = 2e-6
    critic_lr: float = 4e-7  # learning rate of the critic
    betas: tuple[float, float] = (0.0, 0.999)
    clip_norm: float = 10.0
    t_low: float = 0.02
    t_high: float = 0.98
    teacher_placement: str = "device"
    augment: Augment = field(default_factory=Augment)  # of this, only the number of tracks is used here
    heldout_clips: int = 4  # clips that held-out figures are measured on
    picture_clips: int = 2  # held-out clips on the contact sheet

    @property
    def kept_steps(self) -> tuple[int, ...]:
        return self.keep_steps

    def settings_that_save_memory(self, ranks: int) -> list[str]:
        places = TEACHER_PLACEMENTS[TEACHER_PLACEMENTS.index(self.teacher_placement) + 1 :]
        elsewhere = [f"{self.group}.teacher_placement={place}" for place in places if place != "shard" or ranks > 1]
        return super().settings_that_save_memory(ranks) + elsewhere

    def checks(self) -> list[str]:
        least = {"ratio": 1, "critic_lr": 0, "heldout_clips": 1, "picture_clips": 0}
        out = super().checks() + at_least(self, least) + [f"augment.{p}" for p in self.augment.problems()]
        if any(step < 1 for step in self.keep_steps):
            out.append(f"keep_steps: {self.keep_steps} must be at least 1 each")
        if not 0.0 < self.t_low < self.t_high < 1.0:
            out.append(f"t_low, t_high: {self.t_low}, {self.t_high} must satisfy 0 < t_low < t_high < 1")
        if self.teacher_placement not in TEACHER_PLACEMENTS:
            out.append(f"teacher_placement: {self.teacher_placement!r} is not one of {', '.join(TEACHER_PLACEMENTS)}")
        if self.picture_clips > self.heldout_clips:
            out.append(f"picture_clips: {self.picture_clips} is more than heldout_clips ({self.heldout_clips})")
        return out


@dataclass(frozen=True)
class DmdRun:
    """Settings that stage DMD reads. All of them are hashed into its key."""

    model: ModelConfig
    dmd: DmdConfig
    guidance: Guidance = field(default_factory=Guidance)

    def problems(self) -> list[str]:
        return self.dmd.problems() + [f"guidance.{p}" for p in self.guidance.problems()]


@dataclass(frozen=True)
class DmdInputs:
    """Inputs of stage DMD. adapted: initial generator. teacher: the real score, and the initial critic."""

    train: ShardSet
    heldout: ShardSet
    teacher: Checkpoint
    adapted: Checkpoint
    loader: LoaderConfig = field(default_factory=LoaderConfig)


class DmdMethod:
    """Distribution matching. It trains two modules, the generator first, then the critic; both with frozen track heads.

    It reads image, text and tracks of a batch, never its latents.
    """

    name = "dmd"

    def __init__(
        self,
        cfg: DmdRun,
        generator: CausalDiT,
        critic: WanDiT,
        teacher: WanDiT,
        heldout: Batch,
        decode: Decode,
        seed: int,
    ) -> None:
        assert not any(p.requires_grad for p in teacher.parameters()), "the teacher must be frozen"
        self.model, self.cfg, self.guidance, self.decode, self.seed = cfg.model, cfg.dmd, cfg.guidance, decode, seed
        self.generator, self.critic, self.teacher = generator, critic, teacher
        self.times = flow.student_timesteps(cfg.model.student.steps, cfg.model.dit.shift)
        rng = RngStreams(seed, step=-1)
        self.heldout, self.real_spread = heldout, float(heldout.latents.std())
        self.held_cond = condition(heldout, draw_tracks(heldout, cfg.dmd.augment, cfg.model, rng), cfg.model)
        for module in (generator, critic):
            module.track_head.requires_grad_(False)  # paper, section 3.2: frozen after the teacher's phase 1
        self._modules = {
            GENERATOR: TrainableModule(generator, make_optimizer(generator, cfg.dmd), chunkwise=True),
            CRITIC: TrainableModule(critic, make_optimizer(critic, cfg.dmd, lr=cfg.dmd.critic_lr), ema=False),
        }

    def trainable_modules(self) -> dict[str, TrainableModule]:
        return self._modules

    def update_schedule(self, step: int) -> tuple[str, ...]:
        return (GENERATOR, CRITIC) if (step + 1) % self.cfg.ratio == 0 else (CRITIC,)

    def lr(self, module: str, group: str, step: int) -> float:
        return scheduled(self.cfg.lr if module == GENERATOR else self.cfg.critic_lr, self.cfg, step)

    def loss(self, module: str, batch: Batch, rng: RngStreams) -> Loss:
        batch = batch.to(self.heldout.image.device)
        cond = condition(batch, draw_tracks(batch, self.cfg.augment, self.model, rng), self.model)
        return self.generator_loss(cond, rng) if module == GENERATOR else self.critic_loss(cond, rng)

    def generator_loss(self, cond: Conditioning, rng: RngStreams) -> Loss:
        """Returns the DMD loss of one rollout (Self Forcing, algorithm 1; DMD2, eq. 3-8)."""
        x = self.rollout_of(cond, rng, GENERATOR, grad=True)
        t, eps = self.noising(x, rng, GENERATOR)
        real, fake = self.scores(flow.add_noise(x.detach(), eps, t), t, cond)
        frames = scored_frames(self.model, x.shape[2])
        value = losses.dmd(x, real, fake, frames)
        spread, gap = float(x.detach().std()), float((real - fake).abs().mean())
        return Loss(value, {"std": spread, "score_gap": gap}, self.alarms(spread))

    def critic_loss(self, cond: Conditioning, rng: RngStreams) -> Loss:
        """Returns the flow-matching loss of the critic's raw velocity on a fresh rollout; conditional, no guidance."""
        x = self.rollout_of(cond, rng, CRITIC, grad=False)
        t, eps = self.noising(x, rng, CRITIC)
        return Loss(flow_loss(self.critic, x, cond, t, eps, self.model))

    def rollout_of(self, cond: Conditioning, rng: RngStreams, purpose: str, grad: bool) -> Tensor:
        """Returns a rollout (b z t h w) up to an exit step, sampled once per rollout and the same on every rank."""
        exit_step = int(torch.randint(len(self.times), (), generator=rng.shared(f"{purpose} exit")))
        generator = rng.own(f"{purpose} rollout")
        noise = self.noise(cond, generator)
        with torch.set_grad_enabled(grad):
            return rollout(
                self.generator, cond, noise, self.times, self.model.student, generator, exit_step=exit_step, grad=grad
            )

    def noise(self, cond: Conditioning, generator: torch.Generator) -> Tensor:
        """Returns the initial noise of a rollout, b z t h w."""
        z = self.model.vae.z_channels
        return fresh_noise(cond.image[:, -z:], generator)

    def noising(self, x: Tensor, rng: RngStreams, purpose: str) -> tuple[Tensor, Tensor]:
        """Returns t (b), shifted and clamped, and the noise eps, for comparing or fitting scores on x."""
        generator = rng.own(f"{purpose} score")
        t = flow.sample_t(x.shape[0], self.model.dit.shift, generator, self.cfg.t_low, self.cfg.t_high).to(x.device)
        return t, fresh_noise(x, generator)

    @torch.no_grad()
    def scores(self, noisy: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Returns the x_0 estimates of the teacher (joint guidance) and of the critic (conditional), both b z t h w."""
        w = self.guidance
        if self.cfg.teacher_placement == "offload":
            self.teacher.to(noisy.device)
        real = flow.x0_from_velocity(noisy, guidance.joint(self.teacher, noisy, t, cond, w.text, w.track), t)
        if self.cfg.teacher_placement == "offload":
            self.teacher.to("cpu")
        fake = flow.x0_from_velocity(noisy, self.critic(noisy, t, cond), t)
        return restore_image(real, cond, self.model), restore_image(fake, cond, self.model)

    def alarms(self, spread: float) -> tuple[str, ...]:
        """Returns a warning if the std of rollouts, relative to that of real latents, is outside SPREAD."""
        ratio = spread / self.real_spread
        if SPREAD[0] <= ratio <= SPREAD[1]:
            return ()
        kind = "flat colour" if ratio < SPREAD[0] else "noise"
        return (
            f"rollouts have {ratio:.2f} times the spread of real latents: they collapse to {kind}; lower dmd.lr, "
            f"dmd.critic_lr or the guidance weights",
        )

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Returns figures of full rollouts of fixed held-out clips, and a contact sheet.

        heldout/latent_mse: distance to the real latents. heldout/std: spread.
        """
        generator = RngStreams(self.seed, step=-1).own("heldout rollout")
        noise = self.noise(self.held_cond, generator)
        x = rollout(self.generator, self.held_cond, noise, self.times, self.model.student, generator)
        real, n = self.heldout.latents, self.cfg.picture_clips
        metrics = {"heldout/latent_mse": float((x - real).square().mean()), "heldout/std": float(x.std())}
        if not n:
            return Validation(metrics)
        return Validation(
            metrics, {"student": contact_sheet_of_latents({"real": real[:n], "student": x[:n]}, self.decode)}
        )


def fit(
    cfg: DmdRun,
    generator: CausalDiT,
    critic: WanDiT,
    teacher: WanDiT,
    loader: Loader,
    heldout: Batch,
    decode: Decode,
    ctx: Context,
) -> dict[str, float]:
    """Trains the generator and the critic in place and leaves the generator with the averaged weights.

    Returns the last held-out figures.
    """
    if cfg.dmd.teacher_placement == "offload":
        teacher.to("cpu")
    elif cfg.dmd.teacher_placement == "shard":
        ctx.sharded(teacher)
    method = DmdMethod(cfg, generator, critic, teacher, heldout.to(ctx.device), decode, ctx.seed)
    return train(method, loader, cfg.dmd, ctx.seed, ctx)


def run(cfg: DmdRun, inputs: DmdInputs, ctx: Context) -> Checkpoint:
    """Returns checkpoint "student": the generator's averaged weights."""
    generator = student_from(inputs.adapted, cfg.model).to(ctx.device)
    critic = trainable_teacher(inputs.teacher, ctx.device)
    cfg.dmd.set_checkpointing(generator)
    cfg.dmd.set_checkpointing(critic)
    teacher = frozen_teacher(inputs.teacher, ctx)
    micro_steps = cfg.dmd.micro_steps(ctx.world_size)
    loader = open_loader((inputs.train,), cfg.dmd.batch, inputs.loader, ctx, micro_steps)
    heldout = heldout_batch(inputs.heldout, cfg.dmd.heldout_clips)
    decode = frozen_decoder(cfg.model.vae, ctx.device)
    metrics = fit(cfg, generator, critic, teacher, loader, heldout, decode, ctx)
    parents = (inputs.teacher.digest, inputs.adapted.digest)
    return publish("student", generator, cfg.dmd.total_steps, ctx, parents, metrics, inputs.train)


DMD = Stage(name="dmd", version=3, how="distributed", run=run, resources=Resources(threads=2))
