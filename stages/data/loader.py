"""Reads shards as an endless sequence of training batches, with a position that can be saved and restored exactly.

Every micro-batch of a step, counted over all ranks, reads from a partition of the shards (stages/data/order.py). Each epoch
shards are shuffled by (seed, epoch) and assigned to the partitions, and clips are shuffled within windows of shards. A
partition's epochs follow one another: no clip is dropped, each comes once an epoch in one partition, and a batch may straddle
epochs. Micro-batches go to the ranks in turn, so N ranks with A micro-steps read exactly the batches of one rank with N * A.
Worker processes read a rank's batches in turn and change no result either. The position is the number of batches that all
ranks together have read.
Here tracks are only padded or reduced to one number. Which of them a step uses, their ids and their masks are drawn in the
step (stages/train/conditioning.py): they depend on its phase and must be the same in all guidance branches.
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
from stages.data.order import WINDOW_SHARDS, SampleIndex, SampleOrder, ShardAssignment
from stages.data.shards import (
    INDEX,
    Members,
    Sample,
    Shard,
    StoredSample,
    arrays,
    list_samples,
    read_index,
    read_members,
    require_count,
    with_padding,
)
from stages.records import ShardSet

__all__ = [
    "INDEX",
    "IN_PROCESS",
    "Loader",
    "LoaderConfig",
    "Sample",
    "SampleLoader",
    "StoredSample",
    "fit_tracks",
    "list_samples",
]

POLICIES = ("stop", "skip")
START_METHOD = "spawn"  # of worker processes: a fork would inherit CUDA, Ray's threads and locks


@dataclass(frozen=True)
class LoaderConfig:
    """Settings of how training batches are read. They change no result and are never part of a step's key.

    workers: processes per rank that read ahead; 0 reads in the training process. decode_workers: as many at least where
    videos are decoded, in the training of the tiny VAE, or one a shard of the rank if that is fewer. prefetch: batches that
    each worker holds ready, in shared memory (/dev/shm). on_corrupt: "stop" ends the training at a shard that is damaged or
    missing; "skip" goes on without it, logs it and counts it (loader/skipped_shards).
    """

    workers: int = 0
    decode_workers: int = 4
    prefetch: int = 2
    on_corrupt: str = "stop"

    def problems(self) -> list[str]:
        """Lists every inconsistency as 'loader.field: what is wrong and how to fix it'; empty if there is none."""
        least = {"workers": 0, "decode_workers": 0, "prefetch": 1}
        out = [f"loader.{n}: {vars(self)[n]} must be at least {low}" for n, low in least.items() if vars(self)[n] < low]
        if self.on_corrupt not in POLICIES:
            out.append(f"loader.on_corrupt: {self.on_corrupt!r} is not one of {', '.join(POLICIES)}")
        return out


IN_PROCESS = LoaderConfig()


@dataclass(frozen=True)
class _Fetched:
    """Carries one batch from a worker process. skipped: path of each shard that this worker left out -> why. error: a message
    for the user, "" if there is none."""

    batch: Any = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


class _Batches(Dataset[_Fetched]):
    """Reads a batch of this rank by its number. Each worker process has one, with its own open shards.

    locate: number of a batch -> (partition, number of the batch in the partition).
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        assignments: Sequence[ShardAssignment],
        locate: Callable[[int], tuple[int, int]],
        first_epoch: int,
        batch: int,
        on_corrupt: str,
        item: Callable[[Members, int], Any],
        collate: Callable[[Sequence[Any]], Any],
    ) -> None:
        self.shards, self.batch, self.on_corrupt = shards, batch, on_corrupt
        self.orders, self.locate = [SampleOrder(a, first_epoch) for a in assignments], locate
        self.partitions: set[int] = set()  # those read here: each keeps a window of shards open
        self.item, self.collate = item, collate
        self._open: OrderedDict[int, list[Members]] = OrderedDict()
        self._bad: dict[int, str] = {}

    def __getitem__(self, number: int) -> _Fetched:
        try:
            partition, position = self.locate(number)
            self.partitions.add(partition)
            order = self.orders[partition]
            items = [self._item(index, order.assignment) for index in order.indices(position * self.batch, self.batch)]
        except ValueError as error:  # torch would print a worker's traceback before the message
            return _Fetched(error=str(error))
        return _Fetched(self.collate(items), {str(self.shards[s].path): why for s, why in self._bad.items()})

    def _item(self, index: SampleIndex, assignment: ShardAssignment) -> Any:
        """Returns the item of a clip; where its shard is left out, one of the next readable shard in the epoch's order."""
        for shard in self._candidates(index, assignment):
            if shard in self._bad:
                continue
            places = assignment.places[shard]
            place = index.place if shard == index.shard else places[index.place % len(places)]
            try:
                return self._read(shard, place, index.epoch)
            except ValueError as error:
                if self.on_corrupt == "stop":
                    raise
                self._bad[shard] = str(error)
                self._open.pop(shard, None)
        raise ValueError(f"none of the {len(self.shards)} shards can be read; the last: {self._bad[index.shard]}")

    def _candidates(self, index: SampleIndex, assignment: ShardAssignment) -> Iterator[int]:
        """Yields the clip's shard, then those that replace it: later ones of the partition's epoch (they will be open soon),
        earlier ones, those of other partitions."""
        yield index.shard
        own = assignment.shards(index.epoch)
        here = own.index(index.shard)
        yield from (*own[here + 1 :], *own[:here])
        yield from (s for s in range(len(self.shards)) if s not in own)

    def _read(self, number: int, place: int, epoch: int) -> Any:
        if number not in self._open:
            self._open[number] = read_members(self.shards[number])
            if len(self._open) > WINDOW_SHARDS * len(self.partitions):
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        members = self._open[number][place]
        try:
            return self.item(members, epoch)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            where = f"shard {self.shards[number].path}: sample {members.key}"
            raise ValueError(f"{where} cannot be read ({error}): make the data again (`make data`)") from error


