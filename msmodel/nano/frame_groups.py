"""Groups of pixel frames of a causal video VAE: the first frame of a clip alone, then groups of stride_t.

Legend: b batch, T pixel frames, H W pixels.
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from msmodel.config import VAEConfig


def check_video(video: Tensor, cfg: VAEConfig) -> None:
    """Raises ValueError unless `video` is b 3 T H W of 1 + a multiple of stride_t frames.

    Its sides must be multiples of stride_s.
    """
    check_sides(video, cfg)
    if (video.shape[2] - 1) % cfg.stride_t:
        raise ValueError(f"video: {video.shape[2]} frames; the VAE needs 1 + a multiple of {cfg.stride_t}")


def check_sides(video: Tensor, cfg: VAEConfig) -> None:
    """Raises ValueError unless `video` is b 3 T H W with sides that are multiples of stride_s."""
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"video: shape {tuple(video.shape)} is not b 3 T H W")
    height, width = video.shape[3:]
    if height % cfg.stride_s or width % cfg.stride_s:
        raise ValueError(f"video: {height}x{width} pixels; the VAE needs sides that are multiples of {cfg.stride_s}")


def with_tail(first: Tensor, frames: int, cfg: VAEConfig) -> Tensor:
    """Returns the clip [first, tail, tail, ...] of `frames` frames: first b 3 H W in [-1, 1] -> b 3 T H W.

    The tail is mid-grey (0), the image conditioning of Wan image-to-video (Wan 2.1 report, section 5.1), or, with
    vae.image_tail == "still", the first frame again.
    """
    if cfg.image_tail == "still":
        return repeat(first, "b c H W -> b c T H W", T=frames)
    video = first.new_zeros(first.shape[0], 3, frames, *first.shape[-2:])
    video[:, :, 0] = first
    return video


class FrameGroups:
    """A stream of pixel frames that arrive in parts of any length.

    Frames that do not complete a group are kept for the next call.
    """

    def __init__(self, stride_t: int):
        self._stride_t = stride_t
        self._waiting: Tensor | None = None
        self.started = False  # whether the clip's first frame has been returned

    def take(self, video: Tensor) -> tuple[bool, Tensor]:
        """Returns whether the next frames b 3 T H W start the clip, and those that now fill complete groups: b 3 T' H W.

        T' is 1 + a multiple of stride_t where they start the clip, else a multiple of it, which may be 0. Raises
        ValueError when the parts of a stream differ in more than their length.
        """
        if self._waiting is not None:
            if self._waiting.shape[:2] + self._waiting.shape[3:] != video.shape[:2] + video.shape[3:]:
                raise ValueError(
                    f"video: a stream of {tuple(self._waiting.shape)} (b 3 T H W) goes on with {tuple(video.shape)}"
                )
            video = torch.cat((self._waiting, video), dim=2)
        starts = not self.started and video.shape[2] > 0
        whole = video.shape[2] - (video.shape[2] - int(starts)) % self._stride_t
        self._waiting = video[:, :, whole:].clone()  # a view would keep the complete tensor in memory
        self.started = self.started or starts
        return starts, video[:, :, :whole]
