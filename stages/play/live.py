"""Tracks points in pictures that come one by one, as from a webcam: pairwise Lucas-Kanade with a forward-backward check.

A point that fails the check or leaves the frame is dropped. A cell of the grid without a point gets a new one, with a new name.

Legend: k points. Clip pixels, pixel centres at +0.5.
"""

from __future__ import annotations

import numpy as np

from msmodel.config import ClipConfig
from msmodel.points import inside, too_close, uniform_grid
from msmodel.tracks import resize_px
from stages.data.cut import crop_box
from stages.trackers.base import TrackerConfig
from stages.trackers.matching import Video, match, resized

DROP_BELOW = 0.5  # grid steps below which the later of two points is given up


class LiveTracker:
    """Tracks points from frame to frame. grid: rows and columns. Frames may have any size, which restarts the tracking when it
    changes; their centre, of the clip's aspect, is used."""

    def __init__(self, clip: ClipConfig, grid: tuple[int, int], cfg: TrackerConfig) -> None:
        self._clip, self._grid, self._cfg = clip, grid, cfg
        self._born = 0
        self._last: Video | None = None
        self.reset()

    def reset(self) -> tuple[list[int], np.ndarray]:
        """Starts again from the grid on the last frame, with names not used before. Returns the same as `add_frame`."""
        self._names = np.zeros(0, int)
        self._xy = np.zeros((0, 2), np.float32)  # work pixels
        return self._seeded()

    def add_frame(self, frame: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Takes the next frame (h w 3 uint8); returns the names of the tracked points and their positions (k 2 clip pixels)."""
        left, top, w, h = crop_box(frame.shape[1], frame.shape[0], self._clip)
        video = resized(np.ascontiguousarray(frame[None, top : top + h, left : left + w]), self._cfg.work_height)
        last, self._last = self._last, video
        if last is None or last.size != video.size:
            return self.reset()
        self._follow(last, video)
        return self._seeded()

    def _seeded(self) -> tuple[list[int], np.ndarray]:
        """Adds new points where there is room; returns names and positions, none before the first frame."""
        if self._last is None:
            return [], np.zeros((0, 2), np.float32)
        self._seed(self._last)
        width, height = self._last.size
        return self._names.tolist(), resize_px(self._xy + 0.5, (height, width), (self._clip.height, self._clip.width))

    def _follow(self, last: Video, video: Video) -> None:
        found, error = match(last.grey[0], video.grey[0], self._xy, self._cfg.window_px)
        most = self._cfg.max_back_px * video.size[1] / self._clip.height
        kept = (error <= most) & video.holds(found)
        self._names, self._xy = self._names[kept], found[kept].astype(np.float32)

    def _seed(self, video: Video) -> None:
        """Drops points too close to others, and adds one to every cell without a point."""
        rows, cols = self._grid
        step = np.array([video.size[0] / cols, video.size[1] / rows])
        kept = ~too_close(self._xy / step, self._names, DROP_BELOW)
        self._names, self._xy = self._names[kept], self._xy[kept]
        cell = np.floor((self._xy + 0.5) / step).astype(int)
        cell = np.clip(cell, 0, [cols - 1, rows - 1])
        empty = np.ones(rows * cols, bool)
        empty[cell[:, 1] * cols + cell[:, 0]] = False
        fresh = uniform_grid(video.size[1], video.size[0], rows, cols)[empty] - 0.5
        assert inside(fresh + 0.5, video.size[1], video.size[0]).all()
        self._names = np.concatenate([self._names, self._born + np.arange(len(fresh))])
        self._xy = np.concatenate([self._xy, fresh])
        self._born += len(fresh)
