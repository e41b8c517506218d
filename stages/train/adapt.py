"""Stage ADAPT: causal adaptation (MotionStream, section 3.3; CausVid, eq. 6).

The student starts from the teacher's weights. It regresses its x_0 onto the endpoints of the teacher's trajectories,
from states of these trajectories, chunk by chunk and causally. Context is teacher-forced through the same rolling cache
as in the rollout, so positions and attended chunks are those of inference. Sink and window are sampled again at each
step, which gives the paper's randomly sampled sparse causal mask.

Legend: b batch, k student timesteps, z latent channels, t latent frames, h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from msmodel import losses
from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig, StudentConfig
from msmodel.flow import student_timesteps
from msmodel.rollout import denoise_chunks, fresh_noise, rollout
from stages.contracts import Context, Resources, Stage
from stages.records import Checkpoint, OdePairs
from stages.train.loop import train
from stages.train.method import Loader, Loss, RngStreams, StepsConfig, TrainableModule, Validation, at_least, scheduled
from stages.train.ode_pairs import PairBatch, PairLoader, heldout_pairs
from stages.train.optim import make_optimizer
from stages.train.publish import frozen_decoder, publish, student_from
from stages.train.sampling import Decode, contact_sheet_of_latents, first_conditions, scored_frames


@dataclass(frozen=True)
class AdaptConfig(StepsConfig):
    """Settings of causal adaptation. Paper: 2,000 steps, batch 128, learning rate 2e-6.

    own_share: probability of the student's own sink and window; otherwise both are sampled uniformly, ends included,
    from `sinks` and `windows`. gate: held-out regression loss above which the training logs that DMD is likely to fail;
    0 = never.
    """

    group: ClassVar[str] = "adapt"

    steps: int = 2000
    lr: float = 2e-6
    betas: tuple[float, float] = (0.9, 0.999)
    sinks: tuple[int, int] = (0, 2)  # fewest and most sink chunks that are sampled
    windows: tuple[int, int] = (1, 3)  # fewest and most window chunks that are sampled
    own_share: float = 0.5
    gate: float = 0.0
    heldout_pairs: int = 16  # pairs that the held-out loss is measured on
    picture_clips: int = 2  # held-out clips on the contact sheet

    def checks(self) -> list[str]:
        out = super().checks() + at_least(self, {"gate": 0, "heldout_pairs": 1, "picture_clips": 0})
        for name, (low, high) in {"sinks": self.sinks, "windows": self.windows}.items():
            if not 0 <= low <= high:
                out.append(f"{name}: [{low}, {high}] is not a range of chunks")
        if not 0.0 <= self.own_share <= 1.0:
            out.append(f"own_share: {self.own_share} is not a probability")
        if self.picture_clips > self.heldout_pairs:
            out.append(f"picture_clips: {self.picture_clips} is more than heldout_pairs ({self.heldout_pairs})")
        return out

    def draw_context(self, own: StudentConfig, generator: torch.Generator) -> StudentConfig:
        """Returns `own`, or with probability 1 - own_share a copy with a randomly sampled sink and window."""
        if float(torch.rand((), generator=generator)) < self.own_share:
            return own
        sink, window = (int(torch.randint(a, b + 1, (), generator=generator)) for a, b in (self.sinks, self.windows))
        return replace(own, sink=sink, window=window)


@dataclass(frozen=True)
class AdaptRun:
    """Settings that stage ADAPT reads. All of them are hashed into its key."""

    model: ModelConfig
    adapt: AdaptConfig


@dataclass(frozen=True)
class AdaptInputs:
    """Inputs of stage ADAPT: the teacher's checkpoint and its trajectories."""

    teacher: Checkpoint
    pairs: OdePairs


