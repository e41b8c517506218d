"""The one crossing from disk to tensors: endless training batches with an exact position.

Every epoch shards are shuffled by (seed, epoch) and dealt to the ranks, and clips are shuffled within windows of shards
(stages/data/order.py). A rank's stream is its shares of all epochs, one after the other: no clip is dropped, every clip is
seen once an epoch by one rank, and a batch may straddle epochs. Worker processes take turns on whole batches of this one
order, so their number changes no result. The position is a number of batches, the same on every rank.
Tracks are only filled up or cut to one number here: which of them a step sees, their ids and masks are drawn by the step
itself (stages/train/conditioning.py), because they depend on the step's phase and must be the same in all guidance branches.
Legend: b batch, T pixel frames, n tracks, c channels, t latent frames, h w latent rows and columns, l text tokens.
"""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from msmodel.batch import Batch
from stages.data.order import WINDOW_SHARDS, Deal, Order, Pick
from stages.data.shards import (
    INDEX,
    Members,
    Sample,
    Shard,
    arrays,
    read_index,
    read_members,
    read_samples,
    require_count,
)
from stages.records import ShardSet

__all__ = ["INDEX", "IN_PROCESS", "Loader", "LoaderConfig", "Sample", "SampleLoader", "fit_tracks", "read_samples"]

POLICIES = ("stop", "skip")


@dataclass(frozen=True)
class LoaderConfig:
    """How training batches are read. Never part of a step's key.

    workers: processes a rank that read ahead; 0 reads in the training process. They change no result. prefetch: batches
    that each worker holds ready, in shared memory (/dev/shm). on_corrupt: "stop" ends the training at a shard that is
    damaged or missing; "skip" goes on without it, says so and counts it (loader/skipped_shards).
    """

    workers: int = 0
    prefetch: int = 2
    on_corrupt: str = "stop"

    def problems(self) -> list[str]:
        """Every inconsistency, as 'loader.field: what is wrong and how to mend it'; empty when sound."""
        least = {"workers": 0, "prefetch": 1}
        out = [f"loader.{n}: {vars(self)[n]} must be at least {low}" for n, low in least.items() if vars(self)[n] < low]
        if self.on_corrupt not in POLICIES:
            out.append(f"loader.on_corrupt: {self.on_corrupt!r} is not one of {', '.join(POLICIES)}")
        return out


IN_PROCESS = LoaderConfig()


@dataclass(frozen=True)
class _Fetched:
    """What comes out of a worker. skipped: by path, why this worker left a shard out. error: for the user."""

    batch: Any = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


class _Batches(Dataset[_Fetched]):
    """Batch by number. Each worker has its own, with its own open shards."""

    def __init__(
        self,
        shards: Sequence[Shard],
        order: Order,
        batch: int,
        on_corrupt: str,
        item: Callable[[Members], Any],
        collate: Callable[[Sequence[Any]], Any],
    ) -> None:
        self.shards, self.order, self.batch, self.on_corrupt = shards, order, batch, on_corrupt
        self.item, self.collate = item, collate
        self._open: OrderedDict[int, list[Members]] = OrderedDict()
        self._bad: dict[int, str] = {}

    def __getitem__(self, number: int) -> _Fetched:
        try:
            items = [self._item(pick) for pick in self.order.picks(number * self.batch, self.batch)]
        except ValueError as error:  # torch would put a worker's traceback before the message
            return _Fetched(error=str(error))
        return _Fetched(self.collate(items), {str(self.shards[s].path): why for s, why in self._bad.items()})

    def _item(self, pick: Pick) -> Any:
        """The picked clip; for one of a shard that is left out, a clip of the next sound shard in the epoch's order."""
        for shard in self._candidates(pick):
            if shard in self._bad:
                continue
            places = self.order.deal.places[shard]
            place = pick.place if shard == pick.shard else places[pick.place % len(places)]
            try:
                return self._read(shard, place)
            except ValueError as error:
                if self.on_corrupt == "stop":
                    raise
                self._bad[shard] = str(error)
                self._open.pop(shard, None)
        raise ValueError(f"none of the {len(self.shards)} shards can be read; the last: {self._bad[pick.shard]}")

    def _candidates(self, pick: Pick) -> Iterator[int]:
        """The pick's shard, those after it in this rank's epoch (likely open soon), those before, those of other ranks."""
        yield pick.shard
        share = self.order.deal.share(pick.epoch)
        here = share.index(pick.shard)
        yield from (*share[here + 1 :], *share[:here])
        yield from (s for s in range(len(self.shards)) if s not in share)

    def _read(self, number: int, place: int) -> Any:
        if number not in self._open:
            self._open[number] = read_members(self.shards[number])
            if len(self._open) > WINDOW_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        members = self._open[number][place]
        try:
            return self.item(members)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            where = f"shard {self.shards[number].path}: sample {members.key}"
            raise ValueError(f"{where} cannot be read ({error}): make the data again (`make data`)") from error


