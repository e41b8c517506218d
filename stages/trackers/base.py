"""The interface of a point tracker: points in, their paths and visibility out.

Legend: T frames, n points. xy: pixels, x first, origin at the top-left corner, pixel centres at +0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from msmodel.points import inside, uniform_grid
from stages.trackers.registry import TRACKERS

__all__ = ["Tracker", "TrackerConfig", "Tracks", "check_inputs", "inside", "uniform_grid"]


@dataclass(frozen=True)
class TrackerConfig:
    """Settings of the point tracker that labels real clips. Hub fields are CoTracker's, the rest Lucas-Kanade's and DIS's."""

    name: str = "cotracker3_offline"  # one of stages.trackers.TRACKERS
    hub: str = "facebookresearch/co-tracker"  # GitHub repository, or a local folder with hubconf.py
    checkpoint: str = ""  # path to scaled_offline.pth / scaled_online.pth; "" downloads the hub's own
    licence: str = "CC-BY-NC-4.0"  # for make export; shards store the tracker's own licence (CoTracker's is this one)
    max_queries: int = 2500  # points a call, which attend to each other: about 70 KB a point and frame on CPU
    work_height: int = 96  # frames are resized to this height, small ones enlarged, large ones reduced
    window_px: int = 11  # Lucas-Kanade: side of the matched patch, in resized pixels
    max_back_px: float = 0.25  # largest forward-backward error of a match, in pixels of the frames given
    max_colour_error: float = (
        24.0  # Lucas-Kanade: most that a visible point's surroundings may differ from frame 0's, 0..255
    )

    def problems(self) -> list[str]:
        """Lists every inconsistency as 'tracker.field: what is wrong'."""
        out = []
        if self.name not in TRACKERS:
            out.append(f"tracker.name: {self.name!r} is not one of {', '.join(TRACKERS)}")
        if self.max_queries < 1:
            out.append(f"tracker.max_queries: {self.max_queries} must be at least 1")
        if self.work_height < 1:
            out.append(f"tracker.work_height: {self.work_height} must be at least 1")
        if self.window_px < 3 or self.window_px % 2 == 0:
            out.append(f"tracker.window_px: {self.window_px} must be odd and at least 3")
        if self.max_back_px <= 0:
            out.append(f"tracker.max_back_px: {self.max_back_px} must be positive")
        if not 0 < self.max_colour_error <= 255:
            out.append(f"tracker.max_colour_error: {self.max_colour_error} must lie in (0, 255]")
        return out


@dataclass(frozen=True)
class Tracks:
    """Holds the paths of n points over T frames.

    xy_px T n 2 float32: positions, finite also where the point is not visible (the tracker's best guess). visible T n bool.
    confidence T n float32 in [0, 1]: how sure the tracker is that the point is visible and there; 1 or 0 from a tracker
    without such a figure. back_px: mean forward-backward error of visible points in pixels of the given frames; NaN from a
    tracker that does not check it.
    """

    xy_px: np.ndarray
    visible: np.ndarray
    confidence: np.ndarray
    back_px: float = math.nan


class Tracker(Protocol):
    """Follows points through a clip.

    name: as in TRACKERS. version, licence: of its code and weights, kept with every clip it labels. thresholds: by name, the
    settings on which its labels depend.
    """

    name: str
    version: str
    licence: str
    thresholds: dict[str, float]

    def track(self, frames: np.ndarray, queries_xy: np.ndarray, query_frame: int = 0) -> Tracks:
        """Follows points (queries_xy n 2 px at query_frame) over all frames (T h w 3 uint8).

        Raises ValueError for other shapes or types: call `check_inputs` first.
        """
        ...


def check_inputs(frames: np.ndarray, queries_xy: np.ndarray, query_frame: int) -> None:
    """Raises ValueError if shapes or types are not those that `Tracker.track` takes."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be T h w 3 uint8, not {frames.shape} {frames.dtype}")
    if queries_xy.ndim != 2 or queries_xy.shape[1] != 2:
        raise ValueError(f"queries_xy must be n 2, not {queries_xy.shape}")
    if not 0 <= query_frame < len(frames):
        raise ValueError(f"query_frame {query_frame} lies outside a clip of {len(frames)} frames")
