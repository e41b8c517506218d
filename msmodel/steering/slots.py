"""Assigns points to a fixed number of slots, each with an id that the model knows.

Legend: k points, places in grid steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

import numpy as np

SAME_PLACE = 0.5  # grid steps, along either axis


class Slots:
    """The assignment of points to slots.

    A point that appears where another one disappears takes over its slot: it is at the same place of the scene, and a
    student follows a new id less well than one that it has seen there. Any other slot that becomes free is reused after
    all others, so that an id does not jump to another object at once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = deque(range(count))
        self._of: dict[Hashable, int] = {}
        self._place: dict[Hashable, np.ndarray] = {}  # where those that were visible last ended

    def assign(self, keys: Sequence[Hashable], begins: np.ndarray, ends: np.ndarray, seen: np.ndarray) -> list[int]:
        """Returns a slot for each of the first `count` keys, the most important first. All other keys lose their slot.

        begins, ends: k 2, the place of each at this chunk's begin and end. seen: k, whether it is visible at the end.
        """
        kept = dict.fromkeys(keys[: self.count])
        lost = [key for key in self._of if key not in kept]
        fresh = [i for i, key in enumerate(kept) if key not in self._of]
        heirs = self._heirs([key for key in lost if key in self._place], [begins[i] for i in fresh])
        names = list(kept)
        for number, key in heirs.items():
            self._of[names[fresh[number]]] = self._of.pop(key)
        for key in lost:
            if key in self._of:
                self._free.append(self._of.pop(key))
        for key in kept:
            if key not in self._of:
                self._of[key] = self._free.popleft()
        self._place = {key: ends[i] for i, key in enumerate(kept) if seen[i]}
        return [self._of[key] for key in kept]

    def _heirs(self, lost: Sequence[Hashable], begins: Sequence[np.ndarray]) -> dict[int, Hashable]:
        """Returns the number of a new point -> the lost one whose place it takes, the closest pairs first."""
        if not lost or not begins:
            return {}
        gone = np.stack([self._place[key] for key in lost])
        away = np.abs(np.stack(begins)[:, None] - gone).max(axis=-1)
        out: dict[int, Hashable] = {}
        taken: set[int] = set()
        for flat in np.argsort(away, axis=None, kind="stable"):
            new, old = divmod(int(flat), len(lost))
            if away[new, old] > SAME_PLACE:
                break
            if new not in out and old not in taken:
                out[new] = lost[old]
                taken.add(old)
        return out
