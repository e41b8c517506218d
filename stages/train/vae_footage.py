"""Training data of the nano VAE: crops of the packaged clips, and moving composites made of them.

Footage is kept as small uint8 clips in memory. Half of the items are real motion. The others are pans over one frame,
and patches moving over a panning background, because rendered scenes have such motion and real clips rarely do.

Legend: c colour, T frames, H W pixels; pixels are RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from stages.data.video import read_container, read_frames, read_timestamps
from stages.records import Video


def decode_small(video: Video, short_side: int, max_frames: int) -> Tensor:
    """Returns at most max_frames consecutive frames from a video's middle, T H W 3 uint8 with the given short side.

    Raises ValueError if the file cannot be decoded.
    """
    container = read_container(video.path).scaled_to(short_side)
    count = len(read_timestamps(video.path))
    start = max(0, (count - max_frames) // 2)
    frames = np.stack(list(read_frames(video.path, container, range(start, min(start + max_frames, count)))))
    return torch.from_numpy(frames)


class Footage:
    """Makes random training items from small clips. All randomness comes from the generator given to `batch`."""

    def __init__(self, clips: Sequence[Tensor], height: int, width: int, frames: int):
        """Takes clips T H W 3 uint8, each at least as tall and wide as one crop of the smallest scale.

        Raises ValueError if there are none.
        """
        if not clips:
            raise ValueError("VAE pre-training got no footage: give it at least one video")
        self.clips = list(clips)
        self.height, self.width, self.frames = height, width, frames

    def batch(self, items: int, generator: torch.Generator) -> Tensor:
        """Returns a batch of random items, b 3 T H W in [-1, 1]."""
        makers = (self._real, self._real, self._pan, self._composite)
        return torch.stack(
            [_jitter(makers[_below(len(makers), generator)](generator), generator) for _ in range(items)]
        )

    def _real(self, generator: torch.Generator) -> Tensor:
        """Returns consecutive frames (step 1 or 2, either direction) of one clip, all with the same random crop."""
        clip = self._pick(generator)
        step = 1 + _below(2, generator)
        span = min(len(clip), step * (self.frames - 1) + 1)
        start = _below(len(clip) - span + 1, generator)
        index = (torch.arange(self.frames) * step).clamp(max=span - 1) + start
        if _below(2, generator):
            index = index.flip(0)
        return self._crop(_to_float(clip[index]), generator)

    def _pan(self, generator: torch.Generator) -> Tensor:
        """Returns one frame seen by a camera that moves, rotates and zooms evenly, or, one time in four, stands still."""
        clip = self._pick(generator)
        frame = _to_float(clip[_below(len(clip), generator)][None])
        return self._move(frame, speed=0.0 if _below(4, generator) == 0 else 0.12, generator=generator)

    def _composite(self, generator: torch.Generator) -> Tensor:
        """Returns one or two textured ellipses or boxes that cross a panning background."""
        scene = self._pan(generator)
        for _ in range(1 + _below(2, generator)):
            texture = self._pan(generator)
            scene = torch.lerp(scene, texture, self._mask(generator))
        return scene

    def _mask(self, generator: torch.Generator) -> Tensor:
        """Returns a soft-edged moving ellipse or box, 1 T H W in [0, 1]."""
        time = rearrange(torch.linspace(-1.0, 1.0, self.frames), "t -> t 1 1")
        centre, velocity = _uniform(-0.7, 0.7, 2, generator), _uniform(-0.6, 0.6, 2, generator)
        radius = _uniform(0.15, 0.55, 2, generator)
        ys = rearrange(torch.linspace(-1.0, 1.0, self.height), "h -> 1 h 1")
        xs = rearrange(torch.linspace(-1.0, 1.0, self.width), "w -> 1 1 w")
        dy = (ys - centre[0] - velocity[0] * time) / radius[0]
        dx = (xs - centre[1] - velocity[1] * time) / radius[1]
        distance = torch.maximum(dy.abs(), dx.abs()) if _below(2, generator) else (dy**2 + dx**2).sqrt()
        softness = 1.5 * 2.0 / self.height / float(radius.min())
        return ((1.0 - distance) / softness + 0.5).clamp(0.0, 1.0)[None]

    def _move(self, frame: Tensor, speed: float, generator: torch.Generator) -> Tensor:
        """Returns a frame (1 3 H W) seen through a moving affine window, as 3 T H W.

        speed: largest, in half-widths per frame.
        """
        scale = self._scale(frame, generator)
        time = torch.arange(self.frames) - (self.frames - 1) / 2
        shift = _uniform(-0.3, 0.3, 2, generator)[None] + time[:, None] * _uniform(-speed, speed, 2, generator)[None]
        angle = time * _uniform(-speed / 4, speed / 4, 1, generator)
        zoom = torch.exp(time * _uniform(-speed / 4, speed / 4, 1, generator))
        aspect = self.width / self.height
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        rows = torch.stack(
            [
                torch.stack([cos * scale[1], -sin * scale[1] / aspect, shift[:, 0]], dim=-1),
                torch.stack([sin * scale[0] * aspect, cos * scale[0], shift[:, 1]], dim=-1),
            ],
            dim=1,
        )
        grid = F.affine_grid(rows, [self.frames, 3, self.height, self.width], align_corners=False)
        seen = F.grid_sample(
            frame.expand(self.frames, -1, -1, -1), grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
        return rearrange(seen, "t c h w -> c t h w").clamp(-1.0, 1.0)

    def _crop(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Returns a random window of frames (T 3 H W), of the target's shape, resized with antialiasing to 3 T H W."""
        tall, wide = frames.shape[-2:]
        share = self._scale(frames, generator)
        h, w = max(8, round(tall * float(share[0]))), max(8, round(wide * float(share[1])))
        top, left = _below(tall - h + 1, generator), _below(wide - w + 1, generator)
        window = frames[:, :, top : top + h, left : left + w]
        small = F.interpolate(window, (self.height, self.width), mode="bicubic", antialias=True, align_corners=False)
        return rearrange(small, "t c h w -> c t h w").clamp(-1.0, 1.0)

    def _scale(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Returns a random window size (height, width) as fractions of the frame's.

        It is between the largest window of the target's shape and half its area.
        """
        tall, wide = frames.shape[-2:]
        largest = min(tall / self.height, wide / self.width)
        size = largest * float(_uniform(0.5, 1.0, 1, generator)) ** 0.5
        return torch.tensor([size * self.height / tall, size * self.width / wide])

    def _pick(self, generator: torch.Generator) -> Tensor:
        return self.clips[_below(len(self.clips), generator)]


def _jitter(item: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the item with random flips, and, one time in three, other brightness, contrast and order of colours."""
    if _below(2, generator):
        item = item.flip(-1)
    if _below(8, generator) == 0:
        item = item.flip(-2)
    if _below(3, generator) == 0:
        item = item[torch.randperm(3, generator=generator)]
        gain, offset = _uniform(0.6, 1.3, 1, generator), _uniform(-0.2, 0.2, 1, generator)
        item = (item * gain + offset).clamp(-1.0, 1.0)
    return item


def _to_float(frames: Tensor) -> Tensor:
    return rearrange(frames, "t h w c -> t c h w").float() / 127.5 - 1.0


def _below(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low