class SampleLoader:
    """Yields batches endlessly, for one rank; the module describes their order.

    batch: clips per batch on this rank. item: sample and epoch -> what training needs of it; collate: items -> a batch. Both
    go to worker processes and must be module-level functions. kind: "real" or "rendered" to read only these, "" for all.
    log: called for each shard that is left out. micro_steps: batches per step on this rank. partitions: into how many parts
    the shards are divided; 0 gives each micro-batch of a step its own or, with fewer shards, takes the largest divisor.
    Raises ValueError if shards are missing, if there are fewer than ranks x workers (or the given partitions x workers), or
    if they hold fewer clips than one batch for each of these.
    """

    def __init__(
        self,
        shard_sets: Sequence[ShardSet],
        batch: int,
        seed: int,
        rank: int,
        world_size: int,
        item: Callable[[Members, int], Any],
        collate: Callable[[Sequence[Any]], Any],
        cfg: LoaderConfig = IN_PROCESS,
        kind: str = "",
        log: Callable[[str], None] = print,
        micro_steps: int = 1,
        partitions: int = 0,
    ) -> None:
        if kind not in ("", "real", "rendered"):
            raise ValueError(f"kind {kind!r} is not one of real, rendered, or empty for both")
        self.batch, self.cfg = batch, cfg
        self._item, self._collate, self._log = item, collate, log
        self._shards = [s for shard_set in shard_sets for s in read_index(shard_set) if _places(s, kind)]
        self._digest = "+".join(s.digest for s in shard_sets) + kind
        where = ", ".join(s.folder for s in shard_sets)
        readers = partitions or world_size  # within one partition ranks take turns and may read the same shard
        require_count(len(self._shards), where, readers, cfg.workers)
        places = tuple(_places(s, kind) for s in self._shards)
        clips = sum(len(p) for p in places)
        if not 1 <= batch * readers <= clips:
            raise ValueError(f"{clips} {kind} clips in {where} do not make one batch of {batch} on {readers} ranks")
        self._rank, self._ranks, self._a_step = rank, world_size, micro_steps * world_size
        self._partitions = partitions or max(n for n in range(1, len(places) + 1) if self._a_step % n == 0)
        self._assignments = [
            ShardAssignment(places, seed, partition, self._partitions) for partition in range(self._partitions)
        ]
        self._epoch = self._taken = 0  # the epoch the stream begins with; batches yielded since, on this rank
        self._skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Any]:
        """Yields batches. Worker processes start with the first batch and end with this iterator."""
        workers = self.cfg.workers
        batches = _Batches(
            self._shards,
            self._assignments,
            partial(_locate, self._rank, self._ranks, self._a_step, self._partitions),
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
            multiprocessing_context=START_METHOD if workers else None,
            generator=torch.Generator(),  # its own: otherwise starting changes the global random state
        )
        for fetched in loaded:
            if fetched.error:
                raise ValueError(fetched.error)
            self._note(fetched.skipped)
            self._taken += 1
            yield fetched.batch

    def metrics(self) -> dict[str, float]:
        """Returns how many shards this rank has left out, for the log."""
        return {"loader/skipped_shards": float(len(self._skipped))}

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last yielded batch: the same on every rank, with any number of workers."""
        return {
            "epoch": self._epoch,
            "batches": self._taken * self._ranks,
            "batch": self.batch,
            "a_step": self._a_step,
            "partitions": self._partitions,
            "digest": self._digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a position that was saved at the end of a step, on any number of ranks that makes the same step.

        Other micro-batches per step assign the clips differently. Reading then restarts at the earliest epoch that a
        partition was in: some clips come again, none is left out. Raises ValueError if the state belongs to other data.
        """
        if state["digest"] != self._digest:
            raise ValueError("the data changed since this training began: start it again, or make the old data again")
        self._epoch, batches = int(state["epoch"]), int(state["batches"])
        before, batch, partitions = (int(state[name]) for name in ("a_step", "batch", "partitions"))
        if (before, batch, partitions) == (self._a_step, self.batch, self._partitions):
            assert batches % self._ranks == 0, "a position with another number of ranks is that of a whole step"
            self._taken = batches // self._ranks
            return
        old = (replace(self._assignments[0], partition=p, partitions=partitions) for p in range(partitions))
        self._epoch, self._taken = min(SampleOrder(a, self._epoch).epoch(batches // partitions * batch) for a in old), 0
        self._log(
            f"a step was {before} micro-batches of {batch} clips and now is {self._a_step} of {self.batch}: the data continues "
            f"at the start of epoch {self._epoch}"
        )

    def _note(self, skipped: Mapping[str, str]) -> None:
        for path, why in skipped.items():
            if path not in self._skipped:
                self._log(f"left out (loader.on_corrupt=skip): {why}")
        self._skipped |= skipped


class Loader(SampleLoader):
    """Yields batches of latents, text and tracks (msmodel.batch.Batch), without pixels. Every clip is padded to the largest
    number of tracks in the sets."""

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
        partitions: int = 0,
    ) -> None:
        tracks = max(s.tracks for shard_set in shard_sets for s in read_index(shard_set))
        collate = partial(_collate, tracks)
        super().__init__(
            shard_sets, batch, seed, rank, world_size, _clip, collate, cfg, kind, log, micro_steps, partitions
        )


@dataclass(frozen=True)
class _Clip:
    """Holds the arrays of one sample that training needs, still in float16."""

    clip_id: str
    real: bool
    xy_px: np.ndarray
    visible: np.ndarray
    latents: np.ndarray
    image: np.ndarray
    text: np.ndarray
    clip: np.ndarray | None = None
    empty_text: np.ndarray | None = None
    negative_text: np.ndarray | None = None


def _clip(members: Members, _epoch: int) -> _Clip:
    meta = json.loads(members["json"])
    tracks, latents = arrays(members["tracks.npz"]), arrays(members["latents.npz"])
    return _Clip(members.key, meta["kind"] == "real", tracks["xy_px"], tracks["visible"], **with_padding(latents))


def _collate(tracks: int, items: Sequence[_Clip]) -> Batch:
    fitted = [fit_tracks(i.xy_px, i.visible, tracks) for i in items]
    assert all(xy.shape[1] == visible.shape[1] == tracks for xy, visible in fitted)

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([vars(i)[name] for i in items])).float()

    def where_all_have(name: str) -> Tensor | None:
        return None if any(vars(i)[name] is None for i in items) else stack(name)

    return Batch(
        latents=stack("latents"),
        image=stack("image"),
        text=stack("text"),
        xy_px=torch.from_numpy(np.stack([xy for xy, _ in fitted])),
        visible=torch.from_numpy(np.stack([visible for _, visible in fitted])),
        real=torch.tensor([i.real for i in items]),
        clip_ids=tuple(i.clip_id for i in items),
        image_tokens=where_all_have("clip"),
        empty_text=where_all_have("empty_text"),
        negative_text=where_all_have("negative_text"),
    )


def fit_tracks(xy_px: np.ndarray, visible: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads or reduces tracks to `count`: T n 2, T n -> T count 2, T count.

    The longest visible ones are kept, in their order; added ones are never visible.
    """
    n = xy_px.shape[1]
    if n > count:
        keep = np.sort(np.argsort(-visible.sum(axis=0), kind="stable")[:count])
        return xy_px[:, keep], visible[:, keep]
    return np.pad(xy_px, ((0, 0), (0, count - n), (0, 0))), np.pad(visible, ((0, 0), (0, count - n)))


def _locate(rank: int, ranks: int, a_step: int, partitions: int, number: int) -> tuple[int, int]:
    """Returns (partition, number of the batch in it) for the number of a rank's batch. a_step: batches of all ranks in a
    step."""
    step, micro = divmod(number * ranks + rank, a_step)
    return micro % partitions, step * (a_step // partitions) + micro // partitions


def _places(shard: Shard, kind: str) -> tuple[int, ...]:
    return tuple(i for i, k in enumerate(shard.kinds) if not kind or k == kind)
