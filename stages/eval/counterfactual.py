"""Tracks a clip never had: same first frame and text, other motion. Reconstruction is not control; this is.

A model that has memorised a clip scores well on the clip's own tracks and badly here. `swap` borrows the tracks of another
clip, the rest are authored on a uniform grid: a steady pan, a zoom about the centre, one region dragged with the rest pinned
(dense), and a handful of dragged and pinned points (sparse).

Legend: T frames, n tracks. Pixels at clip size, pixel centres at +0.5. A point that leaves the frame turns invisible for good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msmodel.points import inside, uniform_grid

KINDS = ("swap", "pan", "zoom", "drag_dense", "drag_sparse")


@dataclass(frozen=True)
class Motions:
    """How far authored motions go, as shares of the clip's width (pan, drag) or of its size (zoom)."""

    pan: float = 0.2  # how far a pan goes, share of the width
    zoom: float = 1.3  # size at the end of a zoom, relative to its start
    drag: float = 0.2  # how far a drag goes, share of the width
    drag_radius: float = 0.2  # radius of what a dense drag moves, share of the width
    grid_rows: int = 50  # the dense motions' points; as many a latent cell as in training (the paper's 50 x 50)
    grid_cols: int = 50  # columns of the dense motions' points
    sparse_dragged: int = 4  # points that a sparse drag moves
    sparse_pinned: int = 8  # points that a sparse drag holds still


def authored(
    kind: str, size: tuple[int, int], frames: int, how: Motions, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One authored motion: (T n 2) float32 px, (T n) bool. size: (height, width). Directions and places are drawn."""
    height, width = size
    grid = uniform_grid(height, width, how.grid_rows, how.grid_cols)
    progress = np.linspace(0.0, 1.0, frames, dtype=np.float32)[:, None, None]
    angle = generator.uniform(0, 2 * np.pi)
    heading = np.array([np.cos(angle), np.sin(angle)], np.float32)
    covered: np.ndarray | bool = np.zeros((frames, 1), bool)  # pinned points under what was dragged over them
    if kind == "pan":
        xy = grid + progress * heading * (how.pan * width)
    elif kind == "zoom":
        centre = np.array([width / 2, height / 2], np.float32)
        xy = centre + (grid - centre) * (1 + progress * (how.zoom - 1))
    elif kind == "drag_dense":
        centre = _place(size, how, generator)
        dragged = _drag(grid, centre, size, how)
        grid, dragged = (
            a[np.argsort(dragged[:, 0], kind="stable")] for a in (grid, dragged)
        )  # the moved are drawn last
        moved = progress * heading * (how.drag * width)
        xy = grid + dragged * moved
        covered = (np.linalg.norm(grid - (centre + moved), axis=-1) <= how.drag_radius * width) & (dragged[:, 0] == 0)
    elif kind == "drag_sparse":
        points = _sparse_points(grid, _place(size, how, generator), size, how, generator)
        xy = points + _first(len(points), how.sparse_dragged) * progress * heading * (how.drag * width)
    else:
        raise ValueError(f"no authored motion is called {kind!r}: one of {', '.join(KINDS[1:])}")
    xy = np.broadcast_to(xy, (frames, xy.shape[1], 2)).astype(np.float32)
    return xy, stays_inside(xy, size) & ~covered


def swapped(xy_px: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tracks of another clip, those visible in frame 0 (only they can be asked for there)."""
    asked = visible[0].astype(bool)
    return xy_px[:, asked].astype(np.float32), visible[:, asked].astype(bool)


def stays_inside(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """True until a point first leaves the frame: T n bool."""
    return np.logical_and.accumulate(inside(xy, *size), axis=0)


def _place(size: tuple[int, int], how: Motions, generator: np.random.Generator) -> np.ndarray:
    """Where a drag starts: somewhere in the middle half of the frame."""
    return np.array([generator.uniform(0.3, 0.7) * size[1], generator.uniform(0.3, 0.7) * size[0]], np.float32)


def _drag(points: np.ndarray, centre: np.ndarray, size: tuple[int, int], how: Motions) -> np.ndarray:
    """1 inside the dragged disc, 0 outside: n 1."""
    away = np.linalg.norm(points - centre, axis=-1, keepdims=True)
    return (away <= how.drag_radius * size[1]).astype(np.float32)


def _sparse_points(
    grid: np.ndarray, centre: np.ndarray, size: tuple[int, int], how: Motions, generator: np.random.Generator
) -> np.ndarray:
    """Dragged points (nearest to the place) first, then pinned ones drawn from outside the disc: n 2."""
    near = np.argsort(np.linalg.norm(grid - centre, axis=-1))[: how.sparse_dragged]
    outside = np.flatnonzero(_drag(grid, centre, size, how)[:, 0] == 0)
    outside = outside[~np.isin(outside, near)]
    pinned = generator.choice(outside, min(how.sparse_pinned, len(outside)), replace=False)
    return grid[np.concatenate([near, pinned])]


def _first(n: int, count: int) -> np.ndarray:
    return (np.arange(n) < count).astype(np.float32)[:, None]
