"""A second distillation method, complete in one file: the student's rollouts are regressed onto the latents of real clips.

The recipe in stages/train/method.py points here. It is too plain to give good videos; it shows what a method must bring.

Legend: b batch, z latent channels, t latent frames, h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from msmodel import flow, losses
from msmodel.batch import Batch, Conditioning
from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig
from msmodel.rollout import fresh_noise, rollout
from stages.contracts import Context, Resources, Stage
from stages.data.loader import LoaderConfig
from stages.records import Checkpoint, ShardSet
from stages.train.conditioning import Augment, condition, draw_tracks
from stages.train.loop import train
from stages.train.method import Loader, Loss, RngStreams, StepsConfig, TrainableModule, Validation, scheduled
from stages.train.optim import make_optimizer
from stages.train.publish import heldout_batch, open_loader, publish, student_from
from stages.train.sampling import scored_frames

MODULE = "student"


@dataclass(frozen=True)
class RegressionConfig(StepsConfig):
    """The group of settings; a preset sets its fields under `latent_regression`."""

    group: ClassVar[str] = "latent_regression"

    lr: float = 1e-4
    augment: Augment = field(default_factory=Augment)
    heldout_clips: int = 4


@dataclass(frozen=True)
class RegressionRun:
    """What this stage reads; hashed whole into its key."""

    model: ModelConfig
    latent_regression: RegressionConfig


@dataclass(frozen=True)
class RegressionInputs:
    """The records that this stage reads. adapted: the student that training starts from."""

    train: ShardSet
    heldout: ShardSet
    adapted: Checkpoint
    loader: LoaderConfig = field(default_factory=LoaderConfig)


class RegressionMethod:
    """Regression of whole rollouts onto real latents. One trainable module, "student"."""

    name = "latent_regression"

    def __init__(
        self, student: CausalDiT, model: ModelConfig, cfg: RegressionConfig, heldout: Batch, seed: int
    ) -> None:
        self.student, self.model, self.cfg, self.heldout, self.seed = student, model, cfg, heldout, seed
        self.times = flow.student_timesteps(model.student.steps, model.dit.shift)
        self._trainable = TrainableModule(student, make_optimizer(student, cfg))

    def trainable_modules(self) -> dict[str, TrainableModule]:
        return {MODULE: self._trainable}

    def update_schedule(self, step: int) -> tuple[str, ...]:
        return (MODULE,)

    def lr(self, module: str, group: str, step: int) -> float:
        return scheduled(self.cfg.lr, self.cfg, step)

    def loss(self, module: str, batch: Batch, rng: RngStreams) -> Loss:
        batch = batch.to(self.heldout.latents.device)
        exit_step = int(torch.randint(len(self.times), (), generator=rng.shared("exit")))
        return Loss(self.regression(batch, rng, exit_step, grad=True))

    def regression(self, batch: Batch, rng: RngStreams, exit_step: int, grad: bool) -> Tensor:
        """Returns the mean squared distance of a rollout from the clip's latents. Scalar."""
        cond = self.conditioning(batch, rng)
        generator = rng.own("rollout")
        noise, setting = fresh_noise(batch.latents, generator), self.model.student
        x = rollout(self.student, cond, noise, self.times, setting, generator, exit_step=exit_step, grad=grad)
        return losses.regression(x, batch.latents, scored_frames(self.model, x.shape[2]))

    def conditioning(self, batch: Batch, rng: RngStreams) -> Conditioning:
        return condition(batch, draw_tracks(batch, self.cfg.augment, self.model, rng), self.model)

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Measures the same regression on fixed held-out clips."""
        rng = RngStreams(self.seed, step=-1)
        return Validation({"heldout/mse": float(self.regression(self.heldout, rng, len(self.times) - 1, grad=False))})


def fit(cfg: RegressionRun, student: CausalDiT, loader: Loader, heldout: Batch, ctx: Context) -> dict[str, float]:
    """Trains `student` in place (it ends with the averaged weights). Returns the final held-out figures."""
    own = cfg.latent_regression
    return train(
        RegressionMethod(student, cfg.model, own, heldout.to(ctx.device), ctx.seed), loader, own, ctx.seed, ctx
    )


def run(cfg: RegressionRun, inputs: RegressionInputs, ctx: Context) -> Checkpoint:
    """Trains the adapted student and publishes it as the checkpoint "student"."""
    own = cfg.latent_regression
    student = student_from(inputs.adapted, cfg.model).to(ctx.device)
    loader = open_loader((inputs.train,), own.batch, inputs.loader, ctx, own.micro_steps(ctx.world_size))
    metrics = fit(cfg, student, loader, heldout_batch(inputs.heldout, own.heldout_clips), ctx)
    return publish("student", student, own.total_steps, ctx, (inputs.adapted.digest,), metrics, inputs.train)


LATENT_REGRESSION = Stage(
    name="latent_regression", version=1, how="distributed", run=run, resources=Resources(threads=2)
)
