"""Reads crops of latents with the pixels that they encode from shards, for the training of the tiny VAE.

A crop is a square of pixels over a few latent frames. Only its frames are decoded, and its place follows from the seed,
the epoch and the clip, so that it is made where the shard is read: in the loader's processes, not in the training's.

Legend: b batch, z latent channels, t latent frames, T pixel frames, h w latent size, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from msmodel.config import VAEConfig
from stages.data.loader import IN_PROCESS, LoaderConfig, SampleLoader
from stages.data.shards import Members, arrays, decode_mp4
from stages.records import ShardSet


@dataclass(frozen=True)
class FrameBatch:
    """Latents of a batch with their pixels.

    latents: b z t h w float32, normalised. frames: b T H W 3 uint8, T = 1 + (t - 1) * stride_t: the last frame of the
    first latent, then all frames of the others. begins: b bool, whether the first latent is also the clip's first. A
    decoder knows only then what precedes it.
    """

    latents: Tensor
    frames: Tensor
    begins: Tensor

    def video(self) -> Tensor:
        """Returns the pixels as b 3 T H W in [-1, 1]."""
        return rearrange(self.frames, "b T h w c -> b c T h w").float() / 127.5 - 1

    def to(self, device: torch.device | str) -> FrameBatch:
        """Returns a copy on `device`."""
        return FrameBatch(self.latents.to(device), self.frames.to(device), self.begins.to(device))

    def clips(self) -> Iterator[FrameBatch]:
        """Yields the clips one by one, each as a batch of one."""
        for i in range(len(self.latents)):
            yield FrameBatch(self.latents[i, None], self.frames[i, None], self.begins[i, None])


@dataclass(frozen=True)
class CropSize:
    """The size of a crop. latent_frames: latent frames, 0 = all. side_px: side of the square in pixels, 0 = full size.

    Sides are rounded down to whole latents.
    """

    vae: VAEConfig
    latent_frames: int = 0
    side_px: int = 0


@dataclass(frozen=True)
class Crop:
    """The place of a crop in latents: half-open ranges of latent frames, rows and columns."""

    frames: range
    rows: range
    columns: range

    def of_latents(self, latents: np.ndarray) -> np.ndarray:
        """Returns the crop of latents z t h w."""
        return latents[:, self.frames.start : self.frames.stop, self._rows(1), self._columns(1)]

    def pixel_frames(self, stride_t: int) -> range:
        """Returns the numbers of its pixel frames: latent k's last one is k * stride_t."""
        return range(self.frames.start * stride_t, (self.frames.stop - 1) * stride_t + 1)

    def of_pixels(self, frames: np.ndarray, stride_s: int) -> np.ndarray:
        """Returns the square of frames T H W 3."""
        return frames[:, self._rows(stride_s), self._columns(stride_s)]

    def _rows(self, scale: int) -> slice:
        return slice(scale * self.rows.start, scale * self.rows.stop)

    def _columns(self, scale: int) -> slice:
        return slice(scale * self.columns.start, scale * self.columns.stop)


def place_crop(size: CropSize, shape: Sequence[int], generator: torch.Generator) -> Crop:
    """Returns a crop at a random place. shape: (t, h, w) of the clip's latents."""
    side = max(1, size.side_px // size.vae.stride_s) if size.side_px else 0
    spans = []
    for whole, wanted in zip(shape, (size.latent_frames, side, side), strict=True):
        length = min(wanted, whole) if wanted else whole
        first = int(torch.randint(whole - length + 1, (), generator=generator))
        spans.append(range(first, first + length))
    return Crop(*spans)


class FrameLoader(SampleLoader):
    """Yields FrameBatches of crops endlessly. Each rank reads its own share (see stages.data.loader)."""

    def __init__(
        self,
        shard_sets: Sequence[ShardSet],
        batch: int,
        seed: int,
        rank: int,
        world_size: int,
        size: CropSize,
        cfg: LoaderConfig = IN_PROCESS,
        log: Callable[[str], None] = print,
        micro_steps: int = 1,
    ) -> None:
        shards = sum(len(shard_set.shards) for shard_set in shard_sets)
        decoding = replace(cfg, workers=max(cfg.workers, min(cfg.decode_workers, shards // world_size)))
        item = partial(_item, size, seed)
        super().__init__(
            shard_sets, batch, seed, rank, world_size, item, _collate, decoding, log=log, micro_steps=micro_steps
        )


_Item = tuple[Tensor, Tensor, bool]


def _item(size: CropSize, seed: int, members: Members, epoch: int) -> _Item:
    """Returns latents z t h w float32, pixels T H W 3 uint8 (lossless if the shard has them so, else from its mp4), and
    whether they begin with the clip."""
    latents = arrays(members["latents.npz"])["latents"]
    crop = place_crop(size, latents.shape[1:], _generator(seed, epoch, members.key))
    wanted = crop.pixel_frames(size.vae.stride_t)
    if "frames.npz" in members:
        pixels = arrays(members["frames.npz"])["frames"][wanted.start : wanted.stop]
    else:
        pixels = decode_mp4(members["mp4"], wanted)
    square = np.ascontiguousarray(crop.of_pixels(pixels, size.vae.stride_s))
    return torch.from_numpy(crop.of_latents(latents)).float(), torch.from_numpy(square), crop.frames.start == 0


def _generator(seed: int, epoch: int, key: str) -> torch.Generator:
    digest = hashlib.blake2b(repr((seed, epoch, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _collate(items: Sequence[_Item]) -> FrameBatch:
    latents, frames, begins = zip(*items, strict=True)
    return FrameBatch(torch.stack(latents), torch.stack(frames), torch.tensor(begins))
