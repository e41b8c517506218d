"""Matches points between two pictures, and prepares frames for that.

Legend: work pixels are those of the resized frames in OpenCV's convention, pixel centres at whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np


@dataclass(frozen=True, eq=False)
class Video:
    """Holds resized frames. rgb, grey: T frames. scale (2,): work pixels per pixel, x first."""

    rgb: list[np.ndarray]
    grey: list[np.ndarray]
    scale: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Returns (width, height) in work pixels."""
        height, width = self.grey[0].shape
        return width, height

    def to_work(self, xy: np.ndarray) -> np.ndarray:
        """Converts pixels of the original frames to work pixels."""
        return (xy * self.scale - 0.5).astype(np.float32)

    def to_frame(self, xy: np.ndarray) -> np.ndarray:
        """Converts work pixels to pixels of the original frames."""
        return ((xy + 0.5) / self.scale).astype(np.float32)

    def holds(self, xy: np.ndarray) -> np.ndarray:
        """Returns whether points (... 2, work pixels) lie in the frame."""
        width, height = self.size
        x, y = xy[..., 0] + 0.5, xy[..., 1] + 0.5
        return (x >= 0) & (x < width) & (y >= 0) & (y < height)


def resized(frames: np.ndarray, height: int) -> Video:
    """Resizes frames T h w 3 uint8 to a working height: small ones are enlarged, large ones reduced."""
    size = (max(1, round(frames.shape[2] * height / frames.shape[1])), height)
    how = cv2.INTER_AREA if height < frames.shape[1] else cv2.INTER_CUBIC
    rgb = [cv2.resize(f, size, interpolation=how) for f in frames]
    scale = np.array([size[0] / frames.shape[2], height / frames.shape[1]], np.float32)
    return Video(rgb, [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in rgb], scale)


def outward(query_frame: int, frames: int) -> Iterator[tuple[int, int]]:
    """Yields (before, now) for every frame but the query's, each after its neighbour on the query's side."""
    yield from ((t - 1, t) for t in range(query_frame + 1, frames))
    yield from ((t + 1, t) for t in range(query_frame - 1, -1, -1))


def match(
    a: np.ndarray, b: np.ndarray, xy: np.ndarray, window: int, levels: int = 4, steps: int = 30
) -> tuple[np.ndarray, np.ndarray]:
    """Matches points xy (n 2) of the grey picture a in b, by pyramidal Lucas-Kanade (Bouguet 2000), forward and backward.

    Returns their positions in b (n 2, finite) and the forward-backward error (n, work pixels; infinite if not found).
    """
    if not len(xy):
        return xy, np.zeros(0, np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, steps, 0.01)
    start = np.ascontiguousarray(xy, np.float32)[:, None]
    lucas_kanade = partial(cv2.calcOpticalFlowPyrLK, winSize=(window, window), maxLevel=levels, criteria=criteria)
    moved, found, _ = lucas_kanade(a, b, start, np.empty_like(start))
    back, found_back, _ = lucas_kanade(b, a, moved, np.empty_like(start))
    there = np.logical_and(found, found_back)[:, 0] & np.isfinite(moved[:, 0]).all(axis=-1)
    error = np.linalg.norm((back - start)[:, 0], axis=-1)
    return np.where(np.isfinite(moved[:, 0]), moved[:, 0], xy), np.where(there & np.isfinite(error), error, np.inf)


def sample(values: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Samples values (h w (c) float32) at xy n 2, bilinearly: n (c). Beyond the border the border's value is used."""
    if not len(xy):
        return np.zeros((0, *values.shape[2:]), np.float32)
    x, y = np.ascontiguousarray(xy.T, np.float32)
    return cv2.remap(values, x[:, None], y[:, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]
