"""The tiny VAE's training and its loader of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msmodel.tiny_vae import TinyDecoderSession
from stages.data.loader import LoaderConfig
from stages.train import frames, tiny_vae
from stages.train.frames import CropSize, FrameBatch, FrameLoader, place_crop
from stages.train.method import RngStreams
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import FakeFrames, frame_batch
from tests.unit.stages.train.methods import small, tiny_config
from tests.unit.stages.train.shards import shard_set

ALONE, RNG = LoaderConfig(decode_workers=0), RngStreams(0, 0)


def whole(model) -> CropSize:
    return CropSize(model.vae)


def test_a_crop_shows_the_same_place_in_latents_and_pixels():
    model = small()
    batch = frame_batch(model, 1, 0)
    latents, frames = batch.latents[0].numpy(), batch.frames[0].numpy()
    seen = set()
    for number in range(40):
        crop = place_crop(CropSize(model.vae, 3, 8), latents.shape[1:], torch.Generator().manual_seed(number))
        pixels = crop.of_pixels(frames[list(crop.pixel_frames(model.vae.stride_t))], model.vae.stride_s)
        own = FrameBatch(
            torch.from_numpy(crop.of_latents(latents))[None], torch.from_numpy(pixels)[None], torch.ones(1)
        )
        assert own.latents.shape == (1, 16, 3, 2, 2)
        assert own.video().shape == (1, 3, 5, 8, 8)
        assert torch.allclose(own.video()[:, :, 0::2, ::4, ::4], own.latents[:, :3], atol=0.01)  # the same colours
        assert torch.allclose(own.video()[:, :, 1::2, 1::4, 2::4], own.latents[:, :3, 1:], atol=0.01)
        seen.add((crop.frames.start, crop.rows.start, crop.columns.start))
    assert {start for start, _, _ in seen} == set(range(5))  # crops begin anywhere in the clip
    assert {(row, column) for _, row, column in seen} == {(y, x) for y in range(3) for x in range(3)}


def test_only_the_frames_of_the_crop_are_decoded(tmp_path, monkeypatch):
    """And none of the other pixels reach the training."""
    model, asked = small(), []
    shards = shard_set(tmp_path, model, shards=1, per_shard=2, lossless=False)

    def decode(data, wanted=None):
        asked.append(wanted)
        return np.zeros((len(wanted), 16, 16, 3), np.uint8)

    monkeypatch.setattr(frames, "decode_mp4", decode)
    batch = next(iter(FrameLoader((shards,), 2, 0, 0, 1, CropSize(model.vae, 2, 8), ALONE)))
    assert batch.frames.shape == (2, 3, 8, 8, 3) and batch.latents.shape == (2, 16, 2, 2, 2)
    assert [len(wanted) for wanted in asked] == [3, 3]
    assert [bool(b) for b in batch.begins] == [wanted.start == 0 for wanted in asked]


def test_crops_depend_on_seed_epoch_and_clip_only(tmp_path):
    shards = shard_set(tmp_path, small(), shards=2, per_shard=3)
    size = CropSize(small().vae, 2, 8)

    def crops(seed, batch, workers=0):
        cfg = LoaderConfig(decode_workers=workers)
        it = iter(FrameLoader((shards,), batch, seed, 0, 1, size, cfg))
        return [float(x.sum()) for _ in range(12 // batch) for x in next(it).latents]

    first = crops(0, 2)
    assert first == crops(0, 3)  # two epochs of six clips
    assert set(first[:6]).isdisjoint(first[6:]) and first != crops(1, 2)


@pytest.mark.slow
def test_processes_that_decode_ahead_change_no_crop(tmp_path):
    shards = shard_set(tmp_path, small(), shards=2, per_shard=3)
    size = CropSize(small().vae, 2, 8)
    batches = []
    for workers in (0, 4):  # no more than the two shards bear
        it = iter(FrameLoader((shards,), 2, 0, 0, 1, size, LoaderConfig(decode_workers=workers)))
        batches.append([next(it) for _ in range(4)])
    assert all(
        torch.equal(a.frames, b.frames) and torch.equal(a.latents, b.latents) for a, b in zip(*batches, strict=True)
    )


def test_the_first_frame_of_a_crop_within_a_clip_is_not_scored():
    model, batch = small(), frame_batch(small(), 2, 0)
    run = tiny_vae.TinyVAERun(model, tiny_config())
    method = tiny_vae.TinyVAEMethod(tiny_vae.initial_decoder(run, batch, 0), run, batch, 0, torch.device("cpu"))
    spoilt = batch.frames.clone()
    spoilt[1, 0] = 255 - spoilt[1, 0]

    def loss(frames, begins):
        value = method.loss("decoder", FrameBatch(batch.latents, frames, torch.tensor(begins)), RNG).value
        return float(value.detach())

    assert loss(batch.frames, [True, True]) != loss(spoilt, [True, True])
    assert loss(batch.frames, [True, False]) == loss(spoilt, [True, False])


@pytest.mark.parametrize("module", ["decoder", "discriminator"])
def test_losses_of_bfloat16_weights_are_float32_and_near(module):
    """A GPU's engine makes the weights bfloat16; latents and pixels stay float32."""
    model, batch = small(), frame_batch(small(), 2, 0)
    run = tiny_vae.TinyVAERun(model, tiny_config(adversarial_weight=0.1))
    method = tiny_vae.TinyVAEMethod(tiny_vae.initial_decoder(run, batch, 0), run, batch, 0, torch.device("cpu"))
    exact = method.loss(module, batch, RNG).value
    for trainable in method.trainable_modules().values():
        trainable.module.bfloat16()
    rounded = method.loss(module, batch, RNG).value
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    assert method.validate(0).metrics["heldout/psnr"] > 0


