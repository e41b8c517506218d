"""The one crossing from disk to tensors: endless training batches with an exact position.

The order of an epoch depends on (seed, epoch) alone: shards are shuffled and dealt to ranks, samples are shuffled within
windows of OPEN_SHARDS shards, which bounds memory. Every rank takes the same number of samples an epoch, so that one
position (epoch, offset) serves all.
Legend: b batch, T pixel frames, n tracks, c channels, t latent frames, h w latent rows and columns, l text tokens.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msmodel.batch import Batch
from stages.data.shards import INDEX, Sample, Shard, arrays, read_index, read_members, read_samples
from stages.records import ShardSet

__all__ = ["INDEX", "Loader", "Sample", "fit_tracks", "read_samples"]

OPEN_SHARDS = 16  # decoded shards kept in memory (without frames)


@dataclass(frozen=True)
class _Item:
    """What training needs of a sample, still in float16."""

    clip_id: str
    real: bool
    xy_px: np.ndarray
    visible: np.ndarray
    latents: np.ndarray
    image: np.ndarray
    text: np.ndarray


class Loader:
    """Batches for ever, each rank its share.

    batch: clips a batch, on this rank. kind: "real" or "rendered" for these only, "" for all. tracks: most tracks a
    clip, 0 for as many as the largest clip of the sets has (the same on every rank).
    Raises ValueError where shards are missing, fewer than ranks, or hold fewer clips of the kind than a batch.
    """

    def __init__(
        self,
        shard_sets: Sequence[ShardSet],
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        kind: str = "",
        tracks: int = 0,
    ) -> None:
        if kind not in ("", "real", "rendered"):
            raise ValueError(f"kind {kind!r} is not one of real, rendered, or empty for both")
        self.batch, self.seed, self.rank, self.world_size = batch, seed, rank, world_size
        everything = [s for shard_set in shard_sets for s in read_index(shard_set)]
        self._shards = [s for s in everything if _count(s, kind)]
        self._kind = kind
        self._digest = "+".join(s.digest for s in shard_sets)
        where = ", ".join(s.folder for s in shard_sets)
        if len(self._shards) < world_size:
            raise ValueError(
                f"{len(self._shards)} shards in {where} for {world_size} ranks: pack smaller shards "
                f"(data.clips_per_shard) or use at most {len(self._shards)} ranks"
            )
        self._tracks = tracks or max(s.tracks for s in everything)
        self._epoch = self._offset = 0
        self._plan: tuple[int, list[tuple[int, int]]] | None = None
        self._open: OrderedDict[int, list[_Item]] = OrderedDict()
        if batch < 1 or not self._epoch_order(0):
            counts = sum(_count(s, kind) for s in self._shards)
            raise ValueError(f"{counts} {kind} clips in {where} do not make one batch of {batch} on {world_size} ranks")

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = self._epoch_order(self._epoch)
            if self._offset + self.batch > len(order):
                self._epoch, self._offset = self._epoch + 1, 0
                continue
            chosen = order[self._offset : self._offset + self.batch]
            self._offset += self.batch
            yield self._collate([self._items(shard)[index] for shard, index in chosen])

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was yielded. The same on every rank."""
        return {"epoch": self._epoch, "offset": self._offset, "world_size": self.world_size, "digest": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken. With another number of ranks the epoch starts anew, as its parts are others.

        Raises ValueError where the state belongs to other data.
        """
        if state["digest"] != self._digest:
            raise ValueError("the data changed since this training began: start it anew, or make the old data again")
        self._epoch = int(state["epoch"])
        self._offset = int(state["offset"]) if state["world_size"] == self.world_size else 0

    def _epoch_order(self, epoch: int) -> list[tuple[int, int]]:
        """This rank's samples as (shard, place), whole batches only."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._make_order(epoch))
        return self._plan[1]

    def _make_order(self, epoch: int) -> list[tuple[int, int]]:
        generator = np.random.default_rng([self.seed, epoch])
        shuffled = generator.permutation(len(self._shards)).tolist()
        shares = [shuffled[r :: self.world_size] for r in range(self.world_size)]
        length = min(sum(_count(self._shards[s], self._kind) for s in share) for share in shares)
        mine = np.random.default_rng([self.seed, epoch, self.rank])
        order: list[tuple[int, int]] = []
        share = shares[self.rank]
        for start in range(0, len(share), OPEN_SHARDS):
            window = [(s, i) for s in share[start : start + OPEN_SHARDS] for i in _places(self._shards[s], self._kind)]
            order += [window[j] for j in mine.permutation(len(window))]
        return order[: length // self.batch * self.batch]

    def _items(self, number: int) -> list[_Item]:
        if number not in self._open:
            self._open[number] = [_item(m) for m in read_members(self._shards[number])]
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _collate(self, items: Sequence[_Item]) -> Batch:
        tracks = [fit_tracks(i.xy_px, i.visible, self._tracks) for i in items]

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([vars(i)[name] for i in items])).float()

        return Batch(
            latents=stack("latents"),
            image=stack("image"),
            text=stack("text"),
            xy_px=torch.from_numpy(np.stack([xy for xy, _ in tracks])),
            visible=torch.from_numpy(np.stack([visible for _, visible in tracks])),
            real=torch.tensor([i.real for i in items]),
            clip_ids=tuple(i.clip_id for i in items),
        )


def fit_tracks(xy_px: np.ndarray, visible: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """T n 2, T n -> T count 2, T count: the tracks visible longest, in their order; missing ones are never visible."""
    n = xy_px.shape[1]
    if n > count:
        keep = np.sort(np.argsort(-visible.sum(axis=0), kind="stable")[:count])
        return xy_px[:, keep], visible[:, keep]
    return np.pad(xy_px, ((0, 0), (0, count - n), (0, 0))), np.pad(visible, ((0, 0), (0, count - n)))


def _count(shard: Shard, kind: str) -> int:
    return len(_places(shard, kind))


def _places(shard: Shard, kind: str) -> list[int]:
    return [i for i, k in enumerate(shard.kinds) if not kind or k == kind]


def _item(members: Mapping[str, Any]) -> _Item:
    meta = json.loads(members["json"])
    tracks, latents = arrays(members["tracks.npz"]), arrays(members["latents.npz"])
    return _Item(members["__key__"], meta["kind"] == "real", tracks["xy_px"], tracks["visible"], **latents)
