"""Functions that several methods share: the flow-matching loss, sampling with joint guidance, contact sheets.

Legend: b batch, z latent channels, t latent frames, h w latent size, T pixel frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from msmodel import flow, guidance, losses
from msmodel.batch import Conditioning
from msmodel.config import ModelConfig
from stages.data.contact_sheets import contact_sheet

Decode = Callable[[Tensor], Tensor]  # latents b z t h w -> video b 3 T H W in [-1, 1]


@dataclass(frozen=True)
class Guidance:
    """Settings of joint guidance: its weights (paper, section 3.2)."""

    text: float = 3.0  # weight of guidance by the prompt
    track: float = 1.5  # weight of guidance by the tracks

    def problems(self) -> list[str]:
        if self.text < 0 or self.track < 0 or self.text + self.track == 0:
            return [f"text, track: {self.text}, {self.track} must not be negative, nor both zero"]
        return []


def scored_frames(model: ModelConfig, frames: int) -> Tensor | None:
    """Returns which latent frames a loss counts (t bool, on the CPU): None for all, else all but the given clean first
    one."""
    if not model.image_alone:
        return None
    return torch.arange(frames) > 0


def flow_loss(
    dit: nn.Module,
    latents: Tensor,
    cond: Conditioning,
    t: Tensor,
    eps: Tensor,
    model: ModelConfig,
    weighting: str = "uniform",
) -> Tensor:
    """Returns the flow-matching loss, a scalar, of `dit` on clean latents (b z t h w) with noise eps at times t (b)."""
    v = dit(flow.add_noise(latents, eps, t), t, cond)
    frames = scored_frames(model, latents.shape[2])
    return losses.flow_matching(v, flow.velocity(latents, eps), t, weighting, frames)


def restore_image(latents: Tensor, cond: Conditioning, model: ModelConfig) -> Tensor:
    """Returns the latents with the given clean first latent in its place, if the layout has one ("first_latent")."""
    if not model.image_alone:
        return latents
    return torch.cat([cond.image[:, :, :1].to(latents), latents[:, :, 1:]], dim=2)


@torch.no_grad()
def sample_teacher(
    dit: nn.Module,
    cond: Conditioning,
    noise: Tensor,
    steps: int,
    weights: Guidance | None,
    model: ModelConfig,
    on_state: Callable[[float, Tensor], None] | None = None,
) -> Tensor:
    """Returns latents b z t h w from Euler sampling of the bidirectional model.

    weights: joint guidance, or None for conditional sampling only. on_state(t, x_t) gets every state, noise and result
    included.
    """

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        if weights is None:
            return dit(x, t, cond)
        return guidance.joint(dit, x, t, cond, weights.text, weights.track)

    return restore_image(flow.euler(velocity, noise, steps, model.dit.shift, on_state), cond, model)


def first_conditions(cond: Conditioning, clips: int) -> Conditioning:
    """Returns the first `clips` items of a conditioning."""
    return cond.each(lambda x: x[:clips])


def contact_sheet_of_latents(rows: Mapping[str, Tensor], decode: Decode, columns: int = 6) -> np.ndarray:
    """Decodes latents and returns a contact sheet, h w 3 uint8, `columns` frames across.

    rows: name -> latents b z t h w (all the same shape). Each clip gets one line for each entry of `rows`, in order.
    """
    videos = [decode(latents) for latents in rows.values()]
    return contact_sheet_of_videos([video[clip] for clip in range(videos[0].shape[0]) for video in videos], columns)


def contact_sheet_of_videos(videos: Sequence[Tensor], columns: int = 6) -> np.ndarray:
    """Returns a contact sheet, h w 3 uint8, of videos (3 T H W in [-1, 1] each).

    Each video is one line of at most `columns` frames, spread evenly.
    """
    frames = [
        ((rearrange(v, "c t h w -> t h w c") + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy() for v in videos
    ]
    return contact_sheet(frames, min(columns, *(len(f) for f in frames)), border=0)
