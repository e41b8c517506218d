"""Simulates a drag by an unsteady hand: it trembles at 8 to 12 Hz, moves too fast, leaves the frame and comes back.

Figures compare the tracks of a chunked stream, with and without input smoothing, to the intended path.

Legend: m samples, T pixel frames, n points. Shares of the frame; distances in frame widths (isotropic).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from msmodel.steering.controls import Camera, Controls, InputSmoothing
from msmodel.steering.smoothing import Steady
from msmodel.steering.steering import Steering
from msmodel.tracks import px_to_shares

# seconds, x, y: at rest, a calm move, a flick, out of the frame, back, at rest
INTENDED = np.array(
    [
        [0.0, 0.30, 0.50],
        [0.5, 0.30, 0.50],
        [2.0, 0.20, 0.35],
        [2.12, 0.85, 0.65],
        [3.0, 1.20, 0.65],
        [3.8, 0.80, 0.50],
        [5.0, 0.50, 0.50],
        [6.0, 0.50, 0.50],
    ]
)
SMOOTHED = InputSmoothing()
RAW = InputSmoothing(smooth_seconds=0, max_speed=0)


@dataclass(frozen=True)
class Jitter:
    """Settings of the tremor. tremor: its amplitude in frame widths (0.01 is 8 px of 832). events: snapshots a second, as of a
    browser's animation frames. ahead: how many seconds before its first frame is due a chunk reads the controls."""

    tremor: float = 0.01
    hz: tuple[float, float] = (8.0, 12.0)
    events: float = 60.0
    ahead: float = 0.15


def intended(seconds: np.ndarray) -> np.ndarray:
    """Returns the intended path, m 2 shares: minimum jerk from place to place (Flash and Hogan 1985)."""
    at = np.clip(np.searchsorted(INTENDED[:, 0], seconds, side="right") - 1, 0, len(INTENDED) - 2)
    start, end = INTENDED[at], INTENDED[at + 1]
    s = np.clip((seconds - start[:, 0]) / (end[:, 0] - start[:, 0]), 0, 1)
    s = s**3 * (10 - 15 * s + 6 * s * s)
    return start[:, 1:] + s[:, None] * (end[:, 1:] - start[:, 1:])


def jittered(seconds: np.ndarray, jitter: Jitter, aspect: float, generator: np.random.Generator) -> np.ndarray:
    """Returns the intended path with tremor: three sinusoids along each axis. aspect: height over width of the frame."""
    hz, phase = generator.uniform(*jitter.hz, (2, 3, 1)), generator.uniform(0, 2 * np.pi, (2, 3, 1))
    tremor = jitter.tremor * np.sqrt(2 / 3) * np.sin(2 * np.pi * hz * seconds + phase).sum(axis=1)
    return intended(seconds) + (tremor / [[1], [aspect]]).T


class Script:
    """Plays a drag with jitter to a stream.

    members: n 2 shares, the points that are dragged from the start; the rest of the picture is held still. steadied: whether
    snapshots pass through msmodel.steering.smoothing.Steady with this smoothing.
    """

    def __init__(
        self, smoothing: InputSmoothing, steadied: bool, members: np.ndarray, jitter: Jitter, aspect: float, seed: int
    ) -> None:
        self._times = np.arange(0, INTENDED[-1, 0], 1 / jitter.events)
        self._places = jittered(self._times, jitter, aspect, np.random.default_rng(seed))
        self._members, self._ahead, self._heard = members, jitter.ahead, 0
        self._steady = Steady(smoothing, len(members)) if steadied else None
        self._newest = Controls()

    def controls(self, seconds: float) -> Controls:
        """Returns the controls for a chunk whose first frame is due at `seconds`. Chunks must follow one another."""
        now = max(seconds - self._ahead, 0.0)
        while self._heard < len(self._times) and self._times[self._heard] <= now:
            place = self._places[self._heard] - INTENDED[0, 1:]
            pinned = np.zeros(len(self._members), bool)
            xy = (self._members + place).astype(np.float32)
            self._newest = Controls(ids=np.arange(len(xy)), xy=xy, pinned=pinned, camera=Camera())
            if self._steady:
                self._steady.hear(self._newest, float(self._times[self._heard]))
            self._heard += 1
        return self._steady.read(now) if self._steady else self._newest


def streamed(steering: Steering, script: Script, fps: float, chunks: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tracks of a script: xy_px T k 2, visible T k, the dragged points first. chunks: pixel frames of the first and
    of later chunks."""
    parts, first = [], 0
    while first / fps < INTENDED[-1, 0]:
        count = chunks[0] if first == 0 else chunks[1]
        parts.append(steering.tracks(script.controls(first / fps), first, count))
        first += count
    xy, visible = zip(*parts, strict=True)
    return np.concatenate(xy), np.concatenate(visible)


def target(member: np.ndarray, frames: int, fps: float, lag: float) -> np.ndarray:
    """Returns where dragged points (n 2 shares at the start) were intended to be, `lag` seconds later: T n 2 shares."""
    way = intended(np.maximum(np.arange(frames) / fps - lag, 0)) - INTENDED[0, 1:]
    return member + way[:, None]


def figures(xy_px: np.ndarray, size: tuple[int, int], fps: float) -> dict[str, float]:
    """Compares one point's track (T 2) to the intended path. path: mean distance to the path as a line, percent of the
    width. lag_ms, timed: the delay that fits best and the mean distance at it, percent. jerk: root mean square,
    widths a second cubed. fastest: widths a second."""
    scale = np.array([1.0, size[0] / size[1]])
    got, times = px_to_shares(xy_px, size) * scale, np.arange(len(xy_px)) / fps
    line = intended(np.linspace(0, INTENDED[-1, 0], 6000)) * scale
    lags = np.arange(-0.1, 0.9, 0.01)
    errors = [np.linalg.norm(got - intended(np.maximum(times - lag, 0)) * scale, axis=-1).mean() for lag in lags]
    steps = np.diff(got, axis=0)
    return {
        "path": 100 * float(cKDTree(line).query(got)[0].mean()),
        "lag_ms": 1000 * float(lags[int(np.argmin(errors))]),
        "timed": 100 * float(min(errors)),
        "jerk": float(np.sqrt((np.diff(steps, n=2, axis=0) ** 2).sum(axis=-1).mean()) * fps**3),
        "fastest": float(np.linalg.norm(steps, axis=-1).max() * fps),
    }
