"""Which clip comes when in training: a pure function of the data, the seed, the partition and the position in it.

Each epoch the shards are shuffled and divided into partitions (ShardAssignment). A partition yields every clip of its shards
once an epoch, then goes on with the next epoch (SampleOrder).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

WINDOW_SHARDS = 16  # clips are shuffled within so many shards: reading stays local, and few shards are open at a time
KEPT_EPOCHS = 2  # orders in memory: a batch may straddle two epochs


@dataclass(frozen=True)
class SampleIndex:
    """Names one clip of an epoch: the number of its shard, and its place among the samples of that shard."""

    epoch: int
    shard: int
    place: int


@dataclass(frozen=True)
class ShardAssignment:
    """Assigns shards to one of several partitions, again for each epoch.

    places: for each shard, the places of the clips to train on.
    """

    places: tuple[tuple[int, ...], ...]
    seed: int
    partition: int
    partitions: int

    def shards(self, epoch: int) -> list[int]:
        """Returns the numbers of this partition's shards in the order in which they are read."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.places)).tolist()
        return shuffled[self.partition :: self.partitions]

    def size(self, epoch: int) -> int:
        """Returns the number of clips that this partition has in an epoch."""
        return sum(len(self.places[s]) for s in self.shards(epoch))

    def order(self, epoch: int) -> list[SampleIndex]:
        """Returns the clips of this partition in their order, each once; they are shuffled within windows of shards."""
        generator = np.random.default_rng([self.seed, epoch, self.partition])
        shards, out = self.shards(epoch), list[SampleIndex]()
        for start in range(0, len(shards), WINDOW_SHARDS):
            window = [SampleIndex(epoch, s, p) for s in shards[start : start + WINDOW_SHARDS] for p in self.places[s]]
            out += [window[i] for i in generator.permutation(len(window))]
        return out


class SampleOrder:
    """Holds the endless sequence of a partition's clips from epoch `first_epoch` on. It can only be read forward."""

    def __init__(self, assignment: ShardAssignment, first_epoch: int) -> None:
        self.assignment = assignment
        self._epoch, self._start = first_epoch, 0  # the epoch that holds the last clip asked for; where it starts
        self._orders: OrderedDict[int, list[SampleIndex]] = OrderedDict()

    def epoch(self, index: int) -> int:
        """Returns the epoch of the index-th clip."""
        assert index >= self._start, "the order can only be read forward"
        while index >= self._start + (size := self.assignment.size(self._epoch)):
            self._epoch, self._start = self._epoch + 1, self._start + size
        return self._epoch

    def indices(self, index: int, count: int) -> list[SampleIndex]:
        """Returns `count` clips from the index-th on."""
        epoch = self.epoch(index)
        out = self._order(epoch)[index - self._start :][:count]
        while len(out) < count:
            epoch += 1
            out += self._order(epoch)[: count - len(out)]
        return out

    def _order(self, epoch: int) -> list[SampleIndex]:
        if epoch not in self._orders:
            self._orders[epoch] = self.assignment.order(epoch)
            if len(self._orders) > KEPT_EPOCHS:
                self._orders.popitem(last=False)
        return self._orders[epoch]
