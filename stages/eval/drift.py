"""Drift over long runs: figures of consecutive windows of one horizon each, and their change from first to last.

Legend: T frames, w windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trend:
    """One figure over the windows.

    slope_per_100_frames: least-squares slope. last_over_first: ratio, NaN if the first value is 0.
    """

    values: tuple[float, ...]
    slope_per_100_frames: float
    last_over_first: float


def windows(video: np.ndarray, size: int) -> list[np.ndarray]:
    """Returns the complete windows of `size` frames in order; a shorter remainder is left out."""
    return [video[i : i + size] for i in range(0, len(video) - size + 1, size)]


def trend(values: Sequence[float], window_frames: int) -> Trend:
    """Returns the trend of values that are one window apart. The slope and the ratio use the finite values only.

    Both are NaN if fewer than two values are finite.
    """
    at = np.arange(len(values)) * window_frames / 100
    pairs = [(x, y) for x, y in zip(at, values, strict=True) if math.isfinite(y)]
    if len(pairs) < 2:
        return Trend(tuple(values), math.nan, math.nan)
    x, y = np.array(pairs).T
    slope = float(np.square(x - x.mean()).sum() ** -1 * ((x - x.mean()) * (y - y.mean())).sum())
    first, last = float(y[0]), float(y[-1])
    return Trend(tuple(values), slope, last / first if first else math.nan)


def picture_drift(video: np.ndarray, size: int) -> dict[str, Trend]:
    """Returns drift figures that need no reference: lab_shift, saturation, sharpness over windows of `size` frames.

    video: T h w 3 uint8. Raises ValueError if it is shorter than one window.
    """
    parts = windows(video, size)
    if not parts:
        raise ValueError(f"a run of {len(video)} frames holds no window of {size}")
    start = mean_lab(parts[0])
    figures: dict[str, Callable[[np.ndarray], float]] = {
        "lab_shift": lambda part: float(np.linalg.norm(mean_lab(part) - start)),
        "saturation": saturation,
        "sharpness": laplacian_variance,
    }
    return {name: trend([figure(part) for part in parts], size) for name, figure in figures.items()}


def mean_lab(video: np.ndarray) -> np.ndarray:
    """Returns the mean CIE Lab colour (3 values, L in 0..100) of T h w 3 uint8."""
    import cv2

    frames = [cv2.cvtColor(f.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) for f in video]
    return np.stack(frames).reshape(-1, 3).mean(axis=0)


def saturation(video: np.ndarray) -> float:
    """Returns the mean HSV saturation, 0..1: (max - min) / max over RGB."""
    x = video.astype(np.float32)
    high, low = x.max(-1), x.min(-1)
    return float(np.where(high > 0, (high - low) / np.maximum(high, 1), 0).mean())


def laplacian_variance(video: np.ndarray) -> float:
    """Returns the mean over frames of the variance of the Laplacian of grey values 0..255.

    It falls with blur and rises with noise.
    """
    import cv2

    return float(np.mean([cv2.Laplacian(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for f in video]))
