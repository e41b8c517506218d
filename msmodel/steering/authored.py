"""Authored motions for scripts: pan, zoom, orbit and drag, of any length, made by the Steering that also serves user input.

Legend: T frames, n slots. Shares of the frame, 0..1; clip pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msmodel.points import uniform_grid
from msmodel.steering.controls import Camera, Controls, DrawnPath, InputSmoothing
from msmodel.steering.steering import Steering
from msmodel.tracks import px_to_shares

KINDS = ("pan", "zoom", "orbit", "drag")
STEP = 6  # frames computed at once: as often as the points of the ground are replenished


@dataclass(frozen=True)
class Authored:
    """Settings of the authored motions.

    pan: frame widths and heights a second that the content moves right and down.
    zoom: doublings a second.
    orbit: degrees a second.
    drag: from `start` to `end` (shares), everything within `radius` (frame widths), the rest pinned, in `seconds` (0:
    the length of the clip).
    """

    pan: tuple[float, float] = (0.15, 0.0)
    zoom: float = 0.4
    orbit: float = 12.0
    start: tuple[float, float] = (0.5, 0.5)
    end: tuple[float, float] = (0.7, 0.5)
    radius: float = 0.15
    seconds: float = 0.0


def authored(
    kind: str,
    size: tuple[int, int],
    frames: int,
    fps: float,
    grid: tuple[int, int],
    max_tracks: int,
    how: Authored,
    depth: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tracks of an authored motion: xy_px T n 2 float32, visible T n, n = max_tracks.

    size: (height, width). grid: rows and columns of the training grid. depth: as for Steering. Raises ValueError for a
    kind that does not exist.
    """
    steering = Steering(size, fps, InputSmoothing(smooth_seconds=0, max_speed=0), max_tracks, grid, depth)
    controls = _controls(kind, size, frames / fps, grid, how)
    parts = [steering.tracks(controls, first, min(STEP, frames - first)) for first in range(0, frames, STEP)]
    xy_px, visible = zip(*parts, strict=True)
    return np.concatenate(xy_px), np.concatenate(visible)


def _controls(kind: str, size: tuple[int, int], seconds: float, grid: tuple[int, int], how: Authored) -> Controls:
    if kind == "pan":
        return Controls(camera=Camera(pan_x=how.pan[0], pan_y=how.pan[1]))
    if kind == "zoom":
        return Controls(camera=Camera(zoom=how.zoom))
    if kind == "orbit":
        return Controls(camera=Camera(orbit=how.orbit))
    if kind != "drag":
        raise ValueError(f"no authored motion is called {kind!r}: one of {', '.join(KINDS)}")
    return drag_controls(size, grid, how.start, how.end, how.radius, how.seconds or seconds)


def drag_controls(
    size: tuple[int, int],
    grid: tuple[int, int],
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
    seconds: float,
    path_id: int = 0,
) -> Controls:
    """Returns controls that drag everything within `radius` of `start` to `end` in `seconds`, and hold the rest still.

    start, end: shares. radius: frame widths. size: (height, width). grid: rows and columns of the training grid.
    """
    places = px_to_shares(uniform_grid(*size, *grid), size)
    away = (places - start) * [1.0, size[0] / size[1]]  # frame widths
    members = places[np.linalg.norm(away, axis=-1) <= radius]
    if not len(members):
        members = np.array([start])
    path = DrawnPath(path_id, members, np.array([start, end]), seconds)
    return Controls(paths=(path,), camera=Camera())
