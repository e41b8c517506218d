"""The tiny VAE's training and its loader of pixels."""

from __future__ import annotations

import pytest
import torch

from stages.train import tiny_vae
from stages.train.frames import FrameLoader
from stages.train.method import RngStreams
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import FakeFrames, frame_batch
from tests.unit.stages.train.methods import small, tiny_config
from tests.unit.stages.train.shards import shard_set


def test_a_crop_shows_the_same_place_in_latents_and_pixels():
    model = small()
    batch = frame_batch(model, 2, 0)
    latents, video = batch.crop(4, 8, model.vae, torch.Generator().manual_seed(1))
    assert latents.shape == (2, 16, 4, 2, 2)
    assert video.shape == (2, 3, 7, 8, 8)
    assert torch.allclose(video[:, :, 0, ::4, ::4], latents[:, :3, 0], atol=0.01)  # both show the same colours
    assert torch.allclose(video[:, :, 1::2, 1::4, 2::4], latents[:, :3, 1:], atol=0.01)
    whole, all_of_it = batch.crop(0, 0, model.vae, torch.Generator())
    assert torch.equal(whole, batch.latents)
    assert all_of_it.shape == (2, 3, 13, 16, 16)


def test_crops_move_about():
    model, batch = small(), frame_batch(small(), 1, 0)
    places = {float(batch.crop(1, 8, model.vae, RngStreams(0, s).own("crop"))[0].sum()) for s in range(20)}
    assert len(places) == 9


def test_gradient_loss_sees_edges_and_not_brightness():
    video = torch.rand(1, 3, 2, 16, 16)
    assert float(tiny_vae.gradient_loss(video + 0.3, video)) == pytest.approx(0.0, abs=1e-6)
    assert float(tiny_vae.gradient_loss(torch.zeros_like(video), video)) > 0.01


def test_psnr_rises(tmp_path):
    model, ctx = small(), FakeContext(tmp_path)
    run = tiny_vae.TinyVAERun(model, tiny_config(steps=20, lr=1e-2, batch=4, validate_steps=1, picture_clips=0))
    decoder = tiny_vae.initial_decoder(run, frame_batch(model, 2, 0), 0)
    tiny_vae.fit(run, decoder, FakeFrames(model), frame_batch(model, 2, 99), ctx)
    psnr = ctx.series("heldout/psnr")
    assert psnr[-1] > psnr[0] + 1
    assert [e.module for e in ctx.engines] == [decoder]  # no discriminator at weight 0


def test_least_squares_start_is_better_than_none():
    model, batch = small(), frame_batch(small(), 4, 0)
    losses = []
    for clips in (0, 4):
        run = tiny_vae.TinyVAERun(model, tiny_config(fit_clips=clips))
        latents, video = batch.crop(0, 0, model.vae, torch.Generator())
        decoder = tiny_vae.initial_decoder(run, batch, 0)
        losses.append(float((decoder.decode(latents) - video).abs().mean()))
    assert losses[1] < 0.2 * losses[0]


def test_adversarial_losses_reach_their_own_side_only():
    model, batch = small(), frame_batch(small(), 2, 0)
    run = tiny_vae.TinyVAERun(model, tiny_config(adversarial_weight=1.0, gradient_weight=0.0))
    decoder = tiny_vae.initial_decoder(run, batch, 0)
    method = tiny_vae.TinyVAEMethod(decoder, run, batch, 0)
    assert method.update_schedule(0) == ("decoder", "discriminator")
    assert method.discriminator is not None
    method.loss("decoder", batch, RngStreams(0, 0)).value.backward()
    assert all(p.grad is None for p in method.discriminator.parameters())
    decoder.zero_grad(set_to_none=True)
    method.loss("discriminator", batch, RngStreams(0, 0)).value.backward()
    assert all(p.grad is None for p in decoder.parameters())
    assert all(p.grad is not None for p in method.discriminator.parameters())


def test_loader_takes_every_clip_once_an_epoch_and_resumes(tmp_path):
    shards = shard_set(tmp_path, small(), shards=2, per_shard=3)

    def seen(loader, batches):
        it = iter(loader)
        return [tuple(float(x.sum()) for x in next(it).latents) for _ in range(batches)]

    order = seen(FrameLoader((shards,), 2, 0, 0, 1), 6)
    flat = [x for pair in order for x in pair]
    assert len(set(flat[:6])) == 6
    assert set(flat[:6]) == set(flat[6:])
    first = FrameLoader((shards,), 2, 0, 0, 1)
    seen(first, 2)
    late = FrameLoader((shards,), 2, 0, 0, 1)
    late.load_state_dict(first.state_dict())
    assert seen(late, 4) == order[2:]


def test_ranks_take_different_shards(tmp_path):
    shards = shard_set(tmp_path, small(), shards=2, per_shard=3)
    sums = [{float(x.sum()) for x in next(iter(FrameLoader((shards,), 3, 0, rank, 2))).latents} for rank in range(2)]
    assert not sums[0] & sums[1]
    with pytest.raises(ValueError, match=r"2 shards in .* for 3 ranks"):
        FrameLoader((shards,), 3, 0, 0, 3)


def test_config_problems():
    fields = [p.split(":")[0] for p in tiny_config(width=0, latent_frames=1).problems()]
    assert fields == ["tiny_vae.width", "tiny_vae.latent_frames"]
