"""Fakes for the training stages: a tiny model, clips in memory, a context in a folder, a plain engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from msmodel.batch import Batch
from msmodel.config import CLIP_TOKENS, ClipConfig, DiTConfig, ModelConfig, StudentConfig, TextConfig, VAEConfig
from stages.train.frames import FrameBatch


def tiny_model(image: str = "channels") -> ModelConfig:
    """32x32 pixels, 13 frames, 7 latent frames (13 and 1 + 6 with the image alone), two narrow layers."""
    return ModelConfig(
        clip=ClipConfig(height=32, width=32, frames=13, fps=24.0),
        vae=VAEConfig(source="embedded:nano", z_channels=16, stride_t=2, stride_s=4),
        text=TextConfig(source="embedded:minilm", dim=12, length=3),
        dit=DiTConfig(
            dim=32, ffn_dim=64, heads=2, layers=2, freq_dim=32, image=image, track_channels=4, track_id_dim=8, shift=3.0
        ),
        student=StudentConfig(chunk=1, sink=1, window=1, steps=3),
    )


def clips(model: ModelConfig, count: int, seed: int = 0, tracks: int = 20) -> Batch:
    """`count` random clips with moving tracks, as the loader would give them."""
    g = torch.Generator().manual_seed(seed)
    size = (count, model.vae.z_channels, model.latent_frames, model.latent_height, model.latent_width)
    start = torch.rand(count, 1, tracks, 2, generator=g) * 32
    motion = torch.linspace(0, 1, model.clip.frames).view(1, -1, 1, 1) * 8
    return Batch(
        latents=torch.randn(size, generator=g),
        image=torch.randn(size, generator=g)[:, :, : 1 if model.image_alone else None],
        text=torch.randn(count, model.text.length, model.text.dim, generator=g),
        xy_px=start + motion * torch.randn(count, 1, 1, 2, generator=g),
        visible=torch.rand(count, model.clip.frames, tracks, generator=g) > 0.2,
        real=torch.ones(count, dtype=torch.bool),
        clip_ids=tuple(f"clip{i}" for i in range(count)),
        image_tokens=torch.randn(count, CLIP_TOKENS, model.dit.clip_dim, generator=g) if model.dit.clip_dim else None,
        **{name: null_text(name, model).expand(count, -1, -1) for name in model.text.null_prompts},
    )


def null_text(name: str, model: ModelConfig) -> Tensor:
    """1 l c: an embedding that stands for the prompt of this name."""
    return torch.full((1, model.text.length, model.text.dim), {"empty_text": 0.5, "negative_text": -2.0}[name])


class FakeLoader:
    """New random clips at every position; the position is all its state."""

    def __init__(self, model: ModelConfig, batch: int = 2, spoil_at: int = -1) -> None:
        self.model, self.batch, self.spoil_at = model, batch, spoil_at
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.taken += 1
            batch = clips(self.model, self.batch, seed=self.taken)
            if self.taken == self.spoil_at:
                batch.latents[0, 0, 1] = float("nan")
            yield batch

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]


def frame_batch(model: ModelConfig, count: int, seed: int) -> FrameBatch:
    """Random pictures with latents that are their averages over the strides, so that a decoder can learn something."""
    g, c, v = torch.Generator().manual_seed(seed), model.clip, model.vae
    coarse = torch.rand(count, 3, model.latent_frames, model.latent_height, model.latent_width, generator=g)
    frames = coarse.repeat_interleave(v.stride_s, 3).repeat_interleave(v.stride_s, 4)
    frames = frames.repeat_interleave(v.stride_t, 2)[:, :, v.stride_t - 1 :]
    assert frames.shape[2] == c.frames
    latents = torch.cat([2 * coarse - 1, torch.zeros(count, v.z_channels - 3, *coarse.shape[2:])], dim=1)
    pixels = (255 * frames).to(torch.uint8).movedim(1, -1).contiguous()
    return FrameBatch(latents, pixels, torch.ones(count, dtype=torch.bool))


class FakeFrames(FakeLoader):
    """FrameBatches, new at every position."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.taken += 1
            yield frame_batch(self.model, self.batch, self.taken)


def decode(latents: Tensor) -> Tensor:
    """Stands in for the VAE: the first three channels as a picture, one frame a latent frame."""
    return latents[:, :3].clamp(-1, 1)
