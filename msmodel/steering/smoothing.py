"""Smoothing of user input: points follow their targets smoothly and within a speed limit.

There are two filters, as a stream reads its controls only once a chunk. `Steady` filters snapshots as they arrive,
about sixty a second. It removes tremor before a chunk samples it (8 to 12 Hz would alias at four chunks a second),
keeps the first position of a point, and returns a released point once more, at its last position. `Follower` moves
points from chunk to chunk.

Legend: T frames, n points. Positions are float64 clip pixels in Follower, shares of the frame in Steady.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from msmodel.steering.controls import Controls, InputSmoothing


class Follower:
    """A filter that moves named points within a chunk from their last positions to their targets.

    A point is led along the straight line from its last target to the new one, evenly over the chunk's frames, through
    an exponential filter, at a bounded speed. So a point reaches the target of a chunk's start about when the chunk
    ends: a lag of one chunk, plus the filter's, tau - 1 / (2 fps) at constant speed. A new point is at its origin in
    its first frame.
    """

    def __init__(self, smoothing: InputSmoothing, fps: float, width: int) -> None:
        tau = smoothing.smooth_seconds
        self._gain = 1 - math.exp(-1 / (fps * tau)) if tau else 1.0
        self._reach = smoothing.max_speed * width / fps if smoothing.max_speed else math.inf
        self._points: dict[Hashable, np.ndarray] = {}  # x, y; x, y of the last target

    def follow(self, keys: Sequence[Hashable], origin: np.ndarray, target: np.ndarray, frames: int) -> np.ndarray:
        """Returns the positions T n 2 of points. Raises ValueError for names used twice.

        keys: n. origin: n 2, where a new point begins. target: n 2.
        """
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
        """Returns the last positions of known points: n 2."""
        return np.array([self._points[key][:2] for key in keys]).reshape(-1, 2)

    def target(self, keys: Sequence[Hashable]) -> np.ndarray:
        """Returns the last targets of known points: n 2."""
        return np.array([self._points[key][2:] for key in keys]).reshape(-1, 2)

    def forget(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self._points.pop(key, None)


@dataclass
class _Held:
    """One point that is dragged or pinned: its first position, its smoothed position, and its current target."""

    origin: np.ndarray
    at: np.ndarray
    target: np.ndarray
    pinned: bool
    let_go: bool = False
    read_at: np.ndarray | None = None  # its position in the last reading


class Steady:
    """A filter of the snapshots of one stream, which a chunk reads.

    Dragged points go through an exponential filter in real time, which lags by the time constant; pinned points stay
    unchanged.
    """

    def __init__(self, smoothing: InputSmoothing, most: int) -> None:
        """Makes a filter. most: the most points of a snapshot, members of paths included.

        Released points are returned once more as far as this allows.
        """
        self._tau, self._most = smoothing.smooth_seconds, most
        self._newest = Controls()
        self._points: dict[int, _Held] = {}
        self._heard = 0.0

    def hear(self, controls: Controls, seconds: float) -> None:
        """Sets the newest snapshot, at a time that does not decrease."""
        self._go_on(seconds)
        self._newest = controls
        places = dict(zip(controls.ids.tolist(), np.asarray(controls.xy, np.float64), strict=True))
        for id_, point in list(self._points.items()):
            if id_ not in places and (point.pinned or not self._news(point)):
                del self._points[id_]
            point.let_go = id_ not in places
        for (id_, place), pinned in zip(places.items(), controls.pinned.tolist(), strict=True):
            point = self._points.setdefault(id_, _Held(place, place, place, pinned))
            point.target, point.pinned = place, pinned
            if pinned:
                point.at = place

    def read(self, seconds: float) -> Controls:
        """Returns the controls that a chunk beginning now reads."""
        self._go_on(seconds)
        room = self._most - len(self._newest.ids) - sum(len(path.members) for path in self._newest.paths)
        let_go = [id_ for id_, point in self._points.items() if point.let_go]
        for id_ in let_go[: len(let_go) - max(room, 0)]:
            del self._points[id_]
        points = list(self._points.items())
        xy = [point.target if point.let_go else point.at for _, point in points]
        origin = [at if point.read_at is not None else point.origin for at, (_, point) in zip(xy, points, strict=True)]
        for at, (_, point) in zip(xy, points, strict=True):
            point.read_at = at
        self._points = {id_: point for id_, point in points if not point.let_go}
        return replace(
            self._newest,
            ids=np.array([id_ for id_, _ in points], np.int64),
            xy=np.array(xy, np.float32).reshape(-1, 2),
            pinned=np.array([point.pinned for _, point in points], bool),
            origin=np.array(origin, np.float32).reshape(-1, 2),
        )

    def _news(self, point: _Held) -> bool:
        """Returns whether no reading contained the last position of a dragged point."""
        known = point.origin if point.read_at is None else point.read_at
        return bool(np.abs(point.target - known).max() > 1e-6)

    def _go_on(self, seconds: float) -> None:
        left = math.exp(-max(seconds - self._heard, 0.0) / self._tau) if self._tau else 0.0
        for point in self._points.values():
            point.at = point.target + left * (point.at - point.target)
        self._heard = max(self._heard, seconds)
