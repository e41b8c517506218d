"""PSNR and SSIM against the real clip, on decoded uint8 frames scaled to [0, 1]. Frame 0, which is given, is left out.

Legend: T frames, 3 RGB. Both videos have the same size; nothing is resized here.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PSNR_CEILING_DB = 100.0  # identical frames: a mean square error of 1e-10
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def _checked(video: np.ndarray, reference: np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns both videos as T 3 h w float64 in [0, 1], without frame 0.

    Raises ValueError if they are not uint8 videos of one shape with at least two frames.
    """
    if video.shape != reference.shape or video.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(
            f"need two uint8 videos of one shape, got {video.shape} {video.dtype} and {reference.shape} {reference.dtype}"
        )
    if len(video) < 2:
        raise ValueError("a clip of one frame has nothing but its conditioning frame: nothing to compare")
    both = [torch.from_numpy(v[1:].copy()).double() / 255 for v in (video, reference)]
    return rearrange(both[0], "T h w c -> T c h w"), rearrange(both[1], "T h w c -> T c h w")


def psnr(video: np.ndarray, reference: np.ndarray) -> float:
    """Returns the mean over frames of each frame's PSNR in dB. video, reference: T h w 3 uint8."""
    a, b = _checked(video, reference)
    mse = (a - b).square().mean(dim=(1, 2, 3)).clamp_min(10 ** (-PSNR_CEILING_DB / 10))
    return float((-10 * mse.log10()).mean())


def ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Returns the structural similarity (Wang et al. 2004), the mean over RGB and frames.

    It uses a Gaussian window of 11, sigma 1.5, valid padding. Raises ValueError if frames are smaller than the window.
    """
    a, b = _checked(video, reference)
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"frames of {tuple(a.shape[-2:])} are smaller than the SSIM window of {SSIM_WINDOW}")
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    cov = _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(score.mean())


def _blur(x: Tensor) -> Tensor:
    """Returns x (T c h w) convolved with a separable Gaussian over h and w, valid padding."""
    at = torch.arange(SSIM_WINDOW, dtype=x.dtype) - (SSIM_WINDOW - 1) / 2
    g = torch.exp(-at.square() / (2 * SSIM_SIGMA**2))
    g, c = g / g.sum(), x.shape[1]
    x = F.conv2d(x, g.view(1, 1, -1, 1).repeat(c, 1, 1, 1), groups=c)
    return F.conv2d(x, g.view(1, 1, 1, -1).repeat(c, 1, 1, 1), groups=c)
