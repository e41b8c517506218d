"""Trains the bidirectional model on one chunk after clean context: a short clip of the chunks in the student's cache.

The short clip consists of the chunk and the clean chunks before it that the student's cache would hold. A teacher that
was trained with a single noise level for a whole clip does not know clean context, and a few minutes of causal
adaptation are not enough for a student that starts from it to learn to use it (docs/adr/0007). A teacher that was
trained in part on such short clips already knows the inputs that the student will get. This is our addition for small
models, after Diffusion Forcing (Chen et al. 2024). It is off at paper scale.

Legend: b batch, z latent channels, t latent frames, k latent frames of a short clip, h w latent size.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from msmodel import flow, losses
from msmodel.batch import Conditioning
from msmodel.cache import ChunkCache
from msmodel.config import ModelConfig
from msmodel.rollout import fresh_noise
from stages.train.conditioning import pick_frames
from stages.train.method import RngStreams


def draw_pieces(batch: int, model: ModelConfig, rng: RngStreams) -> tuple[Tensor, int]:
    """Returns the frames of one short clip per clip (b k, int64), and the number of context frames at its start.

    All short clips of a step have the same length, that of a uniformly sampled chunk. Where the cache is full, each
    clip samples its own chunk.
    """
    own, prefix, cache = model.student, int(model.image_alone), ChunkCache(model.student, (1, 1))
    full = own.sink + own.window
    first = int(torch.randint(model.chunks, (), generator=rng.shared("piece")))
    chunks = torch.full((batch,), first)
    if first >= full:
        chunks = torch.randint(full, model.chunks, (batch,), generator=rng.own("piece"))
    frames = [
        [
            *range(prefix),
            *(prefix + c * own.chunk + f for c in (*cache.attended(int(i)), int(i)) for f in range(own.chunk)),
        ]
        for i in chunks
    ]
    return torch.tensor(frames), len(frames[0]) - own.chunk


def context_loss(
    dit: nn.Module,
    latents: Tensor,
    cond: Conditioning,
    model: ModelConfig,
    rng: RngStreams,
    noise: float,
    weighting: str = "uniform",
) -> Tensor:
    """Returns the flow-matching loss, a scalar, of one chunk of each clip with context given at time 0.

    latents: b z t h w. noise: largest share of noise that the context keeps although its time is 0, because a student's
    own output is never clean.
    """
    frames, context = draw_pieces(latents.shape[0], model, rng)
    latents = pick_frames(latents, frames)
    cond = replace(cond, image=pick_frames(cond.image, frames), tracks=pick_frames(cond.tracks, frames))
    t = flow.sample_t(latents.shape[0], model.dit.shift, rng.own("time")).to(latents.device)
    hidden = noise * torch.rand(latents.shape[0], generator=rng.own("context noise")).to(latents.device)
    eps = fresh_noise(latents, rng.own("noise"))
    scored = torch.arange(latents.shape[2]) >= context
    given = ~scored.to(latents.device)
    noisy = flow.add_noise(latents, eps, torch.where(given, hidden[:, None], t[:, None]))
    v = dit(noisy, torch.where(given, torch.zeros_like(t)[:, None], t[:, None]), cond)
    return losses.flow_matching(v, flow.velocity(latents, eps), t, weighting, scored)
