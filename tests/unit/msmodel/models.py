"""Tiny models and conditioning for the tests of the model core. Legend: b batch, z latent channels, t h w latent size."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from msmodel.batch import Conditioning
from msmodel.config import ClipConfig, DiTConfig, ModelConfig, StudentConfig, TextConfig, VAEConfig
from msmodel.dit import WanDiT
from pipelines.commands.rehearse.weights import transformer


def tiny_config(image: str = "channels", chunks: int = 3, **student: int) -> ModelConfig:
    """A model of 2 layers on 3 x 5 tokens a frame, with a horizon of `chunks` chunks."""
    cfg = ModelConfig(
        clip=ClipConfig(height=24, width=40, frames=1, fps=8.0),
        vae=VAEConfig(source="test", z_channels=4, stride_t=2, stride_s=4),
        text=TextConfig(source="test", dim=12, length=6),
        dit=DiTConfig(
            dim=32, ffn_dim=48, heads=2, layers=2, freq_dim=16, image=image, track_channels=3, track_id_dim=6, shift=3.0
        ),
        student=StudentConfig(**{"chunk": 2, "sink": 1, "window": 1, "steps": 3, **student}),
    )
    latent_frames = chunks * cfg.student.chunk + int(cfg.image_alone)
    return replace(cfg, clip=replace(cfg.clip, frames=1 + (latent_frames - 1) * cfg.vae.stride_t))


def wan_transformer(cfg: ModelConfig, in_channels: int | None = None):
    """diffusers' model of these sizes; it reads our track features as plain input channels."""
    return transformer(cfg, in_channels or cfg.in_channels, cfg.dit.clip_dim).eval()


def with_clip(cfg: ModelConfig) -> ModelConfig:
    """The same with the CLIP branch, and 512 text tokens, which diffusers takes for granted beside it."""
    return replace(cfg, dit=replace(cfg.dit, clip_dim=20), text=replace(cfg.text, length=512))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter, zeros included, with random values of a size at which nothing is negligible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            p.copy_(noise / p.shape[1:].numel() ** 0.5 if p.ndim > 1 else 1 + 0.1 * noise)
    return model


def conditioning(
    cfg: ModelConfig, batch: int = 1, frames: int | None = None, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Conditioning:
    """Random text, image and tracks for `frames` latent frames (the horizon by default)."""
    generator = torch.Generator().manual_seed(seed)
    t, h, w = frames or cfg.latent_frames, cfg.latent_height, cfg.latent_width

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    image = draw(batch, cfg.mask_channels + cfg.image_channels or cfg.vae.z_channels, t, h, w)
    if cfg.image_alone:
        image[:, :, 1:] = 0
    text = draw(batch, cfg.text.length, cfg.text.dim)
    text[:, -2:] = 0
    return Conditioning(text=text, image=image, tracks=draw(batch, cfg.track_feature_channels, t, h, w))


def gaussian(cfg: ModelConfig, batch: int = 1, frames: int | None = None, seed: int = 2, dtype=torch.float32):
    """Latents of noise, b z t h w."""
    shape = (batch, cfg.vae.z_channels, frames or cfg.latent_frames, cfg.latent_height, cfg.latent_width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def headless(model_type: type[WanDiT]) -> WanDiT:
    """A model that reads what it is given as track channels as they are (as latents of drawn tracks), without a head."""
    cfg = tiny_config()
    model = model_type(replace(cfg, dit=replace(cfg.dit, track_id_dim=2, track_channels=4)))
    model.track_head = nn.Identity()
    return model
