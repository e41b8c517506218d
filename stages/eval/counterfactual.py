"""Counterfactual motions: tracks that a clip never had, with its first frame and text.

They measure control, which reconstruction does not: a model that has memorised a clip scores well on the clip's own
tracks and badly here. `swap` takes the tracks of another clip. The others are authored on a uniform grid: a steady pan,
a zoom about the centre, one region dragged with the rest pinned (dense), and a few dragged and pinned points (sparse).

Legend: T frames, n tracks. Pixels at clip size, pixel centres at +0.5. A point that leaves the frame stays invisible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msmodel.points import inside, uniform_grid

KINDS = ("swap", "pan", "zoom", "drag_dense", "drag_sparse")


@dataclass(frozen=True)
class Motions:
    """Settings of authored motions. Distances are fractions of the clip's width (pan, drag) or of its size (zoom)."""

    pan: float = 0.2  # distance of a pan, as a fraction of the width
    zoom: float = 1.3  # size at the end of a zoom, relative to its start
    drag: float = 0.2  # distance of a drag, as a fraction of the width
    drag_radius: float = 0.2  # radius of the disc that a dense drag moves, as a fraction of the width
    grid_rows: int = 50  # rows of the dense motions' points; per latent cell as many as in training (paper: 50 x 50)
    grid_cols: int = 50  # columns of the dense motions' points
    sparse_dragged: int = 4  # points that a sparse drag moves
    sparse_pinned: int = 8  # points that a sparse drag keeps still


def authored(
    kind: str, size: tuple[int, int], frames: int, how: Motions, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns one authored motion: (T n 2) float32 px, (T n) bool.

    size: (height, width). Directions and places are sampled from `generator`. Raises ValueError for an unknown kind.
    """
    height, width = size
    grid = uniform_grid(height, width, how.grid_rows, how.grid_cols)
    progress = np.linspace(0.0, 1.0, frames, dtype=np.float32)[:, None, None]
    angle = generator.uniform(0, 2 * np.pi)
    heading = np.array([np.cos(angle), np.sin(angle)], np.float32)
    covered: np.ndarray | bool = np.zeros((frames, 1), bool)  # pinned points that the dragged disc covers
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
        )  # moving points come last, on top
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
    """Returns those tracks of another clip that are visible in frame 0; only these can be queried there."""
    asked = visible[0].astype(bool)
    return xy_px[:, asked].astype(np.float32), visible[:, asked].astype(bool)


def stays_inside(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns T n bool: True until a point first leaves the frame."""
    return np.logical_and.accumulate(inside(xy, *size), axis=0)


def _place(size: tuple[int, int], how: Motions, generator: np.random.Generator) -> np.ndarray:
    """Returns a random start of a drag, between 0.3 and 0.7 of the frame's width and height."""
    return np.array([generator.uniform(0.3, 0.7) * size[1], generator.uniform(0.3, 0.7) * size[0]], np.float32)


def _drag(points: np.ndarray, centre: np.ndarray, size: tuple[int, int], how: Motions) -> np.ndarray:
    """Returns 1 for points inside the dragged disc and 0 for the others: n 1."""
    away = np.linalg.norm(points - centre, axis=-1, keepdims=True)
    return (away <= how.drag_radius * size[1]).astype(np.float32)


def _sparse_points(
    grid: np.ndarray, centre: np.ndarray, size: tuple[int, int], how: Motions, generator: np.random.Generator
) -> np.ndarray:
    """Returns the dragged points, nearest to the centre, then pinned ones sampled from outside the disc: n 2."""
    near = np.argsort(np.linalg.norm(grid - centre, axis=-1))[: how.sparse_dragged]
    outside = np.flatnonzero(_drag(grid, centre, size, how)[:, 0] == 0)
    outside = outside[~np.isin(outside, near)]
    pinned = generator.choice(outside, min(how.sparse_pinned, len(outside)), replace=False)
    return grid[np.concatenate([near, pinned])]


def _first(n: int, count: int) -> np.ndarray:
    """Returns 1 for the first `count` points and 0 for the others: n 1."""
    return (np.arange(n) < count).astype(np.float32)[:, None]
