"""The one crossing from disk to tensors: endless training batches with an exact position.

A step's micro-batches, over all ranks, each have a lane: every epoch shards are shuffled by (seed, epoch) and dealt to the
lanes, and clips are shuffled within windows of shards (stages/data/order.py). A lane's stream is its shares of all epochs, one
after the other: no clip is dropped, every clip is seen once an epoch in one lane, and a batch may straddle epochs. Ranks take
turns on the micro-batches, so that N ranks with A micro-steps see the very batches of one rank with N * A. Worker processes
take turns on a rank's batches and change no result either. The position is a number of batches of all ranks together.
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
    """Batch of this rank by number. Each worker has its own, with its own open shards. place: number -> (lane, place in it)."""

    def __init__(
        self,
        shards: Sequence[Shard],
        deal: Sequence[Deal],
        place: Callable[[int], tuple[int, int]],
        first_epoch: int,
        batch: int,
        on_corrupt: str,
        item: Callable[[Members], Any],
        collate: Callable[[Sequence[Any]], Any],
    ) -> None:
        self.shards, self.batch, self.on_corrupt = shards, batch, on_corrupt
        self.orders, self.place = [Order(d, first_epoch) for d in deal], place
        self.lanes: set[int] = set()  # those read here: each keeps a window of shards open
        self.item, self.collate = item, collate
        self._open: OrderedDict[int, list[Members]] = OrderedDict()
        self._bad: dict[int, str] = {}

    def __getitem__(self, number: int) -> _Fetched:
        try:
            lane, place = self.place(number)
            self.lanes.add(lane)
            order = self.orders[lane]
            items = [self._item(pick, order.deal) for pick in order.picks(place * self.batch, self.batch)]
        except ValueError as error:  # torch would put a worker's traceback before the message
            return _Fetched(error=str(error))
        return _Fetched(self.collate(items), {str(self.shards[s].path): why for s, why in self._bad.items()})

    def _item(self, pick: Pick, deal: Deal) -> Any:
        """The picked clip; for one of a shard that is left out, a clip of the next sound shard in the epoch's order."""
        for shard in self._candidates(pick, deal):
            if shard in self._bad:
                continue
            places = deal.places[shard]
            place = pick.place if shard == pick.shard else places[pick.place % len(places)]
            try:
                return self._read(shard, place)
            except ValueError as error:
                if self.on_corrupt == "stop":
                    raise
                self._bad[shard] = str(error)
                self._open.pop(shard, None)
        raise ValueError(f"none of the {len(self.shards)} shards can be read; the last: {self._bad[pick.shard]}")

    def _candidates(self, pick: Pick, deal: Deal) -> Iterator[int]:
        """The pick's shard, those after it in this lane's epoch (likely open soon), those before, those of other lanes."""
        yield pick.shard
        share = deal.share(pick.epoch)
        here = share.index(pick.shard)
        yield from (*share[here + 1 :], *share[:here])
        yield from (s for s in range(len(self.shards)) if s not in share)

    def _read(self, number: int, place: int) -> Any:
        if number not in self._open:
            self._open[number] = read_members(self.shards[number])
            if len(self._open) > WINDOW_SHARDS * len(self.lanes):
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
    shards that are left out. micro_steps: batches of this rank in a step. lanes: 0 gives each micro-batch of a step its own
    (the most of them that divide it, where there are fewer shards). Raises ValueError where shards are missing, fewer than
    ranks x workers (given lanes: lanes x workers), or hold fewer clips than one batch of all these.
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
        log: Callable[[str], None] = print,
        micro_steps: int = 1,
        lanes: int = 0,
    ) -> None:
        if kind not in ("", "real", "rendered"):
            raise ValueError(f"kind {kind!r} is not one of real, rendered, or empty for both")
        self.batch, self.cfg = batch, cfg
        self._item, self._collate, self._log = item, collate, log
        self._shards = [s for shard_set in shard_sets for s in read_index(shard_set) if _places(s, kind)]
        self._digest = "+".join(s.digest for s in shard_sets) + kind
        where = ", ".join(s.folder for s in shard_sets)
        readers = lanes or world_size  # in one lane ranks take turns, and may read the same shard
        require_count(len(self._shards), where, readers, cfg.workers)
        places = tuple(_places(s, kind) for s in self._shards)
        clips = sum(len(p) for p in places)
        if not 1 <= batch * readers <= clips:
            raise ValueError(f"{clips} {kind} clips in {where} do not make one batch of {batch} on {readers} ranks")
        self._rank, self._ranks, self._a_step = rank, world_size, micro_steps * world_size
        self._lanes = lanes or max(n for n in range(1, len(places) + 1) if self._a_step % n == 0)
        self._deal = [Deal(places, seed, lane, self._lanes) for lane in range(self._lanes)]
        self._epoch = self._taken = 0  # the epoch the stream begins with; batches yielded since, on this rank
        self._skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Any]:
        """Worker processes start with the first batch and end with this iterator."""
        workers = self.cfg.workers
        batches = _Batches(
            self._shards,
            self._deal,
            partial(_place, self._rank, self._ranks, self._a_step, self._lanes),
            self._epoch,
            self.batch,
            self.cfg.on_corrupt,
            self._item,
            self._collate,
        )
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
            "batches": self._taken * self._ranks,
            "batch": self.batch,
            "a_step": self._a_step,
            "lanes": self._lanes,
            "digest": self._digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken, at the end of a step, on any number of ranks that makes the same step. A step of
        other micro-batches deals the clips otherwise: it goes on at the start of the earliest epoch that a lane was in, where
        clips come again and none is lost.

        Raises ValueError where the state belongs to other data.
        """
        if state["digest"] != self._digest:
            raise ValueError("the data changed since this training began: start it anew, or make the old data again")
        self._epoch, batches = int(state["epoch"]), int(state["batches"])
        before, batch, lanes = (int(state[name]) for name in ("a_step", "batch", "lanes"))
        if (before, batch, lanes) == (self._a_step, self.batch, self._lanes):
            assert batches % self._ranks == 0, "a position with another number of ranks is that of a whole step"
            self._taken = batches // self._ranks
            return
        deals = (replace(self._deal[0], lane=lane, lanes=lanes) for lane in range(lanes))
        self._epoch, self._taken = min(Order(d, self._epoch).epoch(batches // lanes * batch) for d in deals), 0
        self._log(
            f"a step was {before} micro-batches of {batch} clips, now it is {self._a_step} of {self.batch}: the data goes on "
            f"at the start of epoch {self._epoch}"
        )

    def _note(self, skipped: Mapping[str, str]) -> None:
        for path, why in skipped.items():
            if path not in self._skipped:
                self._log(f"left out (loader.on_corrupt=skip): {why}")
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
        log: Callable[[str], None] = print,
        micro_steps: int = 1,
        lanes: int = 0,
    ) -> None:
        tracks = max(s.tracks for shard_set in shard_sets for s in read_index(shard_set))
        collate = partial(_collate, tracks)
        super().__init__(shard_sets, batch, seed, rank, world_size, _clip, collate, cfg, kind, log, micro_steps, lanes)


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
    clip: np.ndarray | None = None


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
        image_tokens=None if any(i.clip is None for i in items) else stack("clip"),
    )


def fit_tracks(xy_px: np.ndarray, visible: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """T n 2, T n -> T count 2, T count: the tracks visible longest, in their order; missing ones are never visible."""
    n = xy_px.shape[1]
    if n > count:
        keep = np.sort(np.argsort(-visible.sum(axis=0), kind="stable")[:count])
        return xy_px[:, keep], visible[:, keep]
    return np.pad(xy_px, ((0, 0), (0, count - n), (0, 0))), np.pad(visible, ((0, 0), (0, count - n)))


def _place(rank: int, ranks: int, a_step: int, lanes: int, number: int) -> tuple[int, int]:
    """(lane, place in it) of a rank's batch by its number; a_step: batches of all ranks in a step."""
    step, micro = divmod(number * ranks + rank, a_step)
    return micro % lanes, step * (a_step // lanes) + micro // lanes


def _places(shard: Shard, kind: str) -> tuple[int, ...]:
    return tuple(i for i, k in enumerate(shard.kinds) if not kind or k == kind)
