"""Tracks as inputs of the model: ids, the track map c_m, sampling and masking. All conversions of track units are here.

Legend: b batch, T pixel frames, t latent frames, n tracks, d id dimension, h w latent rows and columns.
xy_px: float32 pixels at clip size, x first, origin top-left, pixel centres at +0.5. visible: bool.
Source: MotionStream, section 3.1 (track conditioning); ids after Motion Prompting.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from msmodel.config import ModelConfig

ID_RANGE = 10_000  # random integer ids are sampled below this; also the sinusoid's base


def encode_ids(ids: Tensor, dim: int) -> Tensor:
    """Returns the sinusoidal embedding of integer ids: (...) int64 -> (... dim) float32, cosines then sines, in [-1, 1]."""
    if dim % 2:
        raise ValueError(f"dit.track_id_dim: {dim} must be even")
    exponents = torch.arange(dim // 2, dtype=torch.float64, device=ids.device) / (dim // 2)
    angles = ids.to(torch.float64)[..., None] * torch.exp(-math.log(ID_RANGE) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def track_ids(batch: int, tracks: int, dim: int, generator: torch.Generator) -> Tensor:
    """Samples and encodes ids for a batch of clips: (b n d) float32, distinct within a clip.

    Sample them once per clip: the same ids serve all chunks, denoising steps and guidance branches of that clip.
    """
    return encode_ids(draw_ids(batch, tracks, generator), dim)


def draw_ids(batch: int, tracks: int, generator: torch.Generator) -> Tensor:
    """Samples integer ids below ID_RANGE, distinct within a clip: (b n) int64."""
    if tracks > ID_RANGE:
        raise ValueError(f"{tracks} tracks need more than the {ID_RANGE} ids there are")
    return torch.stack([torch.randperm(ID_RANGE, generator=generator)[:tracks] for _ in range(batch)])


def rasterise(xy_px: Tensor, visible: Tensor, track_id_embedding: Tensor, cfg: ModelConfig) -> Tensor:
    """Returns the track map c_m: (b T n 2), (b T n), (b n d) -> (b T h w d).

    The embedding of track n is written to cell (floor(y / s), floor(x / s)) of every frame in which the track is
    visible; all other cells are zero. Where two tracks fall in one cell the one with the higher index is written.
    Points outside the frame, or not finite, are left out. With dit.track_offsets two more channels hold the place of
    the track within its cell, from -1 to 1 (not in the paper; docs/adr/0006).
    """
    h, w = cfg.latent_height, cfg.latent_width
    b, frames, n, _ = xy_px.shape
    cell = torch.floor(xy_px / cfg.vae.stride_s)
    x, y = cell.unbind(-1)
    inside = visible & (x >= 0) & (x < w) & (y >= 0) & (y < h)  # NaN compares false
    index = torch.where(
        inside, y * w + x, torch.full_like(x, h * w)
    ).long()  # h * w: an additional cell for what is left out
    order = repeat(torch.arange(1, n + 1, device=xy_px.device), "n -> b T n", b=b, T=frames)
    winner = torch.zeros(b, frames, h * w + 1, dtype=torch.long, device=xy_px.device)
    winner = winner.scatter_reduce(2, index, order, reduce="amax")[..., : h * w]
    embeddings = torch.cat([torch.zeros_like(track_id_embedding[:, :1]), track_id_embedding], dim=1)  # row 0: no track
    rows = rearrange(winner, "b T c -> b (T c)")
    drawn = torch.gather(embeddings, 1, repeat(rows, "b r -> b r d", d=track_id_embedding.shape[-1]))
    drawn = rearrange(drawn, "b (T h w) d -> b T h w d", T=frames, h=h, w=w)
    if not cfg.dit.track_offsets:
        return drawn
    offset = F.pad(2 * (xy_px / cfg.vae.stride_s - cell) - 1, (0, 0, 1, 0))  # row 0: no track
    offset = torch.gather(offset, 2, repeat(winner, "b T c -> b T c xy", xy=2))
    return torch.cat([drawn, rearrange(offset, "b T (h w) xy -> b T h w xy", h=h, w=w).to(drawn)], dim=-1)


def pack(c_m: Tensor, stride_t: int, starts_clip: bool = True) -> Tensor:
    """Folds time into channels, aligned with the causal VAE: (b T h w d) -> (b (stride_t d) t h w).

    The clip's first pixel frame fills a group alone (repeated stride_t times), then groups of stride_t frames follow. A
    later part of a clip (`starts_clip=False`) holds complete groups only, so parts packed one by one equal the slices
    of the complete clip's map.
    """
    if starts_clip:
        c_m = torch.cat([repeat(c_m[:, :1], "b 1 h w d -> b s h w d", s=stride_t), c_m[:, 1:]], dim=1)
    if c_m.shape[1] % stride_t:
        raise ValueError(f"{c_m.shape[1]} pixel frames of tracks do not fill groups of {stride_t}")
    return rearrange(c_m, "b (t s) h w d -> b (s d) t h w", s=stride_t)


def track_map(
    xy_px: Tensor, visible: Tensor, track_id_embedding: Tensor, cfg: ModelConfig, starts_clip: bool = True
) -> Tensor:
    """Returns the packed track map for `Conditioning.tracks`: (b T n 2), (b T n), (b n d) -> (b c t h w)."""
    return pack(rasterise(xy_px, visible, track_id_embedding, cfg), cfg.vae.stride_t, starts_clip)


def sample_tracks(
    xy_px: Tensor, visible: Tensor, low: int, high: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Samples low..high of each clip's tracks: (b T n 2), (b T n) -> the same with n' = min(high, n) tracks.

    The count is sampled per clip; tracks beyond it are made invisible. Tracks that are never visible are chosen last,
    so the count means visible tracks wherever the clip has that many.
    """
    if not 1 <= low <= high:
        raise ValueError(f"track counts must satisfy 1 <= low <= high, got {low} and {high}")
    b, _, n, _ = xy_px.shape
    keep = min(high, n)
    ever = visible.any(dim=1).cpu().float()
    order = (torch.rand(b, n, generator=generator) + ever).argsort(dim=1, descending=True)[:, :keep]
    counts = torch.randint(min(low, keep), keep + 1, (b, 1), generator=generator)
    order, chosen = order.to(xy_px.device), (torch.arange(keep) < counts).to(xy_px.device)
    batch = torch.arange(b, device=xy_px.device)[:, None]
    xy = rearrange(rearrange(xy_px, "b T n c -> b n T c")[batch, order], "b n T c -> b T n c")
    seen = rearrange(rearrange(visible, "b T n -> b n T")[batch, order], "b n T -> b T n")
    return xy, seen & chosen[:, None]


