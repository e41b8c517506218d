"""The ground: points that a moving camera sees, on a plane or on a depth map, for as long as the camera moves.

Points lie in space, about one a grid cell. At a chunk's start new points are added where there will be room at its end,
so that they enter with the picture. Points that leave the frame are removed, and of points that become too close the
later one. Points next to the user's points, at the time these are placed or released, are hidden permanently (`take`).

Legend: T frames, k points. Pixels at clip size, pixel centres at +0.5.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from msmodel.points import inside, too_close, uniform_grid
from msmodel.steering.camera import Z_CLOSE, Pose, depth_of, in_front, intrinsics, lift, moved, project, rays
from msmodel.steering.controls import Camera

FILL_BEYOND = 0.75  # grid steps to the nearest point above which a cell gets a new point
DROP_BELOW = 0.7  # grid steps between two points, below which the later one is dropped
DEEP = 50.0  # depths beyond this multiple of the middle depth are the horizon of a tilted plane: no points


class Ground:
    """The ground of one camera, which starts at rest in front of the picture.

    depth: H W relative inverse depth (larger is nearer), None for a plane. The focal length is the frame's width (a
    field of view of 53 degrees). A new point on a depth map gets the depth of its nearest neighbour in the picture.
    """

    def __init__(
        self, size: tuple[int, int], fps: float, grid: tuple[int, int], depth: np.ndarray | None = None
    ) -> None:
        self.size, self.fps = size, fps
        self._step = np.array([size[1] / grid[1], size[0] / grid[0]])
        self._centres = uniform_grid(*size, *grid).astype(np.float64)
        self._candidates = uniform_grid(*size, 2 * grid[0], 2 * grid[1]).astype(np.float64)
        self._k = intrinsics(size, size[1])
        self._depth = None if depth is None else depth_of(depth)
        self._middle = 1.0 if self._depth is None else float(np.median(self._depth))
        self._pose, self._moving = Pose(), False
        self._x, self._names, self._taken = np.zeros((0, 3)), np.zeros(0, int), np.zeros(0, bool)
        self._born = 0
        self._add(self._centres, self._depths_in_map(self._centres), self._pose)

    def frames(self, camera: Camera, count: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Returns the next frames: names of the points visible in any of them, xy T k 2, visible T k."""
        poses = []
        for _ in range(count):
            if self._moving:
                self._pose = moved(self._pose, camera, 1 / self.fps, self.size, self._k, self._middle)
            self._moving = True
            poses.append(self._pose)
        self._fill()
        self._thin()
        both = [project(self._x, self._k, pose) for pose in poses]
        xy, z = np.stack([b[0] for b in both]), np.stack([b[1] for b in both])
        within = inside(xy, *self.size) & (z > Z_CLOSE)
        visible = within & np.stack([self._in_front(*pair) for pair in zip(xy, z, strict=True)])
        shown = within.any(axis=0) & ~self._taken
        order = np.flatnonzero(shown)
        order = order[np.argsort(~within[-1, order], kind="stable")]  # points that leave are last, as slots may be few
        out = self._names[order].tolist(), xy[:, order], visible[:, order]
        self._keep(within[-1] | self._near_the_frame(xy[-1], z[-1]))
        return out

    def take(self, xy_px: np.ndarray) -> None:
        """Hides points within a grid step of these (m 2, at present) permanently."""
        xy, z = project(self._x, self._k, self._pose)
        if len(xy_px) and len(xy):
            away, _ = cKDTree(xy_px / self._step).query(xy / self._step, p=np.inf)
            self._taken |= (away < 0.999) & (z > Z_CLOSE)

    def _fill(self) -> None:
        """Adds points where there is room, as seen from the current pose.

        Places close to others come first, for a dense packing.
        """
        xy, z = project(self._x, self._k, self._pose)
        xy, z = xy[z > Z_CLOSE], z[z > Z_CLOSE]
        if not len(xy):
            places, depths = self._centres, np.full(len(self._centres), self._middle)
        else:
            away, nearest = cKDTree(xy / self._step).query(self._candidates / self._step)
            free = np.flatnonzero(away > FILL_BEYOND)
            free = free[~too_close(self._candidates[free] / self._step, _ranks(away[free]), FILL_BEYOND)]
            places, depths = self._candidates[free], z[nearest[free]]
        if self._depth is None:
            depths = self._depths_on_plane(places)
        sound = (depths > Z_CLOSE) & (depths < DEEP * self._middle)
        self._add(places[sound], depths[sound], self._pose)

    def _thin(self) -> None:
        """Removes points that are too close to older ones. Hidden points do not count: they may become visible again."""
        xy, z = project(self._x, self._k, self._pose)
        shown = np.flatnonzero(self._in_front(xy, z))
        keep = np.ones(len(z), bool)
        keep[shown] = ~too_close(xy[shown] / self._step, self._names[shown], DROP_BELOW)
        self._keep(keep)

    def _in_front(self, xy: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Returns which points are in front of the camera and, on a depth map, not hidden by other points: k bool."""
        return z > Z_CLOSE if self._depth is None else in_front(xy, z, self._step)

    def _add(self, xy: np.ndarray, z: np.ndarray, pose: Pose) -> None:
        self._x = np.concatenate([self._x, lift(xy, z, self._k, pose)])
        self._names = np.concatenate([self._names, self._born + np.arange(len(xy))])
        self._taken = np.concatenate([self._taken, np.zeros(len(xy), bool)])
        self._born += len(xy)

    def _keep(self, which: np.ndarray) -> None:
        self._x, self._names, self._taken = self._x[which], self._names[which], self._taken[which]

    def _near_the_frame(self, xy: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Returns which points are within a grid step of the frame: k bool."""
        height, width = self.size + 2 * self._step[::-1]
        return inside(xy + self._step, height, width) & (z > Z_CLOSE)

    def _depths_in_map(self, xy: np.ndarray) -> np.ndarray:
        if self._depth is None:
            return np.full(len(xy), self._middle)
        rows, cols = self._depth.shape
        row, col = (xy[:, 1] * rows / self.size[0]).astype(int), (xy[:, 0] * cols / self.size[1]).astype(int)
        return self._depth[row, col]

    def _depths_on_plane(self, xy: np.ndarray) -> np.ndarray:
        """Returns the depths at which pixels meet the plane, below zero where they do not."""
        down_the_axis = rays(xy, self._k, self._pose)[:, 2]
        level = np.abs(down_the_axis) < 1e-9
        return np.where(level, -1.0, (self._middle - self._pose.position[2]) / np.where(level, 1.0, down_the_axis))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns the rank of each value in ascending order; among equal values the first has the lowest rank."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")
