"""Latents with the pixels they stand for, read from shards: what the tiny VAE trains on.

Legend: b batch, z latent channels, t latent frames, h w latent size, T pixel frames, H W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from msmodel.config import VAEConfig
from stages.data.shards import Shard, arrays, decode_mp4, read_index, read_members
from stages.records import ShardSet
from stages.spec import StageError

OPEN_SHARDS = 4  # shards kept in memory, still compressed


@dataclass(frozen=True)
class FrameBatch:
    """latents: b z t h w float32, normalised. frames: b T H W 3 uint8."""

    latents: Tensor
    frames: Tensor

    def crop(
        self, latent_frames: int, side_px: int, vae: VAEConfig, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The first `latent_frames` latents of a random square of `side_px` pixels, and its video b 3 T H W in [-1, 1].

        0 means all. Sides are cut to whole latents. It starts with the clip, because the decoder's memory does.
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
        return FrameBatch(self.latents.to(device), self.frames.to(device))


class FrameLoader:
    """FrameBatches for ever, each rank its shards, with an exact position (see method.Loader).

    The order depends on (seed, epoch): shards shuffled and dealt to ranks, clips shuffled within a shard, so that few
    shards are open at a time.
    """

    def __init__(self, shard_sets: Sequence[ShardSet], batch: int, seed: int, rank: int, world_size: int) -> None:
        self.shards = [s for shard_set in shard_sets for s in read_index(shard_set)]
        self.batch, self.seed, self.rank, self.world_size = batch, seed, rank, world_size
        if len(self.shards) < world_size:
            raise StageError(
                f"{len(self.shards)} shards for {world_size} ranks: lower data.clips_per_shard or the ranks"
            )
        self.epoch = self.place = 0  # of the next clip
        self._order: tuple[int, list[tuple[int, int]]] = (-1, [])
        self._open: OrderedDict[int, list[Mapping[str, Any]]] = OrderedDict()

    def __iter__(self) -> Iterator[FrameBatch]:
        while True:
            clips = [self._clip(*self._next()) for _ in range(self.batch)]
            latents = torch.stack([torch.from_numpy(arrays(c["latents.npz"])["latents"]).float() for c in clips])
            yield FrameBatch(latents, torch.stack([_frames(c) for c in clips]))

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.place = int(state["epoch"]), int(state["place"])

    def _next(self) -> tuple[int, int]:
        if self._order[0] != self.epoch:
            self._order = (self.epoch, self._epoch_order(self.epoch))
        here = self._order[1][self.place]
        self.place += 1
        if self.place == len(self._order[1]):
            self.epoch, self.place = self.epoch + 1, 0
        return here

    def _epoch_order(self, epoch: int) -> list[tuple[int, int]]:
        """This rank's (shard, clip) for one epoch."""
        g = torch.Generator().manual_seed((self.seed << 20) + epoch)
        mine = torch.randperm(len(self.shards), generator=g).tolist()[self.rank :: self.world_size]
        return [(s, i) for s in mine for i in torch.randperm(len(self.shards[s].kinds), generator=g).tolist()]

    def _clip(self, number: int, index: int) -> Mapping[str, Any]:
        if number not in self._open:
            shard: Shard = self.shards[number]
            self._open[number] = read_members(shard)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return self._open[number][index]


def _frames(clip: Mapping[str, Any]) -> Tensor:
    """T H W 3 uint8: lossless where the shard has it, else as compressed."""
    pixels = arrays(clip["frames.npz"])["frames"] if "frames.npz" in clip else decode_mp4(clip["mp4"])
    return torch.from_numpy(pixels)
