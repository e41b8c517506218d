"""A small world for the evaluation's tests: textured clips that really move, tiny models, a context that records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn

from msmodel.causal import CausalDiT
from msmodel.config import ClipConfig, DiTConfig, ModelConfig, StudentConfig, TextConfig, VAEConfig
from msmodel.io.weights import save_weights
from msmodel.nano.patch_vae import PatchVAE, fold, principal_components
from msmodel.vae import load_vae, save_patch_vae
from stages.data.loader import Sample
from stages.eval.config import (
    EvalConfig,
    GenerateConfig,
    LongRunConfig,
    MeasureConfig,
    ReportConfig,
    SelectConfig,
    SpeedConfig,
)
from stages.eval.counterfactual import Motions
from stages.records import Checkpoint
from stages.trackers import TrackerConfig, uniform_grid
from tests.unit.msmodel.models import randomise

SIZE, FRAMES = (32, 48), 13


def model_config(folder: Path) -> ModelConfig:
    return ModelConfig(
        clip=ClipConfig(*SIZE, frames=FRAMES, fps=12.0),
        vae=VAEConfig(source=str(folder / "vae"), z_channels=4, stride_t=2, stride_s=4),
        text=TextConfig(source="test", dim=12, length=6),
        dit=DiTConfig(dim=32, ffn_dim=48, heads=2, layers=2, freq_dim=16, track_channels=3, track_id_dim=6, shift=3.0),
        student=StudentConfig(chunk=1, sink=1, window=1, steps=2),
    )


def eval_config() -> EvalConfig:
    return EvalConfig(
        select=SelectConfig(
            clips=3, counterfactual_clips=1, tracks=24, batch=2, motions=Motions(grid_rows=4, grid_cols=6)
        ),
        generate=GenerateConfig(steps=2),
        measure=MeasureConfig(
            raster_height=64,
            raster_width=96,
            tracker=TrackerConfig(name="lucas_kanade"),
            fvd_frames=9,
            perceptual_every=6,
        ),
        speed=SpeedConfig(teacher_steps=2, chunks=4, warmup_rollouts=1),
        long_run=LongRunConfig(clips=1, horizons=2, chunks=6, warmup_chunks=1),
        report=ReportConfig(show_clips=1, video_height=64),
    )


def texture(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth coloured noise with plenty to track: h w 3 float 0..255."""
    import cv2

    rough = np.random.default_rng(seed).uniform(0, 255, (height // 3 + 1, width // 3 + 1, 3)).astype(np.float32)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)


def panning(seed: int, step: tuple[int, int], frames: int = FRAMES) -> np.ndarray:
    """T h w 3 uint8: a texture that moves by `step` = (x, y) whole pixels a frame."""
    h, w = SIZE
    margin = 2 * frames
    big = texture(seed, h + 2 * margin, w + 2 * margin)
    corners = [(margin - step[1] * t, margin - step[0] * t) for t in range(frames)]
    return np.stack([big[y : y + h, x : x + w] for y, x in corners]).astype(np.uint8)


def sample(name: str, kind: str, scene: str, step: tuple[int, int], vae: PatchVAE) -> Sample:
    frames = panning(sum(map(ord, name)), step)
    grid = uniform_grid(*SIZE, 4, 6)
    xy = grid + np.arange(FRAMES, dtype=np.float32)[:, None, None] * np.array(step, np.float32)
    visible = ((xy >= 0) & (xy < np.array([SIZE[1], SIZE[0]]))).all(-1)
    video = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
    latents, image = vae.encode(video)[0], vae.encode_image(video[:, :, 0], FRAMES)[0]
    meta = {"clip_id": name, "kind": kind, "scene": scene, "source": "test", "recipe": "pan", "tracker": "ground_truth"}
    return Sample(name, frames, xy.astype(np.float32), visible, latents, image, torch.ones(6, 12), f"a {name}", meta)


@dataclass(frozen=True)
class FakeStored:
    """A StoredSample that lies in memory."""

    sample: Sample

    @property
    def key(self) -> str:
        return self.sample.key

    @property
    def meta(self) -> dict[str, Any]:
        return self.sample.meta

    def load(self) -> Sample:
        return self.sample

    def tracks(self) -> tuple[np.ndarray, np.ndarray]:
        return self.sample.xy_px, self.sample.visible


def stored(model: ModelConfig) -> list[FakeStored]:
    return [FakeStored(s) for s in samples(model)]


def samples(model: ModelConfig) -> list[Sample]:
    vae = load_vae(model.vae)
    assert isinstance(vae, PatchVAE)
    return [
        sample(f"{kind}-{i}", kind, f"{kind}-scene-{i % 3}", (1 + i % 2, i % 3 - 1), vae)
        for kind in ("rendered", "real")
        for i in range(5)
    ]


def make_vae(folder: Path) -> None:
    """A linear patch VAE fitted to such clips: its round trip is blurred, but it is the clip."""
    cfg = VAEConfig(source="test", z_channels=4, stride_t=2, stride_s=4)
    video = torch.from_numpy(panning(0, (1, 1))).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
    patches = rearrange(fold(video, cfg), "b p t h w -> (b t h w) p")
    vae = PatchVAE(cfg, 8, 1)
    vae.set_components(*principal_components(patches, cfg.z_channels))
    save_patch_vae(vae, folder / "vae")


def make_checkpoint(name: str, folder: Path, model: ModelConfig) -> Checkpoint:
    """Random weights, none of them zero: tracks, text and context all have an effect."""
    save_weights(randomise(CausalDiT(model), sum(map(ord, name))), folder / name, {"step": 1})
    return Checkpoint(name, str(folder / name), 1, f"digest-of-{name}")


class FakeI3D(nn.Module):
    """400 fixed random projections of a coarse video, in place of the 50 MB network."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(400, 3 * 3 * 8 * 8, generator=generator), requires_grad=False)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool3d(video, (3, 8, 8)).flatten(1) @ self.weight.T
