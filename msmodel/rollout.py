"""Generates chunk after chunk with the rolling cache: the one sampler shared by training and streaming.

A chunk starts from noise. At each of the K times t_1 = 1 > ... > t_K the student predicts v, hence x_0 = x_t - t v;
between steps fresh noise is added to x_0 for the next time. A last pass at t = 0 over the finished chunk yields the
keys and values that later chunks read. Gradient flows through the exit step only; all context is detached.

Source: MotionStream section 3.3; Self Forcing (Huang et al. 2025), algorithm 1.

Legend: b batch, z latent channels, t latent frames, h w latent size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from msmodel.batch import Conditioning
from msmodel.cache import ChunkCache, Context
from msmodel.causal import CausalDiT, TextKV, times
from msmodel.config import StudentConfig
from msmodel.flow import add_noise, x0_from_velocity


def fresh_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Samples Gaussian noise with the shape, type and device of `like`, on the generator's own device."""
    return torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def predict_x0(
    student: CausalDiT, noisy: Tensor, t: Tensor, cond: Conditioning, context: Context, text: TextKV | None = None
) -> Tensor:
    """Returns the student's estimate of the clean chunk (b z t h w) from its state `noisy` at time t (b)."""
    v, _ = student(noisy, t, cond, context, text)
    return x0_from_velocity(noisy, v, t)


def generate_chunk(
    student: CausalDiT,
    noise: Tensor,
    cond: Conditioning,
    context: Context,
    timesteps: Sequence[float],
    generator: torch.Generator,
    *,
    text: TextKV | None = None,
    exit_step: int | None = None,
    grad: bool = False,
) -> Tensor:
    """Generates one chunk from noise (b z t h w) and returns its x_0 (b z t h w).

    timesteps: descending, the first 1. exit_step: index of the step whose x_0 is returned (the last by default); the
    steps before it run without gradient, the exit step with gradient if `grad`. generator: samples the noise between
    steps. text: cached cross-attention of the passes without gradient. Raises ValueError for an exit step that does not
    exist.
    """
    last = len(timesteps) - 1 if exit_step is None else exit_step
    if not 0 <= last < len(timesteps):
        raise ValueError(f"exit step {exit_step} is not one of the {len(timesteps)} denoising steps (counted from 0)")
    x, at = noise, [times(noise, t) for t in timesteps]
    for step in range(last):
        with torch.no_grad():
            x0 = predict_x0(student, x, at[step], cond, context, text)
            x = add_noise(x0, fresh_noise(x0, generator), at[step + 1])
    with torch.set_grad_enabled(grad):
        return predict_x0(student, x, at[last], cond, context, None if grad else text)


@torch.no_grad()
def start(student: CausalDiT, cond: Conditioning, cfg: StudentConfig, text: TextKV | None = None) -> ChunkCache:
    """Returns a cache ready for chunk 0: empty, or holding the clean image latent where that precedes the chunks."""
    cache = student.new_cache(cond.tracks, cfg)
    if cache.prefix:
        first = cond.frames(0, cache.prefix)
        cache.write_prefix(student.clean_pass(first.image, first, Context((), 0), text))
    return cache


def chunk_spans(frames: int, cfg: StudentConfig, prefix: int) -> list[tuple[int, int]]:
    """Returns (start, stop) latent frames of every chunk of a clip. Raises ValueError if the chunks do not fill it."""
    if (frames - prefix) % cfg.chunk:
        raise ValueError(f"{frames} latent frames are not {prefix} + a multiple of student.chunk = {cfg.chunk}")
    return [(f, f + cfg.chunk) for f in range(prefix, frames, cfg.chunk)]


def rollout(
    student: CausalDiT,
    cond: Conditioning,
    noise: Tensor,
    timesteps: Sequence[float],
    cfg: StudentConfig,
    generator: torch.Generator,
    *,
    exit_step: int | None = None,
    grad: bool = False,
    clean_context: Tensor | None = None,
) -> Tensor:
    """Generates latents (b z t h w) from noise (b z t h w), chunk after chunk, of any length, also beyond the horizon.

    cond: the conditioning of all frames of `noise`. cfg: sink and window to use (chunk as the student's). exit_step,
    grad: as in `generate_chunk`, with one exit step for all chunks. clean_context: latents (b z t h w) that fill the
    cache instead of the student's own output. Where the image precedes the chunks, frame 0 is returned as given in
    cond.image.
    """
    with torch.no_grad():
        text = student.text_keys_values(cond.text, cond.image_tokens)
    cache = start(student, cond, cfg, text)
    done = [cond.image[:, :, : cache.prefix].to(noise.dtype)] if cache.prefix else []
    spans = chunk_spans(noise.shape[2], cfg, cache.prefix)
    for i, (first, stop) in enumerate(spans):
        own, context = cond.frames(first, stop), cache.context(i)
        x0 = generate_chunk(
            student, noise[:, :, first:stop], own, context, timesteps, generator,
            text=text, exit_step=exit_step, grad=grad,
        )  # fmt: skip
        done.append(x0)
        if i + 1 < len(spans):  # nothing reads the last chunk's keys and values
            clean = x0 if clean_context is None else clean_context[:, :, first:stop]
            cache.write(i, student.clean_pass(clean.detach(), own, context, text))
    return torch.cat(done, dim=2)


def teacher_forced_contexts(
    student: CausalDiT, clean: Tensor, cond: Conditioning, cfg: StudentConfig
) -> Iterator[tuple[int, int, Context]]:
    """Yields (start, stop, context) of every chunk of the clean latents (b z t h w), from which the cache is filled."""
    with torch.no_grad():
        text = student.text_keys_values(cond.text, cond.image_tokens)
    cache = start(student, cond, cfg, text)
    spans = chunk_spans(clean.shape[2], cfg, cache.prefix)
    for i, (first, stop) in enumerate(spans):
        context = cache.context(i)
        yield first, stop, context
        if i + 1 < len(spans):
            kv = student.clean_pass(clean[:, :, first:stop].detach(), cond.frames(first, stop), context, text)
            cache.write(i, kv)


def denoise_chunks(
    student: CausalDiT, states: Tensor, t: Tensor, cond: Conditioning, clean_context: Tensor, cfg: StudentConfig
) -> Tensor:
    """Returns x_0 predictions (b z t h w), with gradient, for noisy states (b z t h w) at times t (b, chunks).

    Chunk i attends to the clean chunks in the sink and window of `cfg` (teacher forcing, detached), never to a noisy
    one. This is causal adaptation's forward pass, with the same cache as the rollout.
    """
    done = []
    for i, (first, stop, context) in enumerate(teacher_forced_contexts(student, clean_context, cond, cfg)):
        done.append(predict_x0(student, states[:, :, first:stop], t[:, i], cond.frames(first, stop), context))
    if student.cfg.image_alone:
        done.insert(0, cond.image[:, :, :1].to(states.dtype))
    return torch.cat(done, dim=2)
