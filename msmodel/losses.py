"""Training losses. They are pure functions of tensors b c t h w."""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor

from msmodel.flow import loss_weight


def per_clip(error: Tensor, frames: Tensor | None = None) -> Tensor:
    """Returns the mean over all but the batch axis, restricted to the latent frames marked in `frames` (t, bool)."""
    if frames is not None:
        error = error[:, :, frames]
    return reduce(error, "b c t h w -> b", "mean")


def flow_matching(
    v: Tensor, target: Tensor, t: Tensor, weighting: str = "uniform", frames: Tensor | None = None
) -> Tensor:
    """Returns the mean over clips of w_t ||v - (eps - x_0)||^2 (MotionStream eq. 1), a scalar. t (b)."""
    weight = loss_weight(t, weighting)
    return (weight * per_clip((v - target).float().square(), frames)).mean()


def regression(x0: Tensor, endpoint: Tensor, frames: Tensor | None = None) -> Tensor:
    """Returns the ODE regression loss of causal adaptation, mean ||x_0 - endpoint||^2 (CausVid eq. 6), a scalar."""
    return per_clip((x0 - endpoint).float().square(), frames).mean()


def dmd(x: Tensor, x0_real: Tensor, x0_fake: Tensor, frames: Tensor | None = None) -> Tensor:
    """Returns the distribution-matching loss, a scalar: 0.5 * MSE to a target without gradient.

    Its gradient in x is g / numel, g = (x0_fake - x0_real) / mean|x - x0_real| per clip. x carries gradient (the clip
    of the rollout); the two score estimates do not. With score = -(x_t - (1 - t) x_0) / t^2 the difference of scores is
    a positive multiple of x0_real - x0_fake, so descending moves x toward the real distribution (DMD2 eq. 3-8,
    normalised as in Self Forcing).
    """
    with torch.no_grad():
        scale = per_clip((x - x0_real).abs(), frames).clamp_min(1e-6)[:, None, None, None, None]
        target = x - (x0_fake - x0_real) / scale
    return 0.5 * per_clip((x - target).square(), frames).mean()
