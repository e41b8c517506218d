"""Pieces with clean context: which frames, where the noise is, what the loss counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stages.train.conditioning import condition, draw_tracks
from stages.train.context import context_loss, draw_pieces
from stages.train.method import RngStreams
from tests.unit.stages.train.fakes import clips, tiny_model
from tests.unit.stages.train.methods import teacher_config


def test_a_steady_piece_is_sink_window_and_chunk():
    model = tiny_model()
    frames, context = next(p for s in range(40) if (p := draw_pieces(6, model, RngStreams(0, s)))[1] == 2)
    assert context == 2
    for sink, window, chunk in frames.tolist():
        assert (sink, window) == (0, chunk - 1)
        assert chunk >= 2


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_pieces_of_a_step_have_one_length_and_their_own_chunks(image):
    model = tiny_model(image)
    lengths, last = set(), set()
    for step in range(40):
        frames, context = draw_pieces(5, model, RngStreams(0, step))
        assert frames.shape == (5, context + model.student.chunk)
        assert (frames.diff(dim=1) > 0).all()
        assert (frames[:, 0] == 0).all()  # the sink, or the image alone
        lengths.add(frames.shape[1])
        last |= set(frames[:, -1].tolist())
    prefix = int(model.image_alone)
    assert lengths == {1 + prefix, 2 + prefix, 3 + prefix}
    assert last == set(range(prefix, model.latent_frames))


class Recorder(torch.nn.Module):
    def forward(self, noisy, t, cond):
        self.noisy, self.t, self.cond = noisy, t, cond
        return torch.zeros_like(noisy, requires_grad=True)


def seen(noise: float, model=None, seed: int = 0):
    model = model or tiny_model()
    batch = clips(model, 4)
    cond = condition(batch, draw_tracks(batch, teacher_config().augment, model, RngStreams(0, 0)), model)
    rng = RngStreams(0, seed)
    dit = Recorder()
    loss = context_loss(dit, batch.latents, cond, model, rng, noise)
    frames, context = draw_pieces(4, model, rng)
    return dit, batch, cond, frames, context, loss


def test_context_is_clean_at_time_0_and_the_chunk_is_noisy_at_its_own():
    for seed in range(6):
        dit, batch, cond, frames, context, _ = seen(0.0, seed=seed)
        own = torch.stack([batch.latents[i][:, f] for i, f in enumerate(frames)])
        assert torch.equal(dit.noisy[:, :, :context], own[:, :, :context])
        assert not torch.isclose(dit.noisy[:, :, context:], own[:, :, context:]).all()
        assert (dit.t[:, :context] == 0).all()
        assert (dit.t[:, context:] > 0).all() and dit.t[:, -1].unique().numel() == 4
        assert torch.equal(dit.cond.tracks[1], cond.tracks[1][:, frames[1]])


def test_the_context_keeps_a_little_noise_that_nobody_tells():
    seed = next(s for s in range(20) if seen(0.0, seed=s)[4])
    clean, *_ = seen(0.0, seed=seed)
    dit, *_, context, _ = seen(0.2, seed=seed)
    difference = (dit.noisy - clean.noisy)[:, :, :context].std()
    assert 0 < difference < 0.4
    assert torch.equal(dit.t, clean.t)
    assert torch.equal(dit.noisy[:, :, context:], clean.noisy[:, :, context:])


def test_only_the_noisy_chunk_counts():
    dit, batch, _, frames, context, loss = seen(0.0, seed=3)
    t = dit.t[:, -1].view(-1, 1, 1, 1, 1)
    own = torch.stack([batch.latents[i][:, f] for i, f in enumerate(frames)])[:, :, context:]
    eps = (dit.noisy[:, :, context:] - (1 - t) * own) / t
    torch.testing.assert_close(loss, (eps - own).square().mean(), rtol=1e-3, atol=1e-4)


def test_a_share_beyond_one_is_refused():
    assert any("context_share" in p for p in replace(teacher_config(), context_share=1.5).checks())
