"""Turns a loader's Batch into the model's conditioning.

Tracks are sampled, given ids, dropped out, masked and rasterised; the text is dropped out.

Legend: b batch, T pixel frames, t latent frames, n tracks, d id dimension, h w latent rows and columns, m image tokens.
Source: MotionStream, section 3.1 (1,000 to 2,500 tracks a clip, mid-frame masking p = 0.2 in the second phase).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msmodel import tracks
from msmodel.batch import Batch, Conditioning, image_conditioning
from msmodel.config import ModelConfig
from msmodel.track_encoding import clip_ids, encode_tracks
from stages.train.method import RngStreams


@dataclass(frozen=True)
class Augment:
    """Settings of how a training clip's conditioning is varied.

    Dropout trains the branches without text or without tracks that joint guidance needs. The number of tracks per
    latent cell matters more than their total number: the paper's 2,500 tracks on 60 x 104 cells are 0.4 per cell.
    """

    tracks_low: int = 1000  # fewest tracks given for a clip
    tracks_high: int = 2500  # most tracks given for a clip
    text_dropout: float = 0.1  # probability that a clip's prompt is left empty
    track_dropout: float = 0.1  # probability that a clip's tracks are left out
    mask: float = 0.2  # probability that a mid-clip chunk's tracks are zeroed, in phase 2 only

    def problems(self) -> list[str]:
        out = []
        if not 1 <= self.tracks_low <= self.tracks_high:
            out.append(f"tracks_low: {self.tracks_low} must be between 1 and tracks_high ({self.tracks_high})")
        for name in ("text_dropout", "track_dropout", "mask"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                out.append(f"{name}: {getattr(self, name)} is not a probability")
        return out


@dataclass(frozen=True)
class ClipTracks:
    """Sampled tracks with their ids (sinusoids or colours), which stay the same for all chunks, steps and branches.

    xy_px: b T n 2. visible: b T n. track_id_embedding: b n d.
    """

    xy_px: Tensor
    visible: Tensor
    track_id_embedding: Tensor

    def map(self, model: ModelConfig) -> Tensor:
        """Returns Conditioning.tracks, b c t h w."""
        return encode_tracks(self.xy_px, self.visible, self.track_id_embedding, model)

    def to(self, device: torch.device) -> ClipTracks:
        """Returns a copy on `device`."""
        return ClipTracks(self.xy_px.to(device), self.visible.to(device), self.track_id_embedding.to(device))


def draw_tracks(batch: Batch, augment: Augment, model: ModelConfig, rng: RngStreams) -> ClipTracks:
    """Returns tracks_low to tracks_high of each clip's tracks, sampled at random together with their ids."""
    generator = rng.own("tracks")
    xy_px, visible = tracks.sample_tracks(
        batch.xy_px, batch.visible, augment.tracks_low, augment.tracks_high, generator
    )
    track_id_embedding = clip_ids(xy_px.shape[0], xy_px.shape[2], model, generator)
    return ClipTracks(xy_px, visible, track_id_embedding.to(xy_px.device))


def image_tokens(tokens: Tensor | None, model: ModelConfig) -> Tensor | None:
    """Returns Conditioning.image_tokens (b m c) from the encoded first frames; None for a model that reads none.

    The image is given in every guidance branch and every training step, so these tokens are never dropped. Raises
    ValueError if the model reads image tokens and there are none, or those of another encoder.
    """
    width = model.dit.clip_dim
    if width == 0:
        return None
    if tokens is None or tokens.shape[-1] != width:
        has = "no CLIP tokens of the first frames" if tokens is None else f"CLIP tokens of {tokens.shape[-1]} channels"
        raise ValueError(
            f"dit.clip_dim={width}, but this data holds {has}: it was made with other settings; make it again with these "
            f"(`make data`), or set dit.clip_dim={0 if tokens is None else tokens.shape[-1]}"
        )
    return tokens


def null_text(empty: Tensor | None, negative: Tensor | None, model: ModelConfig) -> Tensor | None:
    """Returns Conditioning.null_text (b l c) by text.null, from the embeddings that the data holds; None for zeros.

    Raises ValueError if the data does not hold the one that is asked for.
    """
    asked = model.text.null
    if asked == "zeros":
        return None
    found = negative if asked == "negative" else empty
    if found is None:
        raise ValueError(
            f"text.null={asked}, but this data holds no embedding of the {asked} prompt: it was made with other settings; make "
            "it again with these (`make data`), or set text.null=zeros"
        )
    return found


def dropped_text(batch: Batch, model: ModelConfig) -> Tensor | None:
    """Returns what text dropout gives in place of a prompt, b l c; None for zeros. The negative prompt is for guidance only."""
    return None if model.text.null == "zeros" else batch.empty_text


def condition(batch: Batch, clip_tracks: ClipTracks, model: ModelConfig) -> Conditioning:
    """Returns the full conditioning, with nothing dropped or masked."""
    return _conditioning(batch, clip_tracks.map(model), model)


def _conditioning(batch: Batch, c_m: Tensor, model: ModelConfig) -> Conditioning:
    image, tokens = image_conditioning(batch.image, model), image_tokens(batch.image_tokens, model)
    return Conditioning(batch.text, image, c_m, tokens, null_text(batch.empty_text, batch.negative_text, model))


def training_conditioning(
    batch: Batch, augment: Augment, model: ModelConfig, rng: RngStreams, masked: bool
) -> Conditioning:
    """Returns the conditioning of one training step, with dropout.

    masked: whether to apply mid-frame masking, which belongs to phase 2 only.
    """
    cond = condition(batch, draw_tracks(batch, augment, model, rng), model)
    c_m, generator = cond.tracks, rng.own("dropout")
    if masked:
        prefix = int(model.image_alone)
        c_m = tracks.mask_mid_frames(c_m, model.student.chunk, augment.mask, rng.own("mask"), prefix)
    text = keep(cond.text, augment.text_dropout, generator, dropped_text(batch, model))
    return replace(cond, text=text, tracks=keep(c_m, augment.track_dropout, generator))


def without_any_tracks(batch: Batch, model: ModelConfig) -> Conditioning:
    """Returns the conditioning of the base model, which has no track inputs: text, image and c_m = 0."""
    b, _, t, h, w = batch.latents.shape
    c_m = batch.latents.new_zeros(b, model.track_feature_channels, t, h, w)
    return _conditioning(batch, c_m, model)


def pick_frames(x: Tensor, index: Tensor) -> Tensor:
    """Returns the latent frames `index` (b k) of each clip of x (b c t h w) as b c k h w."""
    index = index.to(x.device)[:, None, :, None, None].expand(-1, x.shape[1], -1, *x.shape[3:])
    return torch.gather(x, 2, index)


def keep(x: Tensor, dropout: float, generator: torch.Generator, otherwise: Tensor | None = None) -> Tensor:
    """Returns x (b ...) with each item replaced with probability `dropout`: by that of `otherwise`, or by zeros."""
    kept = (torch.rand(x.shape[0], generator=generator) >= dropout).view(-1, *[1] * (x.ndim - 1))
    return x * kept.to(x) if otherwise is None else torch.where(kept.to(x.device), x, otherwise)
