"""Sparse matching of points between two pictures, and frames made ready for it.

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
    """rgb, grey: T resized frames. scale (2,): work pixels a pixel, x first."""

    rgb: list[np.ndarray]
    grey: list[np.ndarray]
    scale: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), work pixels."""
        height, width = self.grey[0].shape
        return width, height

    def to_work(self, xy: np.ndarray) -> np.ndarray:
        return (xy * self.scale - 0.5).astype(np.float32)

    def to_frame(self, xy: np.ndarray) -> np.ndarray:
        return ((xy + 0.5) / self.scale).astype(np.float32)

    def holds(self, xy: np.ndarray) -> np.ndarray:
        """Whether points (... 2, work pixels) lie within the frame."""
        width, height = self.size
        x, y = xy[..., 0] + 0.5, xy[..., 1] + 0.5
        return (x >= 0) & (x < width) & (y >= 0) & (y < height)


def resized(frames: np.ndarray, height: int) -> Video:
    """frames T h w 3 uint8 -> the same at a working height: small ones enlarged, large ones reduced."""
    size = (max(1, round(frames.shape[2] * height / frames.shape[1])), height)
    how = cv2.INTER_AREA if height < frames.shape[1] else cv2.INTER_CUBIC
    rgb = [cv2.resize(f, size, interpolation=how) for f in frames]
    scale = np.array([size[0] / frames.shape[2], height / frames.shape[1]], np.float32)
    return Video(rgb, [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in rgb], scale)


def outward(query_frame: int, frames: int) -> Iterator[tuple[int, int]]:
    """(before, now): every frame but the query's, each after its neighbour on the query's side."""
    yield from ((t - 1, t) for t in range(query_frame + 1, frames))
    yield from ((t + 1, t) for t in range(query_frame - 1, -1, -1))


def match(
    a: np.ndarray, b: np.ndarray, xy: np.ndarray, window: int, levels: int = 4, steps: int = 30
) -> tuple[np.ndarray, np.ndarray]:
    """Pyramidal Lucas-Kanade (Bouguet 2000) there and back. a, b grey pictures, xy n 2 in a -> positions in b, n 2, finite;
    and how far from its start each point comes back, work pixels, n: infinite where it was not found."""
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
    """values h w (c) float32 at xy n 2, bilinear: n (c). Beyond the border, the border's."""
    if not len(xy):
        return np.zeros((0, *values.shape[2:]), np.float32)
    x, y = np.ascontiguousarray(xy.T, np.float32)
    return cv2.remap(values, x[:, None], y[:, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]
