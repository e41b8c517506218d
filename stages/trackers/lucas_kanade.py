"""Point tracker Lucas-Kanade with motion groups: points are matched from frame to frame, those that move together are grouped,
and each group is matched against the query frame warped by its motion.

Matching from frame to frame drifts and loses covered points. A group does neither: its map is fitted to all its points, and
tells where a covered one is and whether the colours there are still its own. A point of no group keeps its frame-to-frame path.
"""

from __future__ import annotations

import cv2
import numpy as np

from stages.trackers.base import TrackerConfig, Tracks, check_inputs, inside, uniform_grid
from stages.trackers.matching import Video, match, outward, resized
from stages.trackers.motion_groups import Aligner, MotionGroup
from stages.trackers.motions import find_motions

MAX_REACH = 0.15  # frame widths that a point may move in one frame after it failed the check
TOLERANCE = 2.5  # work pixels that a point's path may deviate from its group's motion
STRAY = 5.0  # work pixels: a point whose path is mostly further from its group's motion may not belong to it
DOUBT = 8.0  # mean colour error, 0..255, above which it does not; below, the path has slipped
SUPPORT = (8, 12)  # rows, columns of additional points, if there are too few queries to find motions


class LucasKanade:
    """Tracks points without weights.

    A point is visible where its group's motion was measured and puts it in the frame, and the colours around it are those
    of the
    query frame; it may become visible again. A point of no group that once fails the forward-backward check is invisible from
    then on. Invisible points still get a best guess; one that leaves the frame stays at its border.
    """

    name = "lucas_kanade"
    version = f"opencv-{cv2.__version__}+motions"
    licence = "Apache-2.0"

    def __init__(self, cfg: TrackerConfig) -> None:
        self.cfg = cfg
        self.thresholds = {"max_back_px": cfg.max_back_px, "max_colour_error": cfg.max_colour_error}

    def track(self, frames: np.ndarray, queries_xy: np.ndarray, query_frame: int = 0) -> Tracks:
        """Tracks points as Tracker.track describes. Frames before query_frame are tracked backwards from it."""
        check_inputs(frames, queries_xy, query_frame)
        n, (height, width) = len(queries_xy), frames.shape[1:3]
        if not n:
            empty = np.zeros((len(frames), 0), np.float32)
            return Tracks(np.zeros((len(frames), 0, 2), np.float32), empty > 0, empty)
        few = n < SUPPORT[0] * SUPPORT[1]
        points = np.concatenate([queries_xy, uniform_grid(height, width, *SUPPORT)]) if few else queries_xy
        video = resized(frames, self.cfg.work_height)
        found = self._follow(video, video.to_work(points), query_frame)
        xy, sureness, back = (a[:, :n] for a in found)
        xy_px = video.to_frame(xy)
        xy_px[query_frame] = queries_xy
        within = inside(xy_px, height, width)
        visible = (sureness > 0.5) & within
        measured = back[visible & np.isfinite(back) & (np.arange(len(frames)) != query_frame)[:, None]]
        back_px = float(measured.mean() / video.scale.mean()) if measured.size else float("nan")
        return Tracks(xy_px, visible, (sureness * within).astype(np.float32), back_px)

    def _follow(self, video: Video, query: np.ndarray, query_frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follows queries n 2: returns positions T n 2 (work pixels), confidence T n (visible above 0.5), forward-backward
        error T n."""
        max_back = self.cfg.max_back_px * float(video.scale.mean())
        xy, seen, back = self._chain(video, query, query_frame, max_back)
        sureness = np.where(seen, _sureness(back / max_back), 0.0)
        motions = find_motions(query, xy, seen, TOLERANCE)
        if not motions:
            return xy, sureness, back
        aligner = Aligner(video, query, query_frame, self.cfg.window_px, max_back)
        groups, owner = aligner.groups(xy, seen, motions)
        for k, group in enumerate(groups):
            own = (owner == k) & ~_off_motion(xy, seen, group)
            xy[:, own] = np.where(group.fitted[:, None, None], group.place[:, own], xy[:, own])
            believed = group.within & (group.fitted[:, None] | seen)
            alike = _sureness(group.colour / self.cfg.max_colour_error)
            sureness[:, own] = np.where(believed, alike, 0.0)[:, own]
            back[:, own] = group.back[:, own]
        return xy, sureness, back

    def _chain(
        self, video: Video, query: np.ndarray, query_frame: int, max_back: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Matches from frame to frame: returns positions T n 2, whether every check so far passed T n, forward-backward
        error T n."""
        xy = np.repeat(query[None], len(video.grey), axis=0)
        seen, back = np.zeros(xy.shape[:2], bool), np.full(xy.shape[:2], np.inf, np.float32)
        present = seen.copy()  # in the frame so far
        seen[query_frame] = present[query_frame] = video.holds(query)
        back[query_frame] = 0.0
        for before, now in outward(query_frame, len(xy)):
            xy[now] = xy[before]
            alive = np.flatnonzero(present[before])
            found, error = match(video.grey[before], video.grey[now], xy[before, alive], self.cfg.window_px)
            kept = seen[before, alive] & (error <= max_back)
            reach = np.abs(found - xy[before, alive]).max(axis=-1, initial=0.0)
            believed = kept | (reach < MAX_REACH * video.size[0])  # a larger step is a mismatch
            stays = ~believed | video.holds(found)
            moves = believed & stays
            xy[now, alive[moves]] = found[moves]
            back[now, alive] = error
            present[now, alive], seen[now, alive] = stays, kept & stays
        return xy, seen, back


def _sureness(error: np.ndarray) -> np.ndarray:
    """Converts errors, as shares of the limit (>= 0), to confidence in (0, 1]: 1 without error, 0.5 at the limit."""
    return np.exp2(-np.square(error))


def _off_motion(xy: np.ndarray, seen: np.ndarray, group: MotionGroup) -> np.ndarray:
    """Returns the points whose path, on most frames where they were visible, and whose colours do not fit the motion: n
    bool."""
    far = np.linalg.norm(xy - group.place, axis=-1) > STRAY
    return ((far & seen).sum(axis=0) > 0.5 * seen.sum(axis=0)) & (group.cost > DOUBT)
