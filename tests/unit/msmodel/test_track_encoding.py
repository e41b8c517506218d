"""Both track encodings: colours and discs, pieces against the whole clip, sessions apart, and the model that reads latents."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from msmodel import guidance
from msmodel.causal import CausalDiT
from msmodel.config import ClipConfig, ModelConfig
from msmodel.dit import WanDiT
from msmodel.flow import student_timesteps
from msmodel.rollout import rollout
from msmodel.stream import ChunkStream
from msmodel.track_encoding import DISC_RADIUS, TrackEncoder, canvas, clip_ids, colours, encode_tracks
from msmodel.tracks import ID_RANGE, track_map
from tests.unit.msmodel.models import conditioning, gaussian, randomise, tiny_config
from tests.unit.msmodel.vaes import LAYOUTS, PATCH, patch_vae, wan_vae

CPU = torch.device("cpu")


class NoDecoder:
    def decoder(self):
        return self

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 3, 1, 1, 1)


def rgb(cfg: ModelConfig) -> ModelConfig:
    return replace(cfg, dit=replace(cfg.dit, track_encoding="rgb_vae"))


def model_for(layout: str, frames: int = 17) -> ModelConfig:
    """2 x 3 latent pixels of a VAE family."""
    vae = PATCH if layout == "patch" else LAYOUTS[layout][1]
    clip = ClipConfig(height=2 * vae.stride_s, width=3 * vae.stride_s, frames=frames, fps=8.0)
    return replace(rgb(tiny_config()), vae=vae, clip=clip)


def wandering(cfg: ModelConfig, batch: int = 1, n: int = 6, seed: int = 0):
    """Points that wander and blink, some out of the frame: (b T n 2), (b T n)."""
    g = torch.Generator().manual_seed(seed)
    size = torch.tensor([cfg.clip.width, cfg.clip.height])
    start = torch.rand(batch, 1, n, 2, generator=g) * size * 1.2 - 0.1 * size
    walk = torch.randn(batch, cfg.clip.frames, n, 2, generator=g).cumsum(dim=1)
    return start + walk, torch.rand(batch, cfg.clip.frames, n, generator=g) < 0.8


def test_every_id_has_a_colour_of_its_own_that_is_not_black():
    found = colours(torch.arange(ID_RANGE))
    assert len(found.unique(dim=0)) == ID_RANGE
    assert found.min() == -0.5 and found.max() <= 1


def test_a_disc_is_the_pixels_whose_centres_it_covers():
    cfg = model_for("wan21", frames=1)
    xy = torch.tensor(
        [[[[8.5, 5.5], [20.2, 11.9], [0.5, 0.5], [12.0, float("nan")], [24.5, 4.0], [9.5, 5.5], [5.0, 12.0]]]]
    )
    visible = torch.tensor([[[True] * 6 + [False]]])
    colour = colours(torch.arange(1, 8) * 1000)[None]
    found = canvas(xy, visible, colour, cfg)
    expected = torch.full((3, cfg.clip.height, cfg.clip.width), -1.0)
    for k in (0, 1, 2, 5):  # not: NaN, right of the frame, invisible; the last drawn lies on top
        for i in range(cfg.clip.height):
            for j in range(cfg.clip.width):
                x, y = xy[0, 0, k].tolist()
                if (j + 0.5 - x) ** 2 + (i + 0.5 - y) ** 2 <= (DISC_RADIUS * 8) ** 2:
                    expected[:, i, j] = colour[0, k]
    assert torch.equal(found[0, :, 0], expected)
    assert (found[0, :, 0] == colour[0, 5][:, None, None]).all(dim=0).sum() == 29  # a whole disc of radius 3


def test_the_head_is_given_the_track_map():
    cfg = tiny_config()
    xy, visible = wandering(cfg, 2)
    track_id_embedding = clip_ids(2, 6, cfg, torch.Generator().manual_seed(1))
    assert track_id_embedding.shape == (2, 6, cfg.dit.track_id_dim)
    assert torch.equal(
        encode_tracks(xy, visible, track_id_embedding, cfg), track_map(xy, visible, track_id_embedding, cfg)
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["wan21", "wan22", "patch", "head"])
def test_pieces_of_a_clip_are_slices_of_the_whole(layout: str):
    """Also when two streams take turns."""
    cfg = tiny_config(chunks=4) if layout == "head" else model_for(layout)
    vae = None if layout == "head" else patch_vae() if layout == "patch" else wan_vae(layout)
    s, frames, n = cfg.vae.stride_t, cfg.clip.frames, 6
    streams = []
    for seed in (1, 2):
        track_id_embedding = clip_ids(1, n, cfg, torch.Generator().manual_seed(seed))
        streams.append((*wandering(cfg, 1, n, seed), track_id_embedding, TrackEncoder(cfg, CPU, vae), []))
    for start, stop in ((0, 1 + s), (1 + s, 1 + 3 * s), (1 + 3 * s, frames)):
        for xy, visible, track_id_embedding, encoder, parts in streams:
            parts.append(encoder.push(xy[:, start:stop], visible[:, start:stop], track_id_embedding))
    for xy, visible, track_id_embedding, _, parts in streams:
        whole = encode_tracks(xy, visible, track_id_embedding, cfg, vae)
        assert whole.shape == (1, cfg.track_feature_channels, cfg.latent_frames, cfg.latent_height, cfg.latent_width)
        assert whole.std() > 0.01
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=0)


def test_clips_do_not_mix_and_a_fork_goes_its_own_way():
    cfg, vae = model_for("wan21", frames=9), wan_vae("wan21")
    (xy, visible), track_id_embedding = (
        wandering(cfg, 2),
        clip_ids(2, 6, model_for("wan21"), torch.Generator().manual_seed(1)),
    )
    both = encode_tracks(xy, visible, track_id_embedding, cfg, vae)
    for i in range(2):
        alone = encode_tracks(xy[i, None], visible[i, None], track_id_embedding[i, None], cfg, vae)
        torch.testing.assert_close(both[i, None], alone, atol=1e-5, rtol=0)
    encoder = TrackEncoder(cfg, CPU, vae)
    encoder.push(xy[:1, :5], visible[:1, :5], track_id_embedding[:1])
    fork = encoder.fork()
    fork.push(xy[1:, 5:], visible[1:, 5:], track_id_embedding[1:])
    assert fork._vae is vae
    torch.testing.assert_close(
        encoder.push(xy[:1, 5:], visible[:1, 5:], track_id_embedding[:1]), both[:1, :, 2:], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_the_model_reads_latents_without_a_head_and_starts_blind(image: str):
    cfg = rgb(tiny_config(image))
    torch.manual_seed(0)
    model = WanDiT(cfg)
    torch.nn.init.normal_(model.proj_out.weight)
    assert not any("track_head" in name for name in model.state_dict())
    assert cfg.in_channels == cfg.vae.z_channels * (3 if image == "channels" else 2) + cfg.mask_channels
    assert model.track_slice.shape[1] == cfg.vae.z_channels
    cond, noisy, t = conditioning(cfg, 2), gaussian(cfg, 2), torch.tensor([0.5, 0.8])
    with torch.no_grad():
        assert torch.equal(model(noisy, t, cond), model(noisy, t, cond.without_tracks()))
    model(noisy, t, cond).square().mean().backward()
    assert model.patch_embedding.weight.grad[:, -cfg.vae.z_channels :].norm() > 1e-4


@torch.no_grad()
def test_joint_guidance_gives_one_branch_no_tracks():
    cfg = rgb(tiny_config())
    model, cond, noisy = randomise(WanDiT(cfg)), conditioning(cfg), gaussian(cfg)
    t = torch.tensor([0.7])
    parts = [model(noisy, t, c) for c in (cond, cond.without_text(), cond.without_tracks())]
    expected = guidance.combine(*parts, 3.0, 1.5)
    torch.testing.assert_close(guidance.joint(model, noisy, t, cond, 3.0, 1.5), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_a_stream_equals_the_rollout(image: str):
    """The canvas is encoded chunk by chunk in the one and whole in the other, by an encoder that remembers."""
    cfg, vae, n = rgb(tiny_config(image, chunks=4)), wan_vae("wan21"), 5
    frames = 1 + 4 * (cfg.latent_frames - 1)
    cfg = replace(cfg, vae=vae.cfg, clip=ClipConfig(height=16, width=32, frames=frames, fps=8.0))
    student, cond, noise = randomise(CausalDiT(cfg)), conditioning(cfg), gaussian(cfg)
    (xy, visible), track_id_embedding = wandering(cfg, 1, n), clip_ids(1, n, cfg, torch.Generator().manual_seed(4))
    times = student_timesteps(cfg.student.steps, cfg.dit.shift)
    session = ChunkStream(
        student, NoDecoder(), lambda index, first, count: (xy[0, first : first + count], visible[0, first : first + count]),
        text=cond.text, image=cond.image, track_id_embedding=track_id_embedding, timesteps=times,
        generator=torch.Generator().manual_seed(0), noise=noise,
        track_vae=vae,
    )  # fmt: skip
    first = session.next_chunk()
    fork = session.fork()
    streamed = [first, *islice(session.stream(), cfg.chunks - 1)]
    given = replace(cond, tracks=encode_tracks(xy, visible, track_id_embedding, cfg, vae))
    expected = rollout(student, given, noise, times, cfg.student, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cat([c.latents for c in streamed], dim=2), expected, atol=1e-5, rtol=1e-4)
    blind = rollout(student, given.without_tracks(), noise, times, cfg.student, torch.Generator().manual_seed(0))
    assert (blind - expected).abs().max() > 0.01
    torch.testing.assert_close(fork.next_chunk().latents, streamed[1].latents, atol=1e-6, rtol=0)
    session.reset()
    torch.testing.assert_close(session.next_chunk().latents, first.latents, atol=1e-6, rtol=0)


def test_settings_that_do_not_fit_are_reported():
    cfg = tiny_config()
    assert rgb(cfg).problems() == cfg.problems() == []
    wrong = replace(cfg, dit=replace(cfg.dit, track_encoding="rgb"))
    assert wrong.problems() == ["dit.track_encoding: 'rgb' is not one of head, rgb_vae"]
    both = replace(rgb(cfg), dit=replace(rgb(cfg).dit, track_offsets=True))
    assert [p.split(":")[0] for p in both.problems()] == ["dit.track_offsets"]
