"""Points of a frame in numpy, without torch: where they lie, and in which order a clip is played.

Legend: n points. xy: pixels, x first, origin at the top-left corner, pixel centres at +0.5.
"""

from __future__ import annotations

import numpy as np


def uniform_grid(height: int, width: int, rows: int, cols: int) -> np.ndarray:
    """Centres of rows x cols equal cells that cover the frame, row by row: n 2 float32 px."""
    x = (np.arange(cols) + 0.5) * width / cols
    y = (np.arange(rows) + 0.5) * height / rows
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)


def inside(xy: np.ndarray, height: int, width: int) -> np.ndarray:
    """Whether points (... 2 px) lie within the frame: [0, width) x [0, height)."""
    return (xy[..., 0] >= 0) & (xy[..., 0] < width) & (xy[..., 1] >= 0) & (xy[..., 1] < height)


def ping_pong(frames: int, total: int, first: int = 0) -> np.ndarray:
    """Entries first..total-1 of 0..T-1, T-2, .., 1, 0, 1, ..: a clip played forward and backward for ever, no jump."""
    if frames < 2:
        raise ValueError("a clip of one frame cannot be played back and forth")
    at = np.arange(first, total) % (2 * (frames - 1))
    return np.minimum(at, 2 * (frames - 1) - at)
