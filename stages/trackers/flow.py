"""Point tracker DIS: dense inverse search flow (Kroeger et al. 2016, OpenCV) chained from frame to frame."""

from __future__ import annotations

import cv2
import numpy as np

from stages.trackers.base import TrackerConfig, Tracks, check_inputs, inside
from stages.trackers.matching import outward, resized, sample


class DisFlow:
    """Tracks points without weights. A point that once fails the forward-backward check is invisible from then on; the flow
    still carries it, while it lies in the frame, as a best guess."""

    name = "dis"
    version = f"opencv-{cv2.__version__}"
    licence = "Apache-2.0"

    def __init__(self, cfg: TrackerConfig) -> None:
        self.cfg = cfg
        self.thresholds = {"max_back_px": cfg.max_back_px}
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def track(self, frames: np.ndarray, queries_xy: np.ndarray, query_frame: int = 0) -> Tracks:
        """Tracks points as Tracker.track describes. Frames before query_frame are tracked backwards from it."""
        check_inputs(frames, queries_xy, query_frame)
        video = resized(frames, self.cfg.work_height)
        xy = np.repeat(video.to_work(queries_xy)[None], len(frames), axis=0)
        visible, back = np.zeros(xy.shape[:2], bool), np.zeros(xy.shape[:2], np.float32)
        visible[query_frame] = video.holds(xy[query_frame])
        for before, now in outward(query_frame, len(frames)):
            flow, home = (
                self._flow(video.grey[before], video.grey[now]),
                self._flow(video.grey[now], video.grey[before]),
            )
            step = sample(flow, xy[before])
            found = xy[before] + step
            back[now] = np.linalg.norm((step + sample(home, found)) / video.scale, axis=-1)
            visible[now] = visible[before] & (back[now] <= self.cfg.max_back_px) & video.holds(found)
            xy[now] = np.where(video.holds(xy[before])[:, None], found, xy[before])
        xy_px = video.to_frame(xy)
        xy_px[query_frame] = queries_xy
        visible &= inside(xy_px, *frames.shape[1:3])
        measured = back[visible & (np.arange(len(frames)) != query_frame)[:, None]]
        sureness = np.exp2(-np.square(back / self.cfg.max_back_px)) * visible
        return Tracks(
            xy_px, visible, sureness.astype(np.float32), float(measured.mean()) if measured.size else float("nan")
        )

    def _flow(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Computes the flow between grey pictures: h w 2. DIS starts from the given array, which must be set: no motion."""
        return self._dis.calc(a, b, np.zeros((*a.shape, 2), np.float32))
