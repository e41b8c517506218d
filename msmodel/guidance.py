"""Joint guidance over text and tracks (MotionStream, section 3.2): three evaluations in one batch, or two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from msmodel.batch import Conditioning

Velocity = Callable[[Tensor, Tensor, Conditioning], Tensor]


def combine(full: Tensor, tracks_only: Tensor, text_only: Tensor, w_text: float, w_track: float) -> Tensor:
    """Combines three velocities (all b c t h w) into the guided velocity (MotionStream, section 3.2).

    v = base + w_t [v(c_t, c_m) - v(0, c_m)] + w_m [v(c_t, c_m) - v(c_t, 0)],
    base = alpha v(0, c_m) + (1 - alpha) v(c_t, 0), alpha = w_t / (w_t + w_m).

    Raises ValueError for negative weights, and where both are 0.
    """
    if w_text < 0 or w_track < 0 or w_text + w_track == 0:
        raise ValueError(f"guidance weights must be >= 0 and not both 0, got text {w_text} and track {w_track}")
    alpha = w_text / (w_text + w_track)
    base = alpha * tracks_only + (1 - alpha) * text_only
    return base + w_text * (full - tracks_only) + w_track * (full - text_only)


@torch.no_grad()
def joint(model: Velocity, noisy: Tensor, t: Tensor, cond: Conditioning, w_text: float, w_track: float) -> Tensor:
    """Returns the guided velocity (b c t h w) of a frozen `model(noisy, t, cond)`.

    All branches with a weight other than zero are evaluated in one batch. There are three, or fewer where `combine`
    multiplies one by zero, which happens where a weight is zero or the only one is 1.
    """
    alpha = w_text / (w_text + w_track) if w_text + w_track else 0.0
    by_text, by_track = alpha != w_text, 1 - alpha != w_track
    branches = [cond, *[cond.without_text()] * by_text, *[cond.without_tracks()] * by_track]
    stacked = Conditioning(
        text=torch.cat([c.text for c in branches]),
        image=torch.cat([c.image for c in branches]),
        tracks=torch.cat([c.tracks for c in branches]),
        image_tokens=None if cond.image_tokens is None else torch.cat([cond.image_tokens] * len(branches)),
    )
    v = model(torch.cat([noisy] * len(branches)), torch.cat([t] * len(branches)), stacked)
    full, *others = rearrange(v, "(k b) ... -> k b ...", b=noisy.shape[0])
    zero = torch.zeros_like(full)
    tracks_only = others.pop(0) if by_text else zero
    text_only = others.pop(0) if by_track else zero
    return combine(full, tracks_only, text_only, w_text, w_track)
