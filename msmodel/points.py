"""Points of a frame in numpy, without torch: where they lie, and in which order a clip is played.

Legend: n points. xy: pixels, x first, origin at the top-left corner, pixel centres at +0.5.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


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


def too_close(places: np.ndarray, rank: np.ndarray, reach: float) -> np.ndarray:
    """Which of n points (n 2, finite) to leave out so that no two lie nearer than `reach` to each other: n bool. Of
    two the one with the higher rank goes."""
    out = np.zeros(len(places), bool)
    pairs = cKDTree(places).query_pairs(reach, output_type="ndarray") if len(places) > 1 else np.zeros((0, 2), int)
    pairs = np.where((rank[pairs[:, 0]] < rank[pairs[:, 1]])[:, None], pairs, pairs[:, ::-1])
    for first, later in pairs[np.argsort(rank[pairs[:, 0]], kind="stable")]:
        out[later] |= not out[first]
    return out