class SampleLoader:
    """Batches for ever, each rank its share; see the module for their order.

    batch: clips a batch, on this rank. item: what training needs of a sample. collate: items -> a batch; both are module
    functions, because they go to worker processes. kind: "real" or "rendered" for these only, "" for all. say: hears of
    shards that are left out. Raises ValueError where shards are missing, fewer than ranks x workers, or hold fewer clips
    than one batch of all ranks.
    """

    def __init__(
        self,
        shard_sets: Sequence[ShardSet],
        batch: int,
        seed: int,
        rank: int,
        world_size: int,
        item: Callable[[Members], Any],
        collate: Callable[[Sequence[Any]], Any],
        cfg: LoaderConfig = IN_PROCESS,
        kind: str = "",
        say: Callable[[str], None] = print,
    ) -> None:
        if kind not in ("", "real", "rendered"):
            raise ValueError(f"kind {kind!r} is not one of real, rendered, or empty for both")
        self.batch, self.cfg = batch, cfg
        self._item, self._collate, self._say = item, collate, say
        self._shards = [s for shard_set in shard_sets for s in read_index(shard_set) if _places(s, kind)]
        self._digest = "+".join(s.digest for s in shard_sets) + kind
        where = ", ".join(s.folder for s in shard_sets)
        require_count(len(self._shards), where, world_size, cfg.workers)
        self._deal = Deal(tuple(_places(s, kind) for s in self._shards), seed, rank, world_size)
        clips = sum(len(p) for p in self._deal.places)
        if not 1 <= batch * world_size <= clips:
            raise ValueError(f"{clips} {kind} clips in {where} do not make one batch of {batch} on {world_size} ranks")
        self._epoch = self._taken = 0  # the epoch the stream begins with; batches yielded since
        self._skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Any]:
        """Worker processes start with the first batch and end with this iterator."""
        workers = self.cfg.workers
        order = Order(self._deal, self._epoch)
        batches = _Batches(self._shards, order, self.batch, self.cfg.on_corrupt, self._item, self._collate)
        loaded = DataLoader(
            batches,
            batch_size=None,
            sampler=count(self._taken),
            num_workers=workers,
            prefetch_factor=self.cfg.prefetch if workers else None,
            multiprocessing_context="spawn" if workers else None,  # a fork would inherit CUDA, Ray's threads and locks
            generator=torch.Generator(),  # its own: else starting draws from the global random state
        )
        for fetched in loaded:
            if fetched.error:
                raise ValueError(fetched.error)
            self._note(fetched.skipped)
            self._taken += 1
            yield fetched.batch

    def metrics(self) -> dict[str, float]:
        """Figures for the log: how many shards this rank has left out."""
        return {"loader/skipped_shards": float(len(self._skipped))}

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was yielded. The same on every rank, with any number of workers."""
        return {
            "epoch": self._epoch,
            "batches": self._taken,
            "batch": self.batch,
            "world_size": self._deal.world_size,
            "digest": self._digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken. With other ranks or another batch, whose shares are others, it goes on at the
        start of the earliest epoch that a rank was in: clips of it come again, none is lost.

        Raises ValueError where the state belongs to other data.
        """
        if state["digest"] != self._digest:
            raise ValueError("the data changed since this training began: start it anew, or make the old data again")
        self._epoch, self._taken = int(state["epoch"]), int(state["batches"])
        ranks, batch = int(state["world_size"]), int(state["batch"])
        if (ranks, batch) == (self._deal.world_size, self.batch):
            return
        deals = (replace(self._deal, rank=r, world_size=ranks) for r in range(ranks))
        self._epoch, self._taken = min(Order(d, self._epoch).epoch(self._taken * batch) for d in deals), 0
        self._say(
            f"the data was read by {ranks} ranks in batches of {batch}, now by {self._deal.world_size} in batches of "
            f"{self.batch}: it goes on at the start of epoch {self._epoch}"
        )

    def _note(self, skipped: Mapping[str, str]) -> None:
        for path, why in skipped.items():
            if path not in self._skipped:
                self._say(f"left out (loader.on_corrupt=skip): {why}")
        self._skipped |= skipped


class Loader(SampleLoader):
    """Batches of msmodel.batch.Batch: latents, text and tracks, without pixels. Every clip gets as many tracks as the
    largest of the sets has."""

    def __init__(
        self,
        shard_sets: Sequence[ShardSet],
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        cfg: LoaderConfig = IN_PROCESS,
        kind: str = "",
        say: Callable[[str], None] = print,
    ) -> None:
        tracks = max(s.tracks for shard_set in shard_sets for s in read_index(shard_set))
        collate = partial(_collate, tracks)
        super().__init__(shard_sets, batch, seed, rank, world_size, _clip, collate, cfg, kind, say)


@dataclass(frozen=True)
class _Clip:
    """What training needs of a sample, still in float16."""

    clip_id: str
    real: bool
    xy_px: np.ndarray
    visible: np.ndarray
    latents: np.ndarray
    image: np.ndarray
    text: np.ndarray


def _clip(members: Members) -> _Clip:
    meta = json.loads(members["json"])
    tracks, latents = arrays(members["tracks.npz"]), arrays(members["latents.npz"])
    return _Clip(members.key, meta["kind"] == "real", tracks["xy_px"], tracks["visible"], **latents)


def _collate(tracks: int, items: Sequence[_Clip]) -> Batch:
    fitted = [fit_tracks(i.xy_px, i.visible, tracks) for i in items]
    assert all(xy.shape[1] == visible.shape[1] == tracks for xy, visible in fitted)

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([vars(i)[name] for i in items])).float()

    return Batch(
        latents=stack("latents"),
        image=stack("image"),
        text=stack("text"),
        xy_px=torch.from_numpy(np.stack([xy for xy, _ in fitted])),
        visible=torch.from_numpy(np.stack([visible for _, visible in fitted])),
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


def _places(shard: Shard, kind: str) -> tuple[int, ...]:
    return tuple(i for i, k in enumerate(shard.kinds) if not kind or k == kind)
