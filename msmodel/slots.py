"""Slots: which of a stream's n track ids a point has. Ids belong to slots, so a point keeps its slot while it lives."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence


class Slots:
    """A slot that becomes free is given out again after all others, so that an id does not jump to another object at
    once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = deque(range(count))
        self._of: dict[Hashable, int] = {}

    def assign(self, keys: Sequence[Hashable]) -> list[int]:
        """A slot for each of the first `count` keys, the most important first; who is not among them loses its slot."""
        kept = dict.fromkeys(keys[: self.count])
        for key in [k for k in self._of if k not in kept]:
            self._free.append(self._of.pop(key))
        for key in kept:
            if key not in self._of:
                self._of[key] = self._free.popleft()
        return [self._of[key] for key in kept]