def test_a_validation_decodes_one_clip_and_a_few_frames_at_a_time(monkeypatch):
    model, batch = small(), frame_batch(small(), 3, 0)
    run = tiny_vae.TinyVAERun(model, tiny_config(picture_clips=1))
    decoder = tiny_vae.initial_decoder(run, batch, 0)
    made = decoder.decode(batch.latents)
    sizes = []
    push = TinyDecoderSession.push
    monkeypatch.setattr(TinyDecoderSession, "push", lambda self, z: sizes.append(tuple(z.shape[:3:2])) or push(self, z))
    seen = tiny_vae.TinyVAEMethod(decoder, run, batch, 0, torch.device("cpu")).validate(0)
    assert set(sizes) == {(1, 2), (1, 1)}
    assert seen.metrics["heldout/l1"] == pytest.approx(float((made - batch.video()).abs().mean()), rel=1e-5)


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
        decoder = tiny_vae.initial_decoder(run, batch, 0)
        losses.append(float((decoder.decode(batch.latents) - batch.video()).abs().mean()))
    assert losses[1] < 0.2 * losses[0]


def test_adversarial_losses_reach_their_own_side_only():
    model, batch = small(), frame_batch(small(), 2, 0)
    run = tiny_vae.TinyVAERun(model, tiny_config(adversarial_weight=1.0, gradient_weight=0.0))
    decoder = tiny_vae.initial_decoder(run, batch, 0)
    method = tiny_vae.TinyVAEMethod(decoder, run, batch, 0, torch.device("cpu"))
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

    order = seen(FrameLoader((shards,), 2, 0, 0, 1, whole(small()), ALONE), 6)
    flat = [x for pair in order for x in pair]
    assert len(set(flat[:6])) == 6
    assert set(flat[:6]) == set(flat[6:])
    first = FrameLoader((shards,), 2, 0, 0, 1, whole(small()), ALONE)
    seen(first, 2)
    late = FrameLoader((shards,), 2, 0, 0, 1, whole(small()), ALONE)
    late.load_state_dict(first.state_dict())
    assert seen(late, 4) == order[2:]


def test_ranks_take_different_shards(tmp_path):
    shards = shard_set(tmp_path, small(), shards=2, per_shard=3)
    sums = [
        {float(x.sum()) for x in next(iter(FrameLoader((shards,), 3, 0, rank, 2, whole(small()), ALONE))).latents}
        for rank in range(2)
    ]
    assert not sums[0] & sums[1]
    with pytest.raises(ValueError, match=r"2 shards in .* for 3 ranks"):
        FrameLoader((shards,), 3, 0, 0, 3, whole(small()), ALONE)


def test_config_problems():
    fields = [p.split(":")[0] for p in tiny_config(width=0, latent_frames=1).problems()]
    assert fields == ["tiny_vae.width", "tiny_vae.latent_frames"]
