"""Aligns groups of points that share a motion with the query frame itself, without drift, and finds what is covered.

For each motion and frame the query frame is warped by the motion's map, and its members are matched between that picture and
the frame; the map is fitted again to the matches. Where the warped picture and the frame differ in colour, a point is covered.

Legend: T frames, n points. Positions are work pixels (stages.trackers.matching).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from stages.trackers.matching import Video, match, outward, sample
from stages.trackers.motions import apply_maps, fit_maps, path_maps

REACH = 3.0  # work pixels that a match may lie from where the motion predicts it
REACH_LOST = 4.0  # the same if the motion is extrapolated
FEWEST_SHARE = 0.1  # of the members in the frame must be matched for a map to be fitted
SLOWING = 0.8  # share of its shift that an extrapolated motion keeps each frame
SKETCH = 3  # the first alignment compares colours on every third frame
NOISE = 0.2  # root mean square offset of matches of a rigid surface, work pixels
SPREAD = 0.6  # sigma of the neighbourhood whose offsets are averaged, mean distances between points
DAMPING = 0.5  # number of points without offset that are added to each average
BLUR = 1.5  # sigma of the window of colours, work pixels
CAP = 20.0  # colour error, 0..255: a larger one says no more about a point's motion
MEMBER_BONUS = 2.0  # colour error by which another motion must be better to take a member
SAME = 1.0  # colour error within which a larger motion explains the members of a smaller one as well


@dataclass(frozen=True, eq=False)
class MotionGroup:
    """Holds a motion and how well it explains each point.

    members n bool. maps T 2 3, query frame -> frame. place T n 2: all points under this motion. back T n: forward-backward
    error
    of a member's match (infinite without a match). colour T n: mean difference from the query frame's colours around the point,
    0..255, on the `compared` frames (T bool). within T n: place lies in the frame. fitted T: the map was measured at the frame,
    not extrapolated.
    """

    members: np.ndarray
    maps: np.ndarray
    place: np.ndarray
    back: np.ndarray
    colour: np.ndarray
    within: np.ndarray
    compared: np.ndarray
    fitted: np.ndarray

    @property
    def cost(self) -> np.ndarray:
        """Returns the mean colour error of each point under this motion, over the frames in which it lies: n."""
        judged = self.within & self.compared[:, None]
        return (np.minimum(self.colour, CAP) * judged).sum(axis=0) / np.maximum(judged.sum(axis=0), 1)


@dataclass(frozen=True, eq=False)
class Aligner:
    """Aligns motions to a clip. query: n 2 points on query_frame. window, max_back: of a match, work pixels."""

    video: Video
    query: np.ndarray
    query_frame: int
    window: int
    max_back: float

    def groups(
        self, xy: np.ndarray, seen: np.ndarray, motions: Sequence[np.ndarray]
    ) -> tuple[list[MotionGroup], np.ndarray]:
        """Returns the groups of the motions found in paths (T n 2, T n), and the number of each point's group: n int.

        A motion is dropped if a larger one explains its members as well; the rest are aligned again with all their points.
        """
        first = []
        for members in motions:
            maps, known = path_maps(self.query, xy, (seen & members).astype(float))
            first.append(self._align(members, maps, known, SKETCH))
        first = _distinct(first)
        owner = _owners(first)
        everywhere = np.ones(len(xy), bool)
        last = [self._align(owner == k, first[k].maps, everywhere) for k in np.unique(owner)]
        return last, _owners(last)

    def _align(self, members: np.ndarray, maps: np.ndarray, known: np.ndarray, every: int = 1) -> MotionGroup:
        """Refines maps by matching the warped query frame; where they are not `known` they are extrapolated first. Colours are
        compared on every `every`th frame."""
        frames, n = len(maps), len(self.query)
        maps, returned, offset = (
            maps.copy(),
            np.full((frames, n), np.inf, np.float32),
            np.zeros((frames, n, 2), np.float32),
        )
        maps[self.query_frame] = np.eye(2, 3)
        returned[self.query_frame, members] = 0.0
        for before, now in outward(self.query_frame, frames):
            if not known[now]:
                earlier = 2 * before - now if before != self.query_frame else before
                maps[now] = _extrapolated(maps[before], maps[earlier], self.query[members])
            place = apply_maps(maps[now], self.query[members])
            picture = self._warped(self.video.grey, maps[now])
            found, back = match(picture, self.video.grey[now], place, self.window, 0 if known[now] else 1, 10)
            away = found - place
            within = self.video.holds(found)
            good = (back < self.max_back) & within
            good &= np.linalg.norm(away, axis=-1) < (REACH if known[now] else REACH_LOST)
            if good.sum() >= max(3, FEWEST_SHARE * within.sum()):
                stray = np.linalg.norm(away - np.median(away[good], axis=0), axis=-1)
                maps[now] = fit_maps(self.query[members], found, good / (1 + (stray / 0.3) ** 2), maps[before])
                returned[now, members] = np.where(good, back, np.inf)
                offset[now, members] = np.where(good[:, None], found - apply_maps(maps[now], self.query[members]), 0)
        place = (apply_maps(maps, self.query) + self._bent(members, offset, np.isfinite(returned))).astype(np.float32)
        fitted = np.less(returned.min(axis=1), np.inf)
        within = self.video.holds(place)
        compared = np.isin(np.arange(frames), np.arange(self.query_frame % every, frames, every))
        return MotionGroup(
            members,
            maps,
            place,
            returned,
            self._colour(maps, place, within & members, compared),
            within,
            compared,
            fitted,
        )

    def _bent(self, members: np.ndarray, offset: np.ndarray, matched: np.ndarray) -> np.ndarray:
        """Returns how far the surface deviates from its map around each point: T n 2.

        This is the mean offset (T n 2) of the members matched nearby (T n), damped as far as it may be noise.
        """
        away = ((self.query[:, None] - self.query[None, members]) ** 2).sum(axis=-1)
        width, height = self.video.size
        near = np.exp(-away * len(self.query) / (2 * SPREAD**2 * width * height)).astype(np.float32)
        has = matched[:, members, None].astype(np.float32)
        bend = near @ offset[:, members] / (near @ has + DAMPING)
        size = (offset[:, members] ** 2).sum(axis=(1, 2)) / np.maximum(has.sum(axis=(1, 2)), 1)
        return bend * (size / (size + NOISE**2))[:, None, None]

    def _colour(self, maps: np.ndarray, place: np.ndarray, judge: np.ndarray, compared: np.ndarray) -> np.ndarray:
        """Returns the colour error at each place on the `compared` frames: T n. A change of light (the median over points that
        `judge` marks, T n) is subtracted."""
        out = np.zeros(place.shape[:2], np.float32)
        for now in np.flatnonzero(compared):
            difference = self._warped(self.video.rgb, maps[now]).astype(np.float32) - self.video.rgb[now]
            if judge[now].any():
                x, y = np.floor(place[now, judge[now]] + 0.5).astype(int).T
                difference -= np.median(difference[y, x], axis=0)
            red, green, blue = cv2.split(np.abs(difference))
            error = cv2.GaussianBlur(cv2.max(cv2.max(red, green), blue), (0, 0), BLUR)
            out[now] = sample(error, place[now])
        return out

    def _warped(self, frames: list[np.ndarray], matrix: np.ndarray) -> np.ndarray:
        query = frames[self.query_frame]
        return cv2.warpAffine(query, matrix, self.video.size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _extrapolated(now: np.ndarray, earlier: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Extrapolates a map by one frame: the centre of the points keeps most of its speed. Returns 2 3.

    Extrapolated rotation and scaling would move points far from the centre out of the frame.
    """
    middle = np.append(points.mean(axis=0), 1.0)
    out: np.ndarray = now.copy()
    out[:, 2] += SLOWING * ((now - earlier) @ middle)
    return out


def _distinct(groups: Sequence[MotionGroup]) -> list[MotionGroup]:
    """Drops the groups whose members an earlier, larger group explains as well."""
    kept: list[MotionGroup] = []
    for group in groups:
        own = group.cost[group.members]
        if all(np.median(other.cost[group.members] - own) >= SAME for other in kept):
            kept.append(group)
    return kept


def _owners(groups: Sequence[MotionGroup]) -> np.ndarray:
    """Returns the number of the group that explains each point best: n int."""
    return np.argmin([group.cost - MEMBER_BONUS * group.members for group in groups], axis=0)