def mask_mid_frames(tracks: Tensor, chunk: int, p: float, generator: torch.Generator, prefix: int = 0) -> Tensor:
    """Applies stochastic mid-frame masking: zeroes the track map of random chunks after the first, each with probability p.

    tracks (b c t h w), chunk in latent frames, prefix: latent frames before the first chunk. A zero then also means
    'not specified', so released controls do not make objects vanish (paper, section 3.1; phase 2 only).
    """
    b, _, t, _, _ = tracks.shape
    chunks = (t - prefix) // chunk
    dropped = torch.rand(b, chunks, generator=generator) < p
    dropped[:, 0] = False
    dropped = repeat(dropped, "b k -> b (k c)", c=chunk)
    dropped = torch.cat([torch.zeros(b, t - dropped.shape[1], dtype=torch.bool), dropped], dim=1)
    return tracks * (~dropped).to(tracks)[:, None, :, None, None]


def latent_to_pixel_frames(latent_frame: int, stride_t: int) -> range:
    """Returns the pixel frames of one latent frame: frame 0 alone, then stride_t each."""
    if latent_frame == 0:
        return range(1)
    return range(1 + (latent_frame - 1) * stride_t, 1 + latent_frame * stride_t)


def shares_to_px(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Converts shares of the frame's width and height (... 2) to pixels of a frame of size (height, width)."""
    return xy * np.array([size[1], size[0]], np.float64)


def px_to_shares(xy_px: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Converts pixels to shares of the frame; the inverse of shares_to_px."""
    return xy_px / np.array([size[1], size[0]], np.float64)


def resize_px(xy_px: np.ndarray, size: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """Converts pixels (... 2) of a frame of `size` to pixels of the frame resized to `to`, both (height, width), float32.

    Pixel centres lie at +0.5 in both, so nothing is added.
    """
    return (xy_px * np.array([to[1] / size[1], to[0] / size[0]])).astype(np.float32)


def resample(
    xy_px: np.ndarray, visible: np.ndarray, fps: float, to_fps: float, frames: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Resamples tracks (T n 2, T n) to another frame rate: frame i lies at i / to_fps seconds.

    Positions between two frames are interpolated linearly where the point is visible in both; otherwise position and
    visibility are the nearer frame's. frames: how many, None for the length of the clip. Beyond its end points keep
    their position and are invisible.
    """
    last = len(xy_px) - 1
    count = math.floor(last * to_fps / fps + 1e-6) + 1 if frames is None else frames
    at = np.arange(count) * (fps / to_fps)
    at = np.where(np.abs(at - np.round(at)) < 1e-6, np.round(at), at)
    low, high = np.clip(np.floor(at).astype(int), 0, last), np.clip(np.ceil(at).astype(int), 0, last)
    share = np.clip(at - low, 0, 1)[:, None]
    both = visible[low] & visible[high]
    nearer = np.where(share < 0.5, low[:, None], high[:, None])
    nearest_xy = np.take_along_axis(xy_px, nearer[..., None], axis=0)
    seen = np.where(both, True, np.take_along_axis(visible, np.broadcast_to(nearer, both.shape), axis=0))
    between = (1 - share[..., None]) * xy_px[low] + share[..., None] * xy_px[high]
    xy = np.where(both[..., None], between, nearest_xy)
    return xy.astype(np.float32), seen & (at <= last)[:, None]
