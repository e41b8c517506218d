"""Reads latents with the pixels that they encode from shards, for the training of the tiny VAE.

Legend: b batch, z latent channels, t latent frames, h w latent size, T pixel frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from msmodel.config import VAEConfig
from stages.data.loader import IN_PROCESS, LoaderConfig, SampleLoader
from stages.data.shards import Members, arrays, decode_mp4
from stages.records import ShardSet


@dataclass(frozen=True)
class FrameBatch:
    """Latents of a batch with their pixels. latents: b z t h w float32, normalised. frames: b T H W 3 uint8."""

    latents: Tensor
    frames: Tensor

    def crop(
        self, latent_frames: int, side_px: int, vae: VAEConfig, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns the first `latent_frames` latents of a random square of `side_px` pixels, and its video.

        The video is b 3 T H W in [-1, 1]. 0 means all frames or the full size. Sides are rounded down to whole latents.
        The crop starts with the clip's first frame, because the decoder's memory does.
        """
        stop = latent_frames or self.latents.shape[2]
        latents = self.latents[:, :, :stop]
        s, (h, w) = vae.stride_s, latents.shape[3:]
        rows, columns = (min(side_px // s, n) if side_px else n for n in (h, w))
        y, x = (int(torch.randint(n - k + 1, (), generator=generator)) for n, k in ((h, rows), (w, columns)))
        pixels = self.frames[
            :, : 1 + (latents.shape[2] - 1) * vae.stride_t, s * y : s * (y + rows), s * x : s * (x + columns)
        ]
        video = rearrange(pixels, "b t h w c -> b c t h w").float() / 127.5 - 1
        return latents[:, :, :, y : y + rows, x : x + columns], video

    def to(self, device: torch.device | str) -> FrameBatch:
        """Returns a copy on `device`."""
        return FrameBatch(self.latents.to(device), self.frames.to(device))


class FrameLoader(SampleLoader):
    """Yields FrameBatches endlessly. Each rank reads its own share (see stages.data.loader)."""

    def __init__(
        self,
        shard_sets: Sequence[ShardSet],
        batch: int,
        seed: int,
        rank: int,
        world_size: int,
        cfg: LoaderConfig = IN_PROCESS,
        log: Callable[[str], None] = print,
        micro_steps: int = 1,
    ) -> None:
        super().__init__(
            shard_sets, batch, seed, rank, world_size, _item, _collate, cfg, log=log, micro_steps=micro_steps
        )


def _item(members: Members) -> tuple[Tensor, Tensor]:
    """Returns latents z t h w float32 and pixels T H W 3 uint8, lossless if the shard has them so, else from its mp4."""
    pixels = arrays(members["frames.npz"])["frames"] if "frames.npz" in members else decode_mp4(members["mp4"])
    return torch.from_numpy(arrays(members["latents.npz"])["latents"]).float(), torch.from_numpy(pixels)


def _collate(items: Sequence[tuple[Tensor, Tensor]]) -> FrameBatch:
    return FrameBatch(torch.stack([latents for latents, _ in items]), torch.stack([frames for _, frames in items]))