class AdaptMethod:
    """Regression of the student on the teacher's ODE trajectories. It trains one module, "student"."""

    name = "adapt"

    def __init__(
        self, student: CausalDiT, model: ModelConfig, cfg: AdaptConfig, heldout: PairBatch, decode: Decode, seed: int
    ) -> None:
        self.student, self.model, self.cfg, self.decode, self.seed = student, model, cfg, decode, seed
        self.heldout = heldout
        self.times = torch.tensor(student_timesteps(model.student.steps, model.dit.shift))
        student.track_head.requires_grad_(False)  # paper, section 3.2: frozen after the teacher's phase 1
        self._trainable = TrainableModule(student, make_optimizer(student, cfg), chunkwise=True)

    def trainable_modules(self) -> dict[str, TrainableModule]:
        return {"student": self._trainable}

    def update_schedule(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def lr(self, module: str, group: str, step: int) -> float:
        return scheduled(self.cfg.lr, self.cfg, step)

    def loss(self, module: str, batch: PairBatch, rng: RngStreams) -> Loss:
        context = self.cfg.draw_context(self.model.student, rng.shared("context"))
        batch = batch.to(self.heldout.endpoint.device)
        return Loss(self.regression(batch, context, rng.own("time")))

    def regression(self, batch: PairBatch, context: StudentConfig, generator: torch.Generator) -> Tensor:
        """Returns ||x_0 - endpoint||^2, a scalar. Each chunk starts from the state at its own random timestep index."""
        b, k = batch.states.shape[:2]
        index = torch.randint(k, (b, self.model.chunks), generator=generator)
        states, t = self.mixed_states(batch.states, index)
        x0 = denoise_chunks(self.student, states, t, batch.cond, batch.endpoint, context)
        frames = scored_frames(self.model, x0.shape[2])
        return losses.regression(x0, batch.endpoint, frames)

    def mixed_states(self, states: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the clip with each chunk at its own state (b z t h w), and the chunks' times (b chunks).

        states: b k z t h w. index: b chunks, the timestep index of each chunk. Prefix frames take state 0.
        """
        prefix = states.shape[3] - self.model.chunks * self.model.student.chunk
        by_frame = index.repeat_interleave(self.model.student.chunk, dim=1)
        by_frame = torch.cat([index.new_zeros(index.shape[0], prefix), by_frame], dim=1).to(states.device)
        picked = by_frame[:, None, None, :, None, None].expand(-1, 1, states.shape[2], -1, *states.shape[4:])
        return torch.gather(states, 1, picked)[:, 0], self.times[index].to(states)

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Returns heldout/ode, the regression loss on held-out trajectories with the student's own sink and window.

        It is compared with `gate` before DMD. The contact sheet shows the teacher's endpoints and the student's
        rollouts.
        """
        rng = RngStreams(self.seed, step=-1)
        loss = float(self.regression(self.heldout, self.model.student, rng.own("time")))
        pictures, n = {}, self.cfg.picture_clips
        if n:
            endpoint, cond = self.heldout.endpoint[:n], first_conditions(self.heldout.cond, n)
            generator = rng.own("noise")
            noise = fresh_noise(endpoint, generator)
            x = rollout(self.student, cond, noise, self.times.tolist(), self.model.student, generator)
            pictures["adapted"] = contact_sheet_of_latents({"teacher": endpoint, "rollout": x}, self.decode)
        return Validation({"heldout/ode": loss}, pictures)


def fit(
    cfg: AdaptRun, student: CausalDiT, loader: Loader, heldout: PairBatch, decode: Decode, ctx: Context
) -> dict[str, float]:
    """Trains `student` in place and leaves it with the averaged weights. Returns the last held-out figures."""
    method = AdaptMethod(student, cfg.model, cfg.adapt, heldout.to(ctx.device), decode, ctx.seed)
    metrics = train(method, loader, cfg.adapt, ctx.seed, ctx)
    if cfg.adapt.gate and metrics["heldout/ode"] > cfg.adapt.gate:
        ctx.log(
            f"adapt: held-out regression loss {metrics['heldout/ode']:.4f} is above the gate {cfg.adapt.gate}: "
            f"DMD is likely to fail from here; train longer (adapt.steps) or make more pairs (ode.pairs)"
        )
    return metrics


def run(cfg: AdaptRun, inputs: AdaptInputs, ctx: Context) -> Checkpoint:
    """Returns checkpoint "adapted": the causal student before DMD, with the held-out regression loss as metric."""
    student = student_from(inputs.teacher, cfg.model).to(ctx.device)
    cfg.adapt.set_checkpointing(student)
    loader = PairLoader(inputs.pairs, cfg.adapt.batch, cfg.model, ctx.seed, ctx.rank, ctx.world_size, ctx.device)
    heldout = heldout_pairs(inputs.pairs, cfg.adapt.heldout_pairs, cfg.model, ctx.device)
    metrics = fit(cfg, student, loader, heldout, frozen_decoder(cfg.model.vae, ctx.device), ctx)
    return publish(
        "adapted", student, cfg.adapt.total_steps, ctx, (inputs.teacher.digest, inputs.pairs.digest), metrics
    )


ADAPT = Stage(name="adapt", version=2, how="distributed", run=run, resources=Resources(threads=2))
