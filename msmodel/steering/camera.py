"""Cameras: projection of pixels to space and back, poses from speeds or from LLFF files, depth from relative inverse depth.

Legend: n points, T poses. p, xy: pixels, x first, pixel centres at +0.5. z: depth along the camera's axis, > 0 in front
of it. Axes: right, down, forward. K: 3 3, pixels. A pose is a camera's place: X = R x + t maps its coordinates to the
world's.
Source: EPE of camera control as in MotionStream's LLFF evaluation: X = R (z K^-1 p) + t; q = R'^T (X - t'); u = K q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from msmodel.steering.controls import Camera

NEAREST, FARTHEST = 1.0, 4.0  # depths to which the ends of a relative depth map are mapped
Z_CLOSE = 0.02  # a point at a smaller depth counts as behind the image plane
Z_TOLERANCE = 0.1  # share of its depth by which a point must lie behind another to be hidden by it


@dataclass(frozen=True)
class Pose:
    """The pose of a camera.

    rotation: 3 3, the camera's axes in the world, as columns. position: 3. zoom: factor of the focal length.
    """

    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    position: np.ndarray = field(default_factory=lambda: np.zeros(3))
    zoom: float = 1.0


def intrinsics(size: tuple[int, int], focal_px: float) -> np.ndarray:
    """Returns K of a camera with square pixels and its axis in the middle of a frame of size (height, width)."""
    return np.array([[focal_px, 0, size[1] / 2], [0, focal_px, size[0] / 2], [0, 0, 1.0]])


def zoomed(k: np.ndarray, zoom: float) -> np.ndarray:
    """Returns K with both focal lengths multiplied by zoom."""
    return k * np.array([[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]])


def rays(xy_px: np.ndarray, k: np.ndarray, pose: Pose) -> np.ndarray:
    """Returns R K^-1 p, the world's direction of each pixel, for depth one: n 2 -> n 3."""
    p = np.concatenate([xy_px, np.ones((*xy_px.shape[:-1], 1))], axis=-1)
    return p @ (pose.rotation @ np.linalg.inv(zoomed(k, pose.zoom))).T


def lift(xy_px: np.ndarray, z: np.ndarray, k: np.ndarray, pose: Pose) -> np.ndarray:
    """Returns X = R (z K^-1 p) + t: n 2 and n -> n 3."""
    return z[..., None] * rays(xy_px, k, pose) + pose.position


def project(x: np.ndarray, k: np.ndarray, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Returns u = K R^T (X - t): n 3 -> pixels n 2 and depths n.

    Where the depth is below Z_CLOSE pixels have no meaning, but are finite.
    """
    q = (x - pose.position) @ pose.rotation
    u = q @ zoomed(k, pose.zoom).T
    return u[..., :2] / np.maximum(u[..., 2:], Z_CLOSE), q[..., 2]


def reproject(
    xy_px: np.ndarray, z: np.ndarray, k: np.ndarray, pose: Pose, to: Sequence[Pose]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels n 2 with depths n seen from `pose`, as other poses see them: T n 2 and their depths T n."""
    x = lift(np.asarray(xy_px, np.float64), np.asarray(z, np.float64), k, pose)
    seen = [project(x, k, other) for other in to]
    return np.stack([xy for xy, _ in seen]), np.stack([depth for _, depth in seen])


def in_front(xy_px: np.ndarray, z: np.ndarray, reach_px: np.ndarray) -> np.ndarray:
    """Applies a z-test among points: n bool.

    It is false behind the camera, or within reach (2: x, y; along both axes) of a nearer point.
    """
    front = z > Z_CLOSE
    if len(z) < 2:
        return front
    places = np.where(front[:, None], xy_px / reach_px, 1e6 + np.arange(len(z))[:, None])
    pairs = cKDTree(places).query_pairs(0.999, p=np.inf, output_type="ndarray")
    for near, far in (pairs.T, pairs.T[::-1]):
        front[far[z[far] > (1 + Z_TOLERANCE) * z[near]]] = False
    return front


def moved(pose: Pose, camera: Camera, seconds: float, size: tuple[int, int], k: np.ndarray, middle: float) -> Pose:
    """Returns the pose after `seconds` at a camera's speeds.

    middle: depth of what a pan moves by a frame's width or height, and of the axis of an orbit.
    """
    focal = zoomed(k, pose.zoom).diagonal()[:2]
    shift = np.array([camera.pan_x * size[1], camera.pan_y * size[0]]) * seconds * middle / focal
    roll, orbit = np.radians([camera.rotate * seconds, camera.orbit * seconds])
    pan = np.eye(4)
    pan[:2, 3] = shift
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]]
    about = np.eye(4)
    about[:3, :3] = [[np.cos(orbit), 0, np.sin(orbit)], [0, 1, 0], [-np.sin(orbit), 0, np.cos(orbit)]]
    about[:3, 3] = np.array([0, 0, middle]) - about[:3, :3] @ [0, 0, middle]
    back = np.linalg.inv(about @ turn @ pan)  # the camera's motion is the inverse of the scene's
    rotation, position = pose.rotation @ back[:3, :3], pose.rotation @ back[:3, 3] + pose.position
    return Pose(rotation, position, pose.zoom * 2 ** (camera.zoom * seconds))


