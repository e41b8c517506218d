"""Streaming against the rollout; order of work, controls, text switch, fork and reset."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import pytest
import torch
from einops import rearrange

from msmodel.batch import Conditioning
from msmodel.causal import CausalDiT
from msmodel.rollout import rollout
from msmodel.stream import ChunkStream
from msmodel.tiny_vae import TinyDecoder
from msmodel.tracks import track_ids, track_map
from tests.unit.msmodel.models import conditioning, gaussian, randomise, tiny_config, with_clip

TIMES = (1.0, 0.75, 0.5)
TRACKS = 5


class FakeDecoder:
    """One frame for the first latent frame, then stride_t each; brightness counts the latent frames pushed so far."""

    def __init__(self, vae: FakeVAE):
        self.vae, self.pushed = vae, 0

    def push(self, latents):
        self.vae.events.append("decode")
        counts = []
        for _ in range(latents.shape[2]):
            counts += [self.pushed] * (1 if self.pushed == 0 else self.vae.stride_t)
            self.pushed += 1
        frames = torch.tensor(counts, dtype=torch.float32) * 2 / 255 - 1
        return frames[None, None, :, None, None].expand(1, 3, -1, 4, 6)


class FakeVAE:
    def __init__(self, stride_t: int, events: list[str]):
        self.stride_t, self.events = stride_t, events

    def decoder(self) -> FakeDecoder:
        return FakeDecoder(self)


class LoggingStudent(CausalDiT):
    """A student that notes its clean passes."""

    events: list[str]

    def clean_pass(self, *args, **kwargs):
        self.events.append("clean pass")
        return super().clean_pass(*args, **kwargs)


class Scene:
    """A student, its conditioning, and controls that are a function of the pixel frame."""

    def __init__(self, image: str = "channels", chunks: int = 6, horizon: int = 3):
        self.cfg = tiny_config(image, chunks=horizon)
        self.events: list[str] = []
        self.student = randomise(LoggingStudent(self.cfg))
        self.student.events = self.events
        self.prefix = int(self.cfg.image_alone)
        self.frames = self.prefix + chunks * self.cfg.student.chunk
        self.vae = FakeVAE(self.cfg.vae.stride_t, self.events)
        self.track_id_embedding = track_ids(1, TRACKS, self.cfg.dit.track_id_dim, torch.Generator().manual_seed(4))
        cond = conditioning(self.cfg)
        self.text, self.image = cond.text, cond.image
        self.noise = gaussian(self.cfg, 1, self.frames)
        self.asked: list[tuple[int, int, int]] = []

    def tracks_at(self, first: int, count: int):
        """Points that wander and blink, by absolute pixel frame."""
        g = torch.Generator().manual_seed(0)
        pixels = 1 + (self.frames - 1) * self.cfg.vae.stride_t
        size = torch.tensor([self.cfg.clip.width, self.cfg.clip.height])
        xy = torch.rand(pixels, TRACKS, 2, generator=g) * size
        visible = torch.rand(pixels, TRACKS, generator=g) < 0.7
        return xy[first : first + count], visible[first : first + count]

    def controls(self, index: int, first: int, count: int):
        self.asked.append((index, first, count))
        return self.tracks_at(first, count)

    def session(self, controls=None, noise=None, **kwargs) -> ChunkStream:
        return ChunkStream(
            self.student,
            self.vae,
            controls or self.controls,
            text=self.text,
            image=self.image,
            track_id_embedding=self.track_id_embedding,
            timesteps=TIMES,
            generator=torch.Generator().manual_seed(11),
            noise=self.noise if noise is None else noise,
            **kwargs,
        )

    def whole_clip(self) -> Conditioning:
        xy, visible = self.tracks_at(0, 10_000)
        tail = self.image[:, :, -1:].expand(-1, -1, self.frames - self.image.shape[2], -1, -1)
        return Conditioning(
            text=self.text,
            image=torch.cat((self.image, tail), dim=2),
            tracks=track_map(xy[None], visible[None], self.track_id_embedding, self.cfg),
        )


def take(session: ChunkStream, chunks: int):
    return list(islice(session.stream(), chunks))


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_stream_equals_rollout_beyond_the_horizon(image):
    scene = Scene(image)
    chunks = take(scene.session(), 6)
    expected = rollout(
        scene.student, scene.whole_clip(), scene.noise, TIMES, scene.cfg.student, torch.Generator().manual_seed(11)
    )
    torch.testing.assert_close(torch.cat([c.latents for c in chunks], dim=2), expected, atol=1e-5, rtol=1e-5)
    assert [c.index for c in chunks] == list(range(6))


def test_a_stream_reads_image_tokens_at_every_chunk_and_keeps_them():
    """Over the horizon, under another text, after a reset and in a fork."""
    scene = Scene()
    cfg = with_clip(scene.cfg)
    scene.student = randomise(LoggingStudent(cfg))
    scene.student.events = scene.events
    scene.text = conditioning(cfg).text
    clip = torch.randn(1, 5, cfg.dit.clip_dim, generator=torch.Generator().manual_seed(5))
    session = scene.session(image_tokens=clip)
    chunks = take(session, 6)
    whole = replace(scene.whole_clip(), image_tokens=clip)
    expected = rollout(scene.student, whole, scene.noise, TIMES, cfg.student, torch.Generator().manual_seed(11))
    torch.testing.assert_close(torch.cat([c.latents for c in chunks], dim=2), expected, atol=1e-5, rtol=1e-5)
    for seen, unseen in zip(chunks, take(scene.session(), 6), strict=True):
        assert not torch.allclose(seen.latents, unseen.latents, atol=1e-4)
    session.reset()
    same = [session, session.fork(), scene.session(image_tokens=clip)]
    assert all(torch.equal(take(one, 1)[0].latents, chunks[0].latents) for one in same)
    for one in (*same, blind := scene.session()):
        one.set_text(scene.text.flip(1))
    first, *others = (take(one, 1)[0].latents for one in same)
    assert all(torch.equal(first, other) for other in others)
    assert not torch.allclose(take(blind, 2)[1].latents, first, atol=1e-4)


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_features_of_a_chunk_are_a_slice_of_the_clips(image):
    scene = Scene(image)
    session, whole = scene.session(), scene.whole_clip()
    for index in range(6):
        session.index = index
        first = 0 if index == 0 else scene.prefix + index * scene.cfg.student.chunk
        stop = scene.prefix + (index + 1) * scene.cfg.student.chunk
        own, expected = session._conditioning(first, stop), whole.frames(first, stop)
        assert expected.tracks.any()
        assert torch.equal(own.tracks, expected.tracks)
        assert torch.equal(own.image, expected.image)


@pytest.mark.parametrize(("image", "first"), [("channels", 3), ("first_latent", 5)])
def test_controls_are_asked_once_a_chunk_for_the_frames_that_it_shows(image, first):
    scene = Scene(image)
    chunks = take(scene.session(), 4)
    assert scene.asked == [(0, 0, first), (1, first, 4), (2, first + 4, 4), (3, first + 8, 4)]
    assert [len(c.frames) for c in chunks] == [count for _, _, count in scene.asked]


def test_frames_are_uint8_and_the_decoder_keeps_its_state():
    chunks = take(Scene().session(), 3)
    frames = torch.cat([c.frames for c in chunks])
    assert frames.dtype == torch.uint8
    assert frames.shape[1:] == (4, 6, 3)
    assert rearrange(frames, "T h w c -> T (h w c)")[:, 0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert all(c.seconds_dit > 0 and c.seconds_decode > 0 for c in chunks)


def test_frames_leave_before_the_clean_pass():
    scene = Scene()
    session = scene.session()
    session.next_chunk()
    assert scene.events == ["decode"]
    session.settle()
    session.settle()  # once is enough
    assert scene.events == ["decode", "clean pass"]
    session.next_chunk()
    session.next_chunk()
    assert scene.events == ["decode", "clean pass", "decode", "clean pass", "decode"]


def test_settling_early_or_late_is_the_same():
    scene = Scene()
    session, early = scene.session(), []
    for _ in range(4):
        early.append(session.next_chunk().latents)
        session.settle()
    late = [c.latents for c in take(scene.session(), 4)]
    assert all(torch.equal(a, b) for a, b in zip(early, late, strict=True))


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_decoding_and_settling_at_the_same_time_change_nothing(image):
    """Bit for bit, with a decoder that has a memory and weights of its own."""
    scene = Scene(image)
    scene.vae = randomise(TinyDecoder(scene.cfg.vae, width=8))
    plain, session, beside = take(scene.session(), 5), scene.session(), []
    with ThreadPoolExecutor(1) as other:
        for _ in range(5):
            chunk = session.denoise()
            settling = other.submit(session.settle)
            beside.append(session.decode(chunk))
            settling.result()
    assert_same(plain, beside)
    again = scene.session()
    assert_same(plain, [again.next_chunk(concurrently=True) for _ in range(5)])


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.index == b.index
        assert torch.equal(a.latents, b.latents)
        assert torch.equal(a.frames, b.frames)


def test_memory_is_constant_once_the_cache_is_full():
    scene = Scene(chunks=8)
    session, held = scene.session(), []
    for _ in range(8):
        session.next_chunk()
        session.settle()
        held.append(session.cache_bytes)
    assert held[0] < held[1]
    assert len(set(held[1:])) == 1


def test_reset_replays_and_noise_beyond_the_given_is_drawn():
    scene = Scene()
    session = scene.session(noise=scene.noise[:, :, :8])
    first = take(session, 6)  # two chunks past the given noise
    session.reset()
    again = take(session, 6)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(first, again, strict=True))


def test_a_fork_goes_on_from_here_and_leaves_the_original_alone():
    scene = Scene()
    session = scene.session()
    take(session, 3)
    fork, other = session.fork(), session.fork()
    other.set_text(scene.text + 1)
    different = take(other, 2)
    ours, theirs = take(session, 2), take(fork, 2)
    for a, b, c in zip(ours, theirs, different, strict=True):
        assert torch.equal(a.latents, b.latents)
        assert torch.equal(a.frames, b.frames)
        assert not torch.allclose(a.latents, c.latents)


def test_a_fork_shares_the_weights_of_a_real_decoder_and_not_its_memory():
    scene = Scene()
    tiny = randomise(TinyDecoder(scene.cfg.vae, width=8))
    scene.vae = tiny
    session = scene.session()
    take(session, 2)
    fork = session.fork()
    assert fork.decoder._net is tiny
    forked = take(fork, 2)
    for ours, theirs in zip(take(session, 2), forked, strict=True):
        assert torch.equal(ours.frames, theirs.frames)
        assert ours.frames.float().std() > 1


def test_another_text_acts_from_the_next_chunk_on():
    scene = Scene()
    plain = take(scene.session(), 4)
    session = scene.session()
    switched = take(session, 2)
    session.set_text(scene.text.flip(1) + 1)
    switched += take(session, 2)
    same = [torch.equal(a.latents, b.latents) for a, b in zip(plain, switched, strict=True)]
    assert same == [True, True, False, False]


def test_controls_steer_and_may_return_fewer_tracks():
    scene = Scene()
    scene.student.track_slice.mul_(5)

    def two_points(index, first, count):
        xy, visible = scene.tracks_at(first, count)
        return xy[:, :2], visible[:, :2]

    def same_ids(index, first, count):
        xy, visible = scene.tracks_at(first, count)
        return xy, visible & (torch.arange(TRACKS) < 2)

    all_points, few, hidden = (take(scene.session(c), 2) for c in (None, two_points, same_ids))
    assert torch.equal(few[1].latents, hidden[1].latents)
    assert not torch.allclose(few[1].latents, all_points[1].latents)


def test_bad_controls_and_batches_are_refused():
    scene = Scene()
    with pytest.raises(ValueError, match="controls gave"):
        scene.session(lambda i, f, n: (torch.zeros(n + 1, 1, 2), torch.ones(n, 1, dtype=torch.bool))).next_chunk()
    with pytest.raises(ValueError, match="at most 5"):
        scene.session(lambda i, f, n: (torch.zeros(n, 9, 2), torch.ones(n, 9, dtype=torch.bool))).next_chunk()
    scene.image = scene.image.expand(2, -1, -1, -1, -1)
    with pytest.raises(ValueError, match="one clip"):
        scene.session()


def test_a_refreshed_sink_changes_what_follows_and_nothing_else():
    scene = Scene()
    session = scene.session()
    with pytest.raises(ValueError, match="no chunk yet"):
        session.refresh_sink()
    take(session, 4)
    other = session.fork()
    session.refresh_sink()
    other.settle()
    assert session.cache_bytes == other.cache_bytes
    ours, theirs = take(session, 2), take(other, 2)
    assert [c.index for c in ours] == [c.index for c in theirs] == [4, 5]
    assert not torch.allclose(ours[0].latents, theirs[0].latents)
    session.reset()
    again = scene.session()
    torch.testing.assert_close(take(session, 2)[1].latents, take(again, 2)[1].latents)
