"""Imperfect hands: points that follow where a hand has them, smoothly and no faster than allowed.

Legend: T frames, n points. Positions are float64 clip pixels.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from msmodel.controls import Hand


class Follower:
    """Moves named points within a chunk from where they were to where they are sent, and remembers where they ended.

    A point is led along the straight line from its last target to the new one, evenly over the chunk's frames,
    through an exponential filter, at a bounded speed. So a point is where the hand was at the chunk's start about
    when the chunk ends: a lag of one chunk, plus the filter's, tau - 1 / (2 fps) for a steady hand. A new point is at
    its origin in its first frame.
    """

    def __init__(self, hand: Hand, fps: float, width: int) -> None:
        tau = hand.smooth_seconds
        self._gain = 1 - math.exp(-1 / (fps * tau)) if tau else 1.0
        self._reach = hand.max_speed * width / fps if hand.max_speed else math.inf
        self._points: dict[Hashable, np.ndarray] = {}  # x, y; x, y of the last target

    def follow(self, keys: Sequence[Hashable], origin: np.ndarray, target: np.ndarray, frames: int) -> np.ndarray:
        """keys n, origin n 2 (where a point unknown so far begins), target n 2 -> T n 2. ValueError for names used
        twice."""
        if len(set(keys)) != len(keys):
            raise ValueError("two points have one name")
        fresh = np.array([key not in self._points for key in keys], bool)
        state = [self._points.get(key, np.tile(origin[i], 2)) for i, key in enumerate(keys)]
        at, led_from = np.split(np.array(state, np.float64).reshape(len(keys), 4), 2, axis=1)
        out = np.empty((frames, len(keys), 2))
        for t in range(frames):
            share = np.where(fresh, t / max(frames - 1, 1), (t + 1) / frames)[:, None]
            step = self._gain * (led_from + share * (target - led_from) - at)
            length = np.linalg.norm(step, axis=-1, keepdims=True)
            at = at + step * np.minimum(1, self._reach / np.maximum(length, 1e-12))
            out[t] = at
        self._points.update(zip(keys, np.concatenate([at, target], axis=1), strict=True))
        return out

    def where(self, keys: Sequence[Hashable]) -> np.ndarray:
        """n 2: where points that are known ended."""
        return np.array([self._points[key][:2] for key in keys]).reshape(-1, 2)

    def target(self, keys: Sequence[Hashable]) -> np.ndarray:
        """n 2: where points that are known were last sent."""
        return np.array([self._points[key][2:] for key in keys]).reshape(-1, 2)

    def forget(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self._points.pop(key, None)
