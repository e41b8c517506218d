"""Stage TEACHER: trains a pretrained image-to-video DiT to follow tracks (MotionStream, sections 3.1 and 3.2).

Three phases of flow matching:
  groups  frame 0 and a few random later latent frames: large displacements in cheap steps; control appears here, and
          carries over to whole clips within seconds (our addition for small models; off at paper scale);
  clips   whole clips;
  masked  whole clips with mid-frame masking, the track head frozen, a lower learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from msmodel import flow
from msmodel.batch import Batch
from msmodel.config import ModelConfig
from msmodel.nano.matching import lacking, match_tracks
from msmodel.rollout import fresh_noise
from stages.contracts import Context, Resources, Stage
from stages.data.loader import LoaderConfig
from stages.records import Checkpoint, ShardSet
from stages.train.conditioning import Augment, condition, draw_tracks, training_conditioning
from stages.train.context import context_loss
from stages.train.groups import GroupedConfig, frame_groups
from stages.train.loop import train
from stages.train.method import Loader, Loss, RngStreams, TrainableModule, Validation, at_least, scheduled
from stages.train.optim import make_optimizer
from stages.train.publish import frozen_decoder, heldout_batch, initial_dit, open_loader, publish
from stages.train.sampling import Decode, contact_sheet_of_latents, first_conditions, flow_loss, sample_teacher


class LoaderThenLoader:
    """Yields the batches of `first` for `steps` steps of micro_steps batches each, then those of `then`, endlessly.

    It is a method.Loader.
    """

    def __init__(self, first: Loader, then: Loader, steps: int, micro_steps: int) -> None:
        self.first, self.then, self.steps, self.micro_steps = first, then, steps, micro_steps
        self._taken = 0  # batches yielded on this rank

    def __iter__(self) -> Iterator[Any]:
        for batches in (islice(self.first, max(0, self.steps * self.micro_steps - self._taken)), self.then):
            for batch in batches:
                self._taken += 1
                yield batch

    def metrics(self) -> dict[str, float]:
        """Returns the sums of both loaders' figures."""
        then = self.then.metrics()
        return {name: value + then[name] for name, value in self.first.metrics().items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the position at the end of a step, the same for any number of ranks."""
        return {
            "steps": self._taken // self.micro_steps,
            "first": self.first.state_dict(),
            "then": self.then.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._taken = int(state["steps"]) * self.micro_steps
        self.first.load_state_dict(state["first"])
        self.then.load_state_dict(state["then"])


Phase = Literal["groups", "clips", "masked"]
PROBE_TIMES = (0.95, 0.8)
ALARM = "gap/t095"  # the effect of tracks at a time at which noise leaves little other information
WEIGHTINGS = ("uniform", "bell")
TRACK_INITS = ("zero", "matching")


@dataclass(frozen=True)
class TeacherConfig(GroupedConfig):
    """Settings of the teacher's training.

    Paper, Wan 2.1: phase 1 of 4,800 steps at 1e-5, phase 2 of 800 at 1e-6, batch 128.

    init: source of the backbone if there is no base checkpoint: "embedded:nano", a folder or file, a hub id
    (msmodel/io/backbones.py defines what can be read), or "random". strict_init: refuse weights with missing or unknown
    tensors. track_init: "zero" leaves the backbone's function unchanged at step 0, as in the paper; "matching" gives it
    an attention head that attends to equal ids (msmodel/nano/matching.py), for small models that would learn this late
    or never.
    """

    group: ClassVar[str] = "teacher"

    init: str = "embedded:nano"
    strict_init: bool = True
    track_init: str = "zero"
    phase1_steps: int = 4800  # steps of phase 1, on whole clips, after the groups
    phase2_steps: int = 800  # steps of phase 2, which masks tracks of chunks
    lr: float = 1e-5  # learning rate of phase 1
    phase2_lr: float = 1e-6  # learning rate of phase 2
    weighting: str = "bell"  # weighting of the loss over time: "bell" or "uniform"
    context_share: float = (
        0.0  # share of the steps after the groups that train on clean context (stages/train/context.py)
    )
    context_noise: float = 0.1  # largest share of noise that this context keeps
    augment: Augment = field(default_factory=Augment)
    probe_clips: int = 8  # held-out clips of the paired loss gap
    picture_clips: int = 2  # held-out clips on the contact sheet
    picture_steps: int = 10  # Euler steps for contact sheets

    @property
    def total_steps(self) -> int:
        return self.group_steps + self.phase1_steps + self.phase2_steps

    def phase(self, step: int) -> Phase:
        """Returns the phase of `step` (from 0)."""
        if self.grouped(step):
            return "groups"
        return "clips" if step < self.group_steps + self.phase1_steps else "masked"

    def checks(self) -> list[str]:
        least = dict.fromkeys(("probe_clips", "picture_steps"), 1) | dict.fromkeys(
            ("phase1_steps", "phase2_steps", "phase2_lr"), 0
        )
        out = super().checks() + at_least(self, least)
        out += [f"augment.{p}" for p in self.augment.problems()]
        for name in ("context_share", "context_noise"):
            if not 0.0 <= vars(self)[name] <= 1.0:
                out.append(f"{name}: {vars(self)[name]} is not within 0..1")
        if self.track_init not in TRACK_INITS:
            out.append(f"track_init: {self.track_init!r} is not one of {', '.join(TRACK_INITS)}")
        if self.weighting not in WEIGHTINGS:
            out.append(f"weighting: {self.weighting!r} is not one of {', '.join(WEIGHTINGS)}")
        if not 0 <= self.picture_clips <= self.probe_clips:
            out.append(f"picture_clips: {self.picture_clips} is not within 0..probe_clips ({self.probe_clips})")
        return out


@dataclass(frozen=True)
class Phase1Config(TeacherConfig):
    """Settings of the phase-1 teacher of `make nano-base`. It trains from the base on groups and whole clips."""

    group: ClassVar[str] = "phase1"


@dataclass(frozen=True)
class ContextConfig(TeacherConfig):
    """Settings of the training that follows phase 1 in `make nano-base`, half of its steps with clean context."""

    group: ClassVar[str] = "phase1_context"


@dataclass(frozen=True)
class TeacherRun:
    """Settings that stage TEACHER reads. All of them are hashed into its key."""

    model: ModelConfig
    teacher: TeacherConfig

    def problems(self) -> list[str]:
        lack = lacking(self.model) if self.teacher.track_init == "matching" else ""
        fixes = f"{self.teacher.group}.track_init: matching: {lack}; set {self.teacher.group}.track_init=zero"
        return self.teacher.problems() + ([fixes] if lack else [])


@dataclass(frozen=True)
class TeacherInputs:
    """Inputs of stage TEACHER. base: weights to start from instead of teacher.init (the result of stage BASE)."""

    train: ShardSet
    heldout: ShardSet
    base: Checkpoint | None = None
    loader: LoaderConfig = field(default_factory=LoaderConfig)


@dataclass(frozen=True, kw_only=True)
class TwoSetInputs(TeacherInputs):
    """Inputs of stage TEACHER with a set of its own for phase 2. phase2: replaces `train` there.

    It is a type of its own, because the absence of phase2 must not change a step's key.
    """

    phase2: ShardSet


class TeacherMethod:
    """Flow matching with tracks. It trains one module, "dit"; its optimizer's group "head" is the track head."""

    name = "teacher"

    def __init__(self, dit: nn.Module, model: ModelConfig, cfg: TeacherConfig, probe: Probe) -> None:
        self.dit, self.model, self.cfg, self.probe = dit, model, cfg, probe
        self._trainable = TrainableModule(dit, make_optimizer(dit, cfg, head="track_head."))

    def trainable_modules(self) -> dict[str, TrainableModule]:
        return {"dit": self._trainable}

    def update_schedule(self, step: int) -> tuple[str, ...]:
        return ("dit",)

    def lr(self, module: str, group: str, step: int) -> float:
        masked = self.cfg.phase(step) == "masked"
        if masked and group == "head":
            return 0.0  # frozen: AdamW's decay is a multiple of the learning rate too
        return scheduled(self.cfg.phase2_lr if masked else self.cfg.lr, self.cfg, step)

    def loss(self, module: str, batch: Batch, rng: RngStreams) -> Loss:
        phase = self.cfg.phase(rng.step)
        device = next(self.dit.parameters()).device
        batch = batch.to(device)
        cond = training_conditioning(batch, self.cfg.augment, self.model, rng, masked=phase == "masked")
        latents = batch.latents
        if phase != "groups" and float(torch.rand((), generator=rng.shared("context"))) < self.cfg.context_share:
            noise, weighting = self.cfg.context_noise, self.cfg.weighting
            return Loss(context_loss(self.dit, latents, cond, self.model, rng, noise, weighting))
        if phase == "groups":
            latents, cond = self.cfg.draw_groups(latents, cond, rng)
        t = flow.sample_t(latents.shape[0], self.model.dit.shift, rng.own("time")).to(device)
        eps = fresh_noise(latents, rng.own("noise"))
        return Loss(flow_loss(self.dit, latents, cond, t, eps, self.model, self.cfg.weighting))

    def validate(self, step: int) -> Validation:
        pictures = {}
        if self.cfg.phase(step) != "groups" and self.cfg.picture_clips:
            pictures["teacher"] = self.probe.picture(self.dit, self.cfg.picture_clips, self.cfg.picture_steps)
        gaps = self.probe.gaps(self.dit)
        return Validation(gaps, pictures, self.alarms(step, gaps))

    def alarms(self, step: int, gaps: Mapping[str, float]) -> tuple[str, ...]:
        """Returns a warning if tracks do not lower the held-out loss, from the middle of the training on."""
        if 2 * step < self.cfg.total_steps or gaps[ALARM] > 0:
            return ()
        return (
            f"tracks do not lower the held-out loss ({ALARM} {gaps[ALARM]:+.4f}): the teacher ignores them; train longer, "
            f"with more {self.cfg.group}.group_steps, or from {self.cfg.group}.track_init=matching",
        )


class Probe:
    """Measures the paired loss gap: held-out losses with and without tracks.

    Clips, noise and times are the same at every call. The loss of a step does not show control; this gap does, as it
    measures the effect of the tracks. A Probe also makes contact sheets of these clips.
    """

    def __init__(self, heldout: Batch, model: ModelConfig, augment: Augment, decode: Decode, seed: int) -> None:
        rng = RngStreams(seed, step=-1)
        self.model, self.decode = model, decode
        self.latents = heldout.latents
        self.cond = condition(heldout, draw_tracks(heldout, augment, model, rng), model)
        self.eps = fresh_noise(heldout.latents, rng.own("noise"))
        self.group_latents, self.group_cond = frame_groups(self.latents, self.cond, 1, 1, rng.own("groups"))
        self.group_eps = self.eps[:, :, :2]

    @torch.no_grad()
    def gaps(self, dit: nn.Module) -> dict[str, float]:
        """Returns heldout/tXXX, the loss with tracks, and gap/tXXX, the loss without tracks minus that with tracks.

        The same figures of groups of two frames are named heldout/group_tXXX and gap/group_tXXX.
        """
        out: dict[str, float] = {}
        inputs = {
            "": (self.latents, self.eps, self.cond),
            "group_": (self.group_latents, self.group_eps, self.group_cond),
        }
        for prefix, (latents, eps, cond) in inputs.items():
            for time in PROBE_TIMES:
                t = torch.full((latents.shape[0],), time, device=latents.device)
                given = float(flow_loss(dit, latents, cond, t, eps, self.model))
                blind = float(flow_loss(dit, latents, cond.without_tracks(), t, eps, self.model))
                name = f"{prefix}t{round(100 * time):03d}"
                out |= {f"heldout/{name}": given, f"gap/{name}": blind - given}
        return out

    def picture(self, dit: nn.Module, clips: int, steps: int) -> np.ndarray:
        """Returns a contact sheet: for each clip the real one, then sampled with and without tracks (no guidance)."""
        cond, noise = first_conditions(self.cond, clips), self.eps[:clips]
        sampled = sample_teacher(dit, cond, noise, steps, None, self.model)
        blind = sample_teacher(dit, cond.without_tracks(), noise, steps, None, self.model)
        return contact_sheet_of_latents(
            {"real": self.latents[:clips], "tracks": sampled, "no tracks": blind}, self.decode
        )


def fit(
    cfg: TeacherRun, dit: nn.Module, loader: Loader, heldout: Batch, decode: Decode, ctx: Context
) -> dict[str, float]:
    """Trains `dit` in place and leaves it with the averaged weights. Returns the last held-out figures."""
    probe = Probe(heldout.to(ctx.device), cfg.model, cfg.teacher.augment, decode, ctx.seed)
    return train(TeacherMethod(dit, cfg.model, cfg.teacher, probe), loader, cfg.teacher, ctx.seed, ctx)


def run(cfg: TeacherRun, inputs: TeacherInputs, ctx: Context) -> Checkpoint:
    """Returns checkpoint "teacher": the averaged weights, with the held-out loss gaps as metrics."""
    dit, start = initial_dit(cfg.model, cfg.teacher.init, inputs.base, ctx.seed, cfg.teacher.strict_init)
    for line in start.lines() if start else ():
        ctx.log(line)
    if cfg.teacher.track_init == "matching":
        match_tracks(dit, torch.Generator().manual_seed(ctx.seed))
    dit = dit.to(ctx.device)
    cfg.teacher.set_checkpointing(dit)
    loader = open_phases(cfg.teacher, inputs, ctx)
    heldout = heldout_batch(inputs.heldout, cfg.teacher.probe_clips)
    metrics = fit(cfg, dit, loader, heldout, frozen_decoder(cfg.model.vae, ctx.device), ctx)
    parents = tuple(c.digest for c in (inputs.base,) if c)
    phase2 = inputs.phase2 if isinstance(inputs, TwoSetInputs) else None
    return publish("teacher", dit, cfg.teacher.total_steps, ctx, parents, metrics, inputs.train, start, phase2)


def open_phases(cfg: TeacherConfig, inputs: TeacherInputs, ctx: Context) -> Loader:
    """Returns this rank's loader of the batches of all phases."""
    micro_steps = cfg.micro_steps(ctx.world_size)
    loader = open_loader((inputs.train,), cfg.batch, inputs.loader, ctx, micro_steps)
    if not isinstance(inputs, TwoSetInputs):
        return loader
    sets = (inputs.train, inputs.phase2)
    ctx.log(
        "; ".join(
            f"{name} trains on {s.clips} clips, {s.split}" for name, s in zip(("phase 1", "phase 2"), sets, strict=True)
        )
    )
    phase2 = open_loader((inputs.phase2,), cfg.batch, inputs.loader, ctx, micro_steps)
    return LoaderThenLoader(loader, phase2, cfg.total_steps - cfg.phase2_steps, micro_steps)


TEACHER = Stage(name="teacher", version=2, how="distributed", run=run, resources=Resources(threads=2))
