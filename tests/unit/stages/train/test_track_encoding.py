"""The ablation dit.track_encoding=rgb_vae through the trainings and the evaluation's conditioning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from stages.train import base, dmd
from stages.train.conditioning import Augment, condition, draw_tracks, training_conditioning
from stages.train.method import RngStreams
from stages.train.ode_pairs import TRAIN, make_pairs, pair_path, read_pairs
from stages.train.publish import fresh
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import FakeLoader, clips, decode
from tests.unit.stages.train.methods import alive, dmd_config, frozen, ode_run, small, train_teacher


def rgb(image: str = "channels") -> ModelConfig:
    model = small(image)
    return replace(model, dit=replace(model.dit, track_encoding="rgb_vae"))


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_the_teacher_trains_through_its_phases(image, tmp_path):
    model, ctx = rgb(image), FakeContext(tmp_path)
    start = alive(WanDiT, model).track_slice
    end = train_teacher(ctx, model, ema_decay=0.0).track_slice
    assert not torch.equal(start, end)
    assert len(ctx.series("loss/dit")) == 4
    assert any(abs(gap) > 1e-6 for gap in ctx.series("gap/t095"))


def test_ids_are_colours_and_dropped_or_masked_tracks_are_zeros():
    model = rgb()
    whole = Augment(tracks_low=20, tracks_high=20, text_dropout=0.0, track_dropout=0.0, mask=1.0)
    batch, rng = clips(model, 4), RngStreams(0, 0, 0)
    drawn = draw_tracks(batch, whole, model, rng)
    assert drawn.track_id_embedding.shape == (4, 20, 3)
    cond = condition(batch, drawn, model)
    assert cond.tracks.shape == batch.latents.shape
    masked = training_conditioning(batch, whole, model, rng, masked=True).tracks
    assert torch.equal(masked[:, :, :1], cond.tracks[:, :, :1]) and not masked[:, :, 1:].any()
    dropped = training_conditioning(batch, replace(whole, track_dropout=1.0), model, rng, masked=False)
    assert not dropped.tracks.any()


def test_ode_pairs_keep_the_colours(tmp_path):
    model = rgb()
    loader, ctx, cfg = FakeLoader(model), FakeContext(tmp_path), ode_run(model)
    make_pairs(frozen(alive(WanDiT, model)), loader, TRAIN, 2, tmp_path, cfg, ctx)
    back = read_pairs([pair_path(tmp_path, TRAIN, i) for i in range(2)], model)
    batch = clips(model, 2, seed=1)
    given = condition(batch, draw_tracks(batch, cfg.ode.augment, model, RngStreams(ctx.seed, 0, 0)), model)
    torch.testing.assert_close(back.cond.tracks, given.tracks, atol=2e-3, rtol=0)  # colours in float16


def test_dmd_trains_both_learners():
    model = rgb()
    run = dmd.DmdRun(model, dmd_config(picture_clips=0))
    generator, critic = alive(CausalDiT, model, 1), alive(WanDiT, model, 2)
    assert isinstance(generator, CausalDiT)
    method = dmd.DmdMethod(run, generator, critic, frozen(alive(WanDiT, model, 3)), clips(model, 2, 99), decode, 0)
    for name, module in (("generator", generator), ("critic", critic)):
        method.loss(name, clips(model, 2), RngStreams(0, 0, 0)).value.backward()
        grad = module.patch_embedding.weight.grad
        assert grad is not None and grad[:, -model.track_channels :].norm() > 0


def test_the_base_is_published_without_track_channels():
    model = rgb()
    dit = fresh(WanDiT, model, 0)
    bare = base.backbone(dit)
    assert bare.patch_embedding.weight.shape[1] == model.in_channels - model.vae.z_channels
    assert torch.equal(bare.patch_embedding.weight, dit.patch_embedding.weight[:, : -model.vae.z_channels])
