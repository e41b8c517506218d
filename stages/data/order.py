"""Which clips make a training batch: a pure function of the data, the seed, the lane and the place in it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

WINDOW_SHARDS = 16  # clips are shuffled within so many shards: reading stays local, and few shards are open at a time
KEPT_EPOCHS = 2  # orders in memory: a batch may straddle two epochs


@dataclass(frozen=True)
class Pick:
    """One clip: the epoch it is seen in, its shard's number and its place in it."""

    epoch: int
    shard: int
    place: int


@dataclass(frozen=True)
class Deal:
    """Shards dealt to the lanes anew each epoch. places: by shard, where in it the clips to train on lie."""

    places: tuple[tuple[int, ...], ...]
    seed: int
    lane: int
    lanes: int

    def share(self, epoch: int) -> list[int]:
        """This lane's shards in their order."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.places)).tolist()
        return shuffled[self.lane :: self.lanes]

    def size(self, epoch: int) -> int:
        """Clips of this lane's share."""
        return sum(len(self.places[s]) for s in self.share(epoch))

    def order(self, epoch: int) -> list[Pick]:
        """This lane's clips, each once."""
        own = np.random.default_rng([self.seed, epoch, self.lane])
        share, out = self.share(epoch), list[Pick]()
        for start in range(0, len(share), WINDOW_SHARDS):
            window = [Pick(epoch, s, p) for s in share[start : start + WINDOW_SHARDS] for p in self.places[s]]
            out += [window[i] for i in own.permutation(len(window))]
        return out


class Order:
    """A lane's endless sequence of clips: its shares of epoch `first_epoch`, the next one, and so on. Goes forward only."""

    def __init__(self, deal: Deal, first_epoch: int) -> None:
        self.deal = deal
        self._epoch, self._start = first_epoch, 0  # the epoch that holds the last clip asked for; where it starts
        self._orders: OrderedDict[int, list[Pick]] = OrderedDict()

    def epoch(self, index: int) -> int:
        """The epoch in which the index-th clip is seen."""
        assert index >= self._start, "the order goes forward only"
        while index >= self._start + (size := self.deal.size(self._epoch)):
            self._epoch, self._start = self._epoch + 1, self._start + size
        return self._epoch

    def picks(self, index: int, count: int) -> list[Pick]:
        """`count` clips from the index-th on."""
        epoch = self.epoch(index)
        out = self._order(epoch)[index - self._start :][:count]
        while len(out) < count:
            epoch += 1
            out += self._order(epoch)[: count - len(out)]
        return out

    def _order(self, epoch: int) -> list[Pick]:
        if epoch not in self._orders:
            self._orders[epoch] = self.deal.order(epoch)
            if len(self._orders) > KEPT_EPOCHS:
                self._orders.popitem(last=False)
        return self._orders[epoch]