def depth_of(relative: np.ndarray) -> np.ndarray:
    """Converts relative inverse depth (larger is nearer, any scale and shift) to depth from NEAREST to FARTHEST.

    A flat map gets depth NEAREST. Raises ValueError where the map is not finite.
    """
    if not np.isfinite(relative).all():
        raise ValueError("the depth map holds values that are not finite: export it again")
    low, high = float(relative.min()), float(relative.max())
    share = (relative - low) / (high - low) if high > low else np.ones_like(relative)
    return 1 / (1 / FARTHEST + share * (1 / NEAREST - 1 / FARTHEST))


def fit_inverse_depth(relative: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """Fits scale and shift of relative inverse depth (n) to known depths (n) of sparse points, by least squares.

    1 / z = scale * relative + shift. Raises ValueError where these are not determined.
    """
    if relative.shape != z.shape or relative.ndim != 1 or not (np.isfinite(relative).all() and (z > 0).all()):
        raise ValueError(
            f"need n finite relative depths and n positive depths, got {relative.shape} and {z.shape}: "
            "leave out points without either"
        )
    if len(z) < 2 or np.ptp(relative) == 0:
        raise ValueError("scale and shift need at least two points of different relative depth")
    (scale, shift), *_ = np.linalg.lstsq(np.stack([relative, np.ones_like(relative)], axis=1), 1 / z, rcond=None)
    return float(scale), float(shift)


@dataclass(frozen=True)
class LLFF:
    """The poses of a scene's pictures.

    intrinsics: K of each at the requested size, T 3 3. near, far: depth bounds of each, T.
    """

    poses: list[Pose]
    intrinsics: np.ndarray
    near: np.ndarray
    far: np.ndarray


def read_llff(path: str | Path, size: tuple[int, int]) -> LLFF:
    """Reads poses_bounds.npy of an LLFF scene.

    It has 17 numbers a row, 3 x 5 [R | t | height, width, focal] and near, far, with axes down, right, back.

    size: (height, width) to which the pictures are resized. Raises ValueError for any other file.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise ValueError(f"{path}: not a plain .npy file ({e})") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 17 or not np.isfinite(rows).all():
        raise ValueError(f"{path}: LLFF poses are finite numbers, 17 a row, not {getattr(rows, 'shape', 'an archive')}")
    table = rows[:, :15].reshape(-1, 3, 5)
    down, right, back = np.moveaxis(table[:, :, :3], 2, 0)
    rotation = np.stack([right, down, -back], axis=-1)
    height, width, focal = table[:, :, 4].T
    k = np.zeros((len(rows), 3, 3))
    k[:, 0, 0], k[:, 1, 1], k[:, 2, 2] = focal * size[1] / width, focal * size[0] / height, 1
    k[:, :2, 2] = size[1] / 2, size[0] / 2
    poses = [Pose(r, t) for r, t in zip(rotation, table[:, :, 3], strict=True)]
    return LLFF(poses, k, rows[:, 15], rows[:, 16])
