"""End-point error (EPE): whether the generated clip follows the tracks it was given (paper, section 5).

EPE = sum v_in |p_in - p_hat| / sum v_in, where p_hat is what a tracker, queried at the input points of frame 0, finds
in the generated clip, and v_in is the *input* visibility. Masking by the tracker's visibility too would hide failures,
so the share of points that it still sees is reported separately. Frame 0 is given to the model and left out. The mean
is taken over one clip's points and frames first, then over clips. This module is the only definition of the metric.

Legend: T frames, n tracks. Coordinates are pixels of the report's raster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from msmodel.tracks import resize_px

THRESHOLDS_PX = (4, 8, 16)


class Tracker(Protocol):
    """A point tracker. frames: T h w 3 uint8. queries_xy_px: n 2, points of frame 0.

    It returns xy_px, T n 2 float32, and visible, T n bool.
    """

    def __call__(self, frames: np.ndarray, queries_xy_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class TrackError:
    """Errors of one clip (or, through `average`, of several), in pixels of the raster; NaN if nothing was visible.

    moving: EPE over tracks whose input moves at least `moving_px`. median: over all visible pairs. within_N: share of
    visible pairs strictly closer than N px. seen: share of visible input pairs that the re-tracker also reports as
    visible. frozen: the EPE of a video that stays at frame 0, which is the cost of ignoring the tracks.
    """

    epe: float
    moving: float
    median: float
    within_4px: float
    within_8px: float
    within_16px: float
    seen: float
    frozen: float


def track_error(
    target_xy: np.ndarray,
    target_visible: np.ndarray,
    found_xy: np.ndarray,
    found_visible: np.ndarray,
    moving_px: float = 4.0,
) -> TrackError:
    """Returns EPE and the related figures of one clip. xy: T n 2. visible: T n.

    Frame 0 (the conditioning frame) is left out. Raises ValueError if shapes differ or a compared position is not
    finite.
    """
    if target_xy.shape != found_xy.shape or target_visible.shape != found_visible.shape:
        raise ValueError(f"tracks differ in shape: asked {target_xy.shape}, found {found_xy.shape}")
    if target_xy.shape[:2] != target_visible.shape:
        raise ValueError(f"visibility {target_visible.shape} does not match tracks {target_xy.shape}")
    mask = target_visible[1:].astype(bool)
    distance = np.linalg.norm(target_xy[1:].astype(np.float64) - found_xy[1:].astype(np.float64), axis=-1)
    if not np.isfinite(distance[mask]).all():
        raise ValueError("tracks hold positions that are not finite where the input is visible")
    moves = np.broadcast_to(_reach_px(target_xy, target_visible) >= moving_px, mask.shape)
    errors = distance[mask]
    return TrackError(
        epe=_mean(errors),
        moving=_mean(distance[mask & moves]),
        median=float(np.median(errors)) if errors.size else math.nan,
        within_4px=_mean(errors < THRESHOLDS_PX[0]),
        within_8px=_mean(errors < THRESHOLDS_PX[1]),
        within_16px=_mean(errors < THRESHOLDS_PX[2]),
        seen=_mean(found_visible[1:].astype(bool)[mask]),
        frozen=_mean(_away(target_xy)[1:][mask]),
    )


def _reach_px(xy: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Returns the largest visible distance of each track from its start: n."""
    return np.where(visible, _away(xy), 0.0).max(axis=0, initial=0.0)


def _away(xy: np.ndarray) -> np.ndarray:
    """Returns the distance of each track from its start: T n."""
    return np.linalg.norm(xy.astype(np.float64) - xy[:1].astype(np.float64), axis=-1)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else math.nan


def average(errors: Sequence[TrackError]) -> TrackError:
    """Returns the mean over clips, field by field, over the clips where the field is finite (NaN if there are none)."""
    return TrackError(*(finite_mean([getattr(e, f.name) for e in errors]) for f in fields(TrackError)))


def finite_mean(values: Sequence[float]) -> float:
    """Returns the mean of the finite values, NaN if there are none."""
    kept = [v for v in values if math.isfinite(v)]
    return float(np.mean(kept)) if kept else math.nan


def retrack(
    frames: np.ndarray,
    xy_px: np.ndarray,
    visible: np.ndarray,
    raster: tuple[int, int],
    tracker: Tracker,
    moving_px: float,
) -> TrackError:
    """Resizes a generated clip to the raster, tracks the input's frame-0 points in it and returns their errors.

    frames: T h w 3 uint8 at clip size. xy_px: T n 2 and visible: T n, pixels of the *clip*. raster: (height, width).
    Tracks that are not visible in frame 0 cannot be queried there and are left out.
    """
    asked = visible[0].astype(bool)
    xy, seen = resize_px(xy_px[:, asked], frames.shape[1:3], raster), visible[:, asked]
    if not asked.any():
        return track_error(xy, seen, xy, seen, moving_px)
    found_xy, found_visible = tracker(resize_clip(frames, raster), xy[0])
    return track_error(xy, seen, found_xy, found_visible, moving_px)


def resize_clip(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns T h w 3 uint8 resized to T H W 3 uint8, cubic upwards, area downwards. size: (height, width)."""
    import cv2

    how = cv2.INTER_CUBIC if size[0] >= frames.shape[1] else cv2.INTER_AREA
    return np.stack([cv2.resize(f, (size[1], size[0]), interpolation=how) for f in frames])
