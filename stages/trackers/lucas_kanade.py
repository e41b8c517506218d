"""Pyramidal Lucas-Kanade (Bouguet 2000, OpenCV) chained frame to frame, with a forward-backward check.

Frames are matched at one working height, whatever their own: on renders of 48 x 80 px with exact tracks, twice the size and
a window of 11 px were best of 10 settings (TAP-Vid AJ 0.71, OA 0.84, against 0.66 and 0.80 at four times and 21 px).
"""

from __future__ import annotations

import cv2
import numpy as np

from stages.trackers.base import TrackerConfig, Tracks, check_inputs, inside

MAX_REACH = 0.15  # frame widths that an unchecked point may move in one frame


class LucasKanade:
    """Needs no weights. A point that fails the check once is invisible from then on, but followed further as well as may be:
    where a re-tracked point ends up must not be where it was lost. One that leaves the frame stays where it left."""

    name = "lucas_kanade"
    version = f"opencv-{cv2.__version__}"
    licence = "Apache-2.0"

    def __init__(self, cfg: TrackerConfig) -> None:
        self.cfg = cfg
        self.thresholds = {"max_back_px": cfg.max_back_px}

    def track(self, frames: np.ndarray, queries_xy: np.ndarray, query_frame: int = 0) -> Tracks:
        """See Tracker.track. Frames before query_frame are tracked backwards from it."""
        check_inputs(frames, queries_xy, query_frame)
        height, width = frames.shape[1:3]
        size = (max(1, round(width * self.cfg.work_height / height)), self.cfg.work_height)
        scale = np.array([size[0] / width, size[1] / height], np.float32)
        grey = [_resize(f, size) for f in frames]
        xy = np.empty((len(frames), len(queries_xy), 2), np.float32)
        visible = np.zeros(xy.shape[:2], bool)
        xy[query_frame] = queries_xy
        visible[query_frame] = inside(queries_xy, height, width)
        for order in (range(query_frame + 1, len(frames)), range(query_frame - 1, -1, -1)):
            before, present = query_frame, visible[query_frame]
            for now in order:
                found, seen = self._step(grey[before], grey[now], xy[before], present, scale)
                reach = np.abs(found - xy[before]).max(axis=-1, initial=0.0)
                kept = visible[before] & seen
                believed = present & (kept | (reach < MAX_REACH * width))  # further in one frame: a mismatch
                present = present & ~(believed & ~inside(found, height, width))
                xy[now] = np.where((believed & present)[:, None], found, xy[before])
                visible[now] = kept & present
                before = now
        return Tracks(xy, visible, visible.astype(np.float32))

    def _step(
        self, a: np.ndarray, b: np.ndarray, xy: np.ndarray, alive: np.ndarray, scale: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One frame: a, b are resized grey frames; xy n 2 px, alive n -> positions at b (of the alive ones, finite), and who
        passed the check."""
        out, seen = xy.copy(), np.zeros_like(alive)
        if not alive.any():
            return out, seen
        start = (xy[alive] * scale - 0.5).astype(np.float32)[:, None]  # OpenCV puts pixel centres at whole numbers
        moved, found = self._flow(a, b, start)
        back, found_back = self._flow(b, a, moved)
        error = np.linalg.norm((back - start)[:, 0] / scale, axis=-1)
        place = (moved[:, 0] + 0.5) / scale
        out[alive] = np.where(np.isfinite(place), place, xy[alive])
        seen[alive] = found & found_back & (error <= self.cfg.max_back_px)
        return out, seen

    def _flow(self, a: np.ndarray, b: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved, status, _ = cv2.calcOpticalFlowPyrLK(
            a,
            b,
            points,
            np.empty_like(points),
            winSize=(self.cfg.window_px, self.cfg.window_px),
            maxLevel=4,
            criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01),
        )
        return moved, status[:, 0].astype(bool)


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """h w 3 -> grey at size (width, height)."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if size[1] < len(grey) else cv2.INTER_CUBIC)
