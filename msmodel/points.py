"""Points of a frame in numpy, without torch: grids, tests of place and distance, and the playing order of a clip.

Legend: n points. xy: pixels, x first, origin at the top-left corner, pixel centres at +0.5.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


def uniform_grid(height: int, width: int, rows: int, cols: int) -> np.ndarray:
    """Returns the centres of rows x cols equal cells that cover the frame, row by row: n 2 float32 px."""
    x = (np.arange(cols) + 0.5) * width / cols
    y = (np.arange(rows) + 0.5) * height / rows
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)


def inside(xy: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns whether points (... 2 px) lie within the frame: [0, width) x [0, height)."""
    return (xy[..., 0] >= 0) & (xy[..., 0] < width) & (xy[..., 1] >= 0) & (xy[..., 1] < height)


def ping_pong(frames: int, total: int, first: int = 0) -> np.ndarray:
    """Returns entries first..total-1 of 0..T-1, T-2, .., 1, 0, 1 and so on.

    They play a clip forward and backward endlessly, without a jump.
    """
    if frames < 2:
        raise ValueError("a clip of one frame cannot be played back and forth")
    at = np.arange(first, total) % (2 * (frames - 1))
    return np.minimum(at, 2 * (frames - 1) - at)


def too_close(places: np.ndarray, rank: np.ndarray, reach: float) -> np.ndarray:
    """Returns which of n points (n 2, finite) to drop so that no two are nearer than `reach` to each other: n bool.

    Of two points that are too close the one with the higher rank is dropped.
    """
    out = np.zeros(len(places), bool)
    pairs = cKDTree(places).query_pairs(reach, output_type="ndarray") if len(places) > 1 else np.zeros((0, 2), int)
    pairs = np.where((rank[pairs[:, 0]] < rank[pairs[:, 1]])[:, None], pairs, pairs[:, ::-1])
    for first, later in pairs[np.argsort(rank[pairs[:, 0]], kind="stable")]:
        out[later] |= not out[first]
    return out
