"""Encodes tracks as the model's track channels: as a track map for the head, or as a picture through the VAE (an ablation).

"head" (the default): the packed map of sinusoidal ids (msmodel/tracks.py), which the model's 1x1x1 convolution reads.
"rgb_vae": each id is a colour, each visible track a small disc on a black canvas, and the VAE's latents of that canvas
are the track channels; the model has no track head (MotionStream, section 3.1: an ablation that takes 1053 ms where the
head takes 25).

In both, zeros mean that no tracks are given: track dropout, guidance without tracks and mid-frame masking write them.
An empty canvas is not zero: its latents mean that no track is visible.

Legend: b batch, T pixel frames, t latent frames, n tracks, d id channels, z c channels, h w latent size, H W pixels.
"""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from itertools import product
from typing import Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from msmodel.config import ModelConfig, VAEConfig
from msmodel.tracks import ID_RANGE, draw_ids, encode_ids, track_map
from msmodel.vae import load_vae, vae_on_meta

BLACK, DARKEST = -1.0, -0.5  # the canvas, and the smallest value of red, green and blue in a colour
LEVELS = math.ceil(ID_RANGE ** (1 / 3))  # of each of the three: more colours than there are ids
DISC_RADIUS = 3 / 8  # in VAE strides: 3 px at 832x480, where the paper's 50x50 grid has a track every 9.6 px
FRAMES_A_DRAWING = 16  # bounds the memory; results do not depend on it


class Encoder(Protocol):
    """An encoder of one stream of frames, with the state that this needs."""

    def push(self, video: Tensor) -> Tensor:
        """Returns the latents (b z t h w) of the groups that the next frames (b 3 T H W) in [-1, 1] complete."""
        ...


class EncoderMaker(Protocol):
    """A VAE that makes encoders, which share its weights."""

    def encoder(self) -> Encoder: ...


def clip_ids(batch: int, tracks: int, cfg: ModelConfig, generator: torch.Generator) -> Tensor:
    """Samples the ids of a clip's tracks, once for all chunks, steps and branches: (b n d) float32.

    d is dit.track_id_dim (sinusoids), or 3 (colours) with dit.track_encoding == "rgb_vae".
    """
    ids = draw_ids(batch, tracks, generator)
    return colours(ids) if cfg.dit.track_encoding == "rgb_vae" else encode_ids(ids, cfg.dit.track_id_dim)


def colours(ids: Tensor) -> Tensor:
    """Returns a distinct colour for each id below ID_RANGE: (...) int64 -> (... 3) float32 RGB in [DARKEST, 1]."""
    digits = torch.stack([ids // LEVELS**place % LEVELS for place in range(3)], dim=-1)
    return DARKEST + (1 - DARKEST) * digits.float() / (LEVELS - 1)


def canvas(xy_px: Tensor, visible: Tensor, colour: Tensor, cfg: ModelConfig) -> Tensor:
    """Paints discs of radius DISC_RADIUS strides on black: (b T n 2), (b T n), (b n 3) -> (b 3 T H W) in [-1, 1].

    A pixel belongs to a disc when its centre lies in it. Where discs overlap, the track with the higher index is shown,
    as in the track map. Points outside the frame, or not finite, are not painted.
    """
    height, width = cfg.clip.height, cfg.clip.width
    b, frames, n, _ = xy_px.shape
    radius = DISC_RADIUS * cfg.vae.stride_s
    reach = math.ceil(radius)
    steps = range(-reach, reach + 1)
    order = repeat(torch.arange(1, n + 1, dtype=torch.int32, device=xy_px.device), "n -> b T n", b=b, T=frames)
    x, y = xy_px.unbind(-1)
    inside = visible & (x >= 0) & (x < width) & (y >= 0) & (y < height)  # NaN compares false
    column, row = (torch.where(inside, v, torch.zeros_like(v)).floor().long() for v in (x, y))
    winner = torch.zeros(b, frames, height * width + 1, dtype=torch.int32, device=xy_px.device)
    for dy, dx in product(steps, steps):
        i, j = row + dy, column + dx
        on = inside & ((j + 0.5 - x) ** 2 + (i + 0.5 - y) ** 2 <= radius**2)
        on = on & (j >= 0) & (j < width) & (i >= 0) & (i < height)
        index = torch.where(on, i * width + j, height * width)  # an additional pixel for what is not painted
        winner.scatter_reduce_(2, index, order, reduce="amax")
    palette = torch.cat([torch.full_like(colour[:, :1], BLACK), colour], dim=1)  # row 0: no track
    rows = rearrange(winner[..., :-1].long(), "b T p -> b (T p)")
    drawn = torch.gather(palette, 1, repeat(rows, "b r -> b r rgb", rgb=3))
    return rearrange(drawn, "b (T H W) rgb -> b rgb T H W", T=frames, H=height, W=width)


class TrackEncoder:
    """An encoder of one stream of tracks.

    The tracks are pushed in groups of stride_t frames, the first frame alone; the results are the slices of the
    complete clip's encoding.
    """

    def __init__(self, cfg: ModelConfig, device: torch.device, vae: EncoderMaker | None = None):
        """Makes an encoder. vae: encodes the canvas; if None and needed, the config's own, loaded once a process."""
        self._cfg, self._started = cfg, False
        self._vae: EncoderMaker | None = None
        self._session: Encoder | None = None
        if cfg.dit.track_encoding == "rgb_vae":
            self._vae = vae or canvas_vae(cfg.vae, device)
            self._session = self._vae.encoder()

    @torch.no_grad()
    def push(self, xy_px: Tensor, visible: Tensor, track_id_embedding: Tensor) -> Tensor:
        """Returns the encoding (b c t h w) of the next frames' tracks (b T n 2), (b T n), with ids (b n d) of `clip_ids`."""
        starts, self._started = not self._started, True
        if self._session is None:
            return track_map(xy_px, visible, track_id_embedding, self._cfg, starts)
        pieces = zip(xy_px.split(FRAMES_A_DRAWING, 1), visible.split(FRAMES_A_DRAWING, 1), strict=True)
        latents = [self._session.push(canvas(xy, seen, track_id_embedding, self._cfg)) for xy, seen in pieces]
        return torch.cat(latents, dim=2)

    def fork(self) -> TrackEncoder:
        """Returns an independent stream that continues from the current state; weights are shared."""
        shared = self._vae.modules() if isinstance(self._vae, nn.Module) else [self._vae]
        return copy.deepcopy(self, {id(part): part for part in shared})


def encode_tracks(
    xy_px: Tensor, visible: Tensor, track_id_embedding: Tensor, cfg: ModelConfig, vae: EncoderMaker | None = None
) -> Tensor:
    """Returns `Conditioning.tracks` (b c t h w) of complete clips: (b T n 2), (b T n), ids (b n d) of `clip_ids`.

    vae: as for TrackEncoder. Canvases are encoded clip by clip, which bounds the memory.
    """
    each = 1 if cfg.dit.track_encoding == "rgb_vae" else max(xy_px.shape[0], 1)
    clips = zip(xy_px.split(each), visible.split(each), track_id_embedding.split(each), strict=True)
    return torch.cat([TrackEncoder(cfg, xy_px.device, vae).push(*clip) for clip in clips])


@lru_cache(maxsize=1)
def canvas_vae(cfg: VAEConfig, device: torch.device) -> EncoderMaker:
    """Loads the VAE of canvases, once a process. On the meta device, where costs are counted, no weights are read."""
    return vae_on_meta(cfg) if device.type == "meta" else load_vae(cfg).to(device)
