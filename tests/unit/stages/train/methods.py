"""Each training method at its smallest: the same call trains it, fresh or resumed, in any folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import nn

from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig, VAEConfig
from msmodel.dit import WanDiT
from msmodel.nano.patch_vae import PatchVAE
from stages.records import OdePairs
from stages.train import adapt, base, dmd, teacher, tiny_vae, vae
from stages.train.conditioning import Augment
from stages.train.ode_pairs import HELDOUT, TRAIN, OdeConfig, OdeRun, PairLoader, heldout_pairs, make_pairs
from stages.train.publish import fresh
from stages.train.vae_footage import Footage
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import FakeFrames, FakeLoader, clips, decode, frame_batch, tiny_model

AUGMENT = Augment(tracks_low=4, tracks_high=12, text_dropout=0.2, track_dropout=0.2, mask=0.5)
QUICK = {"batch": 2, "log_steps": 1, "lr": 1e-3, "validate_steps": 2, "picture_clips": 1}


def alive(kind: type[WanDiT], model: ModelConfig, seed: int = 0) -> WanDiT:
    """Fresh weights with the zero-initialised parts filled in, so that every input matters."""
    dit = fresh(kind, model, seed)
    g = torch.Generator().manual_seed(seed)
    fresh_branch = [layer.attn2.add_v_proj.weight.data for layer in dit.layers if model.dit.clip_dim]
    for weight in (dit.proj_out.weight.data, dit.track_slice, *fresh_branch):
        weight.copy_(0.1 * torch.randn(weight.shape, generator=g))
    return dit


def frozen(dit: WanDiT) -> WanDiT:
    return dit.eval().requires_grad_(False)


def teacher_config(**changes) -> teacher.TeacherConfig:
    settings = QUICK | {"group_steps": 1, "phase1_steps": 2, "phase2_steps": 1, "phase2_lr": 1e-4}
    settings |= {"augment": AUGMENT, "probe_clips": 2, "picture_steps": 2, "weighting": "uniform"}
    return teacher.TeacherConfig(**(settings | changes))


def train_base(ctx: FakeContext, model: ModelConfig, **changes) -> nn.Module:
    cfg = base.BaseConfig(**(QUICK | {"steps": 4, "probe_clips": 2, "picture_steps": 2} | changes))
    dit = fresh(WanDiT, model, 0)
    base.fit(base.BaseRun(model, cfg), dit, FakeLoader(model), clips(model, 2, seed=99), decode, ctx)
    return dit


def train_teacher(ctx: FakeContext, model: ModelConfig, **changes) -> nn.Module:
    dit = alive(WanDiT, model)
    cfg = teacher.TeacherRun(model, teacher_config(**changes))
    teacher.fit(cfg, dit, FakeLoader(model), clips(model, 2, seed=99), decode, ctx)
    return dit


def ode_run(model: ModelConfig) -> OdeRun:
    return OdeRun(model, OdeConfig(pairs=4, heldout_pairs=2, batch=2, solver_steps=6, augment=AUGMENT))


@lru_cache(maxsize=4)
def pairs_in(folder: Path, model: ModelConfig) -> OdePairs:
    cfg, dit, ctx = ode_run(model), frozen(alive(WanDiT, model)), FakeContext(folder)
    for split, count in ((TRAIN, 4), (HELDOUT, 2)):
        make_pairs(dit, FakeLoader(model), split, count, folder, cfg, ctx)
    return OdePairs(str(folder), 4, (1.0,), "")


def train_adapt(ctx: FakeContext, model: ModelConfig, **changes) -> nn.Module:
    folder = ctx.workdir.parent / "pairs"
    folder.mkdir(exist_ok=True)
    pairs = pairs_in(folder, model)
    cfg = adapt.AdaptConfig(**(QUICK | {"steps": 4, "heldout_pairs": 2} | changes))
    student = alive(CausalDiT, model)
    assert isinstance(student, CausalDiT)
    loader = PairLoader(pairs, cfg.batch, model, ctx.seed, ctx.rank, ctx.world_size)
    adapt.fit(adapt.AdaptRun(model, cfg), student, loader, heldout_pairs(pairs, 2, model), decode, ctx)
    return student


def dmd_config(**changes) -> dmd.DmdConfig:
    settings = QUICK | {"steps": 4, "ratio": 2, "critic_lr": 1e-3, "augment": AUGMENT, "heldout_clips": 2}
    return dmd.DmdConfig(**(settings | changes))


def train_dmd(ctx: FakeContext, model: ModelConfig, **changes) -> nn.Module:
    generator, critic = alive(CausalDiT, model, 1), alive(WanDiT, model, 2)
    assert isinstance(generator, CausalDiT)
    cfg = dmd.DmdRun(model, dmd_config(**changes))
    real = frozen(alive(WanDiT, model, 3))
    dmd.fit(cfg, generator, critic, real, FakeLoader(model), clips(model, 2, seed=99), decode, ctx)
    return nn.ModuleDict({"generator": generator, "critic": critic})


def tiny_config(**changes) -> tiny_vae.TinyVAEConfig:
    settings = QUICK | {"steps": 4, "width": 2, "latent_frames": 4, "side_px": 8, "fit_clips": 0}
    return tiny_vae.TinyVAEConfig(**(settings | {"heldout_clips": 2} | changes))


def train_tiny_vae(ctx: FakeContext, model: ModelConfig, **changes) -> nn.Module:
    run = tiny_vae.TinyVAERun(model, tiny_config(adversarial_weight=0.1, **changes))
    decoder = tiny_vae.initial_decoder(run, frame_batch(model, 2, 0), ctx.seed)
    tiny_vae.fit(run, decoder, FakeFrames(model), frame_batch(model, 2, 99), ctx)
    return decoder


class FakeFootage:
    """Noise in place of videos."""

    def batch(self, items: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(items, 3, 5, 16, 16, generator=generator) * 2 - 1


def train_vae(ctx: FakeContext, model: ModelConfig, **changes) -> nn.Module:
    cfg = vae.VAETrainConfig(**({k: v for k, v in QUICK.items() if k != "picture_clips"} | {"steps": 4} | changes))
    footage = cast(Footage, FakeFootage())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        patch_vae = PatchVAE(VAEConfig("random", 4, 2, 4), 8, 1)
    vae.fix_encoder(patch_vae, footage, 4, 0)
    loader = vae.FootageLoader(footage, cfg.batch, ctx.seed, ctx.rank)
    vae.fit(vae.VAERun(patch_vae.cfg, cfg, 16, 16), patch_vae, loader, footage.batch(2, torch.Generator()), ctx)
    return patch_vae


Train = Callable[..., nn.Module]
METHODS: dict[str, Train] = {
    "base": train_base,
    "teacher": train_teacher,
    "adapt": train_adapt,
    "dmd": train_dmd,
    "tiny_vae": train_tiny_vae,
    "vae": train_vae,
}


def small(image: str = "channels") -> ModelConfig:
    """The tiny model on a 16x16 picture: four tokens a frame, for tests that train."""
    model = tiny_model(image)
    return replace(model, clip=replace(model.clip, height=16, width=16))


def seeing() -> ModelConfig:
    """The same, with the branch that reads CLIP's tokens."""
    model = small()
    return replace(model, dit=replace(model.dit, clip_dim=20))


def saying(null: str) -> ModelConfig:
    """The same as `small`, with another text.null."""
    model = small()
    return replace(model, text=replace(model.text, null=null))
