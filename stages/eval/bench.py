"""Stage BENCH (once): the effect of the cache, our transformer and the small decoder, as ratios of paired timings.

Weights are random, because no timing depends on them, so it needs no trained model. The two functions of a pair
alternate within one run, so that load on the machine slows both. A figure is the median over rounds, a ratio the median
of the rounds' ratios.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msmodel import flow
from msmodel.attention import LayerKV
from msmodel.batch import Conditioning
from msmodel.cache import KV, ChunkCache
from msmodel.causal import CausalDiT, times
from msmodel.config import CLIP_TOKENS, ModelConfig
from msmodel.dit import WanDiT
from msmodel.rollout import generate_chunk, start
from msmodel.tiny_vae import TinyDecoder
from msmodel.track_encoding import clip_ids, encode_tracks
from msmodel.vae import fresh_vae
from stages.contracts import Context, Resources, Stage
from stages.eval.items import Figures, folder_file
from stages.eval.speed import settings
from stages.eval.timing import now
from stages.train.method import at_least
from stages.train.publish import fresh
from stages.train.sampling import Guidance, sample_teacher

Work = Callable[[], Any]


@dataclass(frozen=True)
class BenchConfig:
    """Settings of the timings.

    rounds: timed rounds of each pair, after one to warm up. tracks: number of tracks of the clip whose encoding is
    timed. tiny_width: width of the tiny decoder. jpeg_quality: 0 to 100.
    """

    rounds: int = 9
    tracks: int = 2500
    tiny_width: int = 64
    jpeg_quality: int = 90

    def problems(self) -> list[str]:
        return [f"bench.{p}" for p in at_least(self, {"rounds": 1, "tracks": 1, "tiny_width": 1, "jpeg_quality": 0})]


@dataclass(frozen=True)
class BenchRun:
    """Settings that stage BENCH reads. All of them are hashed into its key."""

    model: ModelConfig
    bench: BenchConfig


class ShiftingCache(ChunkCache):
    """A ChunkCache that copies all its contents at every chunk, as a shifted buffer would, with the same attention."""

    def write(self, i: int, kv: KV) -> None:
        super().write(i, kv)
        self._pinned = {slot: _copy(held) for slot, held in self._pinned.items()}
        self._window = {slot: (chunk, _copy(held)) for slot, (chunk, held) in self._window.items()}


def _copy(kv: KV) -> KV:
    return KV(tuple(LayerKV(layer.key.clone(), layer.value.clone()) for layer in kv.layers))


def run(cfg: BenchRun, inputs: None, ctx: Context) -> Figures:
    """Writes bench.json {settings, pairs: {name: {a_ms, b_ms, ratio}}, parts: {name: ms}} and logs its figures."""
    bench = Bench(cfg, ctx)
    out: dict[str, Any] = {"settings": settings(ctx), "pairs": {}, "parts": {}}
    jobs: Mapping[str, Callable[[], tuple[Work, Work]]] = {
        "recomputed_over_cached": bench.recomputed_and_cached,
        "shifting_over_cached": bench.shifted_and_cached,
        "diffusers_over_ours_forward": lambda: bench.diffusers_and_ours(train=False),
        "diffusers_over_ours_training": lambda: bench.diffusers_and_ours(train=True),
        "teacher_step_over_rollout": bench.teacher_and_student,
        "rgb_vae_over_head_tracks": bench.rgb_vae_and_head,
    }
    with ctx.progress("bench", len(jobs) + 1) as progress:
        for name, job in jobs.items():
            out["pairs"][name] = paired(*job(), cfg.bench.rounds, ctx.device)
            progress.advance(note=name)
        out["parts"] = {name: alone(work, cfg.bench.rounds, ctx.device) for name, work in bench.parts().items()}
        progress.advance()
    for name, pair in out["pairs"].items():
        ctx.log(f"{name}: {pair['a_ms']:.1f} / {pair['b_ms']:.1f} ms = {pair['ratio']:.2f}")
    for name, ms in out["parts"].items():
        ctx.log(f"{name}: {ms:.1f} ms")
    ctx.emit(0, {name: pair["ratio"] for name, pair in out["pairs"].items()})
    ctx.emit(0, {f"{name}_ms": ms for name, ms in out["parts"].items()})
    file = folder_file(ctx.workdir, "bench.json")
    Path(file).write_text(json.dumps(out, indent=1))
    ctx.artifact(Path(file))
    return Figures("bench", file)


def paired(a: Work, b: Work, rounds: int, device: torch.device) -> dict[str, float]:
    """Returns the median milliseconds of both functions, called alternately, and the median of a / b."""
    a(), b()
    turns = np.array([(timed(a, device), timed(b, device)) for _ in range(rounds)])
    return {
        "a_ms": float(np.median(turns[:, 0])),
        "b_ms": float(np.median(turns[:, 1])),
        "ratio": float(np.median(turns[:, 0] / turns[:, 1])),
    }


def alone(work: Work, rounds: int, device: torch.device) -> float:
    """Returns the median milliseconds of one function."""
    work()
    return float(np.median([timed(work, device) for _ in range(rounds)]))


def timed(work: Work, device: torch.device) -> float:
    """Returns the milliseconds of one call, including all device work that it queues."""
    began = now(device)
    work()
    return 1000 * (now(device) - began)


class Bench:
    """Models and inputs of one benchmark: batch 1, fixed seed."""

    def __init__(self, cfg: BenchRun, ctx: Context) -> None:
        self.model, self.bench, self.device = cfg.model, cfg.bench, ctx.device
        student = fresh(CausalDiT, cfg.model, 0)
        assert isinstance(student, CausalDiT)
        self.dtype = ctx.dtype
        self.student = student.to(ctx.device, self.dtype).eval()
        self.generator = torch.Generator().manual_seed(0)
        self.steps = flow.student_timesteps(cfg.model.student.steps, cfg.model.dit.shift)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def latents(self, frames: int) -> Tensor:
        m = self.model
        return self.normal(1, m.vae.z_channels, frames, m.latent_height, m.latent_width)

    def conditioning(self, frames: int) -> Conditioning:
        m, size = self.model, (frames, self.model.latent_height, self.model.latent_width)
        image = self.normal(1, m.mask_channels + m.image_channels or m.vae.z_channels, *size)
        text, tracks = self.normal(1, m.text.length, m.text.dim), self.normal(1, m.track_feature_channels, *size)
        image_tokens = self.normal(1, CLIP_TOKENS, m.dit.clip_dim) if m.dit.clip_dim else None
        return Conditioning(text, image, tracks, image_tokens)

    def chunk_with(self, cache_type: type[ChunkCache]) -> Work:
        """Returns a function that generates one chunk with a full cache: denoising steps, clean pass and write."""
        own, student = self.model.student, self.student
        cond, noise = self.conditioning(own.chunk + int(self.model.image_alone)), self.latents(own.chunk)
        cond_of_chunk = cond.frames(cond.image.shape[2] - own.chunk, cond.image.shape[2])
        with torch.no_grad():
            text = student.text_keys_values(cond.text, cond.image_tokens)
            student.cache_type = cache_type
            cache = start(student, cond, own, text)
            student.cache_type = ChunkCache

        @torch.no_grad()
        def one() -> None:
            context = cache.context(cache.written)
            x = generate_chunk(student, noise, cond_of_chunk, context, self.steps, self.generator, text=text)
            cache.write(cache.written, student.clean_pass(x, cond_of_chunk, context, text))

        for _ in range(own.sink + own.window + 1):
            one()
        return one

    def recomputed_and_cached(self) -> tuple[Work, Work]:
        """Returns two functions that generate a chunk, without and with a cache.

        Without a cache, every step runs over all attended frames.
        """
        own = self.model.student
        frames = (own.sink + own.window + 1) * own.chunk + int(self.model.image_alone)
        cond, noise = self.conditioning(frames), self.latents(frames)

        @torch.no_grad()
        def recomputed() -> None:
            for t in self.steps:
                self.student(noise, times(noise, t), cond)

        return recomputed, self.chunk_with(ChunkCache)

    def shifted_and_cached(self) -> tuple[Work, Work]:
        """Returns two functions that generate a chunk, with a ShiftingCache and with a ChunkCache."""
        return self.chunk_with(ShiftingCache), self.chunk_with(ChunkCache)

    def teacher_and_student(self) -> tuple[Work, Work]:
        """Returns two functions: one of the teacher's 50 steps of joint guidance, and the student's whole rollout.

        Both are of one clip, DiT only. The ratio of throughputs is 50 times the ratio of these.
        """
        m = self.model
        cond, noise = self.conditioning(m.latent_frames), self.latents(m.latent_frames)
        chunk = self.chunk_with(ChunkCache)

        def teacher() -> None:
            sample_teacher(self.student, cond, noise, 1, Guidance(), m)

        def student() -> None:
            for _ in range(m.chunks):
                chunk()

        return teacher, student

    def rgb_vae_and_head(self) -> tuple[Work, Work]:
        """Returns two functions that encode one clip's tracks, by the RGB VAE and by the head (paper: 1053 and 25 ms).

        Weights are random.
        """
        m, n = self.model, self.bench.tracks
        size = torch.tensor([m.clip.width, m.clip.height], device=self.device)
        xy_px = torch.rand(1, 1, n, 2, generator=self.generator).to(self.device) * size + self.normal(
            1, m.clip.frames, n, 2
        )
        visible = torch.ones(1, m.clip.frames, n, dtype=torch.bool, device=self.device)
        vae = fresh_vae(m.vae).to(self.device)

        def by(encoding: str) -> Work:
            model = replace(m, dit=replace(m.dit, track_encoding=encoding, track_offsets=False))
            track_id_embedding = clip_ids(1, n, model, self.generator).to(self.device)
            head = fresh(WanDiT, replace(model, dit=replace(model.dit, layers=1)), 0).track_head.to(
                self.device, self.dtype
            )

            @torch.no_grad()
            def work() -> None:
                head(encode_tracks(xy_px, visible, track_id_embedding, model, vae).to(self.dtype))

            return work

        return by("rgb_vae"), by("head")

    def diffusers_and_ours(self, train: bool) -> tuple[Work, Work]:
        """Returns two functions that run the bidirectional model on one clip, that of diffusers and ours.

        train: forward and backward, else forward only.
        """
        ours = fresh(WanDiT, self.model, 0).to(self.device, self.dtype).train(train)
        theirs = diffusers_twin(ours).to(self.device, self.dtype).train(train)
        cond, noisy = self.conditioning(self.model.latent_frames), self.latents(self.model.latent_frames)
        t = torch.full((1,), 0.7, device=self.device)
        given = torch.cat([noisy, *([] if self.model.image_alone else [cond.image])], dim=1).to(self.dtype)
        text, tracks = cond.text.to(self.dtype), cond.tracks.to(self.dtype)
        image_tokens = None if cond.image_tokens is None else cond.image_tokens.to(self.dtype)

        def through(forward: Callable[[], Tensor]) -> Work:
            def work() -> None:
                with torch.set_grad_enabled(train):
                    out = forward()
                if train:
                    out.square().mean().backward()

            return work

        def diffusers() -> Tensor:
            return theirs(torch.cat([given, ours.track_head(tracks)], dim=1), 1000 * t, text, image_tokens).sample

        return through(diffusers), through(lambda: ours(noisy, t, cond))

    def parts(self) -> dict[str, Work]:
        """Returns further functions by name: the student's chunk, its decoding with the tiny VAE, its frames as JPEG."""
        import cv2

        m = self.model
        decoder = TinyDecoder(replace(m.vae), self.bench.tiny_width).to(self.device).eval().decoder()
        latents = self.latents(m.student.chunk)
        frames = decoder.push(latents)
        pictures = ((frames[0].permute(1, 2, 3, 0).cpu() + 1) * 127.5).byte().numpy()
        quality = [cv2.IMWRITE_JPEG_QUALITY, self.bench.jpeg_quality]

        def encode() -> None:
            for picture in pictures:
                cv2.imencode(".jpg", picture, quality)

        return {
            "student_chunk": self.chunk_with(ChunkCache),
            "tiny_vae_chunk": lambda: decoder.push(latents),
            "jpeg_chunk": encode,
        }


def diffusers_twin(ours: WanDiT) -> Any:
    """Returns diffusers' model with the same sizes and weights; it reads our track features as plain input channels."""
    from diffusers import WanTransformer3DModel

    d, m = ours.cfg.dit, ours.cfg
    twin: Any = WanTransformer3DModel(
        patch_size=d.patch,
        num_attention_heads=d.heads,
        attention_head_dim=d.dim // d.heads,
        in_channels=m.in_channels,
        out_channels=m.vae.z_channels,
        text_dim=m.text.dim,
        freq_dim=d.freq_dim,
        ffn_dim=d.ffn_dim,
        num_layers=d.layers,
        eps=d.eps,
        image_dim=d.clip_dim or None,
        added_kv_proj_dim=d.dim if d.clip_dim else None,
    )
    twin.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("track_head.")})
    return twin


BENCH = Stage("eval_bench", version=2, how="once", run=run, resources=Resources(cpus=2, threads=2))
