"""Steering: converts a user's controls to tracks for the next chunk of a stream.

A snapshot of the controls (`Controls`) is complete. `Steering` stores where every point was, so that a chunk's tracks
begin where the last chunk's ended. The layers, from bottom to top: a camera's ground, or a motion that is transferred;
released points that are held; pinned points; paths; dragged points. Points within a grid step of a point of a higher
layer are hidden, as occluded points are in training.

Legend: T pixel frames of a chunk, n slots (`max_tracks`), k points of one layer. xy: float64 clip pixels.
Source: MotionStream, section on interactive use (green: dragged, red: pinned, blue: pre-drawn paths).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from msmodel.points import inside, ping_pong
from msmodel.steering.controls import Camera, Controls, DrawnPath, InputSmoothing
from msmodel.steering.ground import Ground
from msmodel.steering.slots import Slots
from msmodel.steering.smoothing import Follower
from msmodel.tracks import shares_to_px

__all__ = ["WEBCAM", "Camera", "Controls", "DrawnPath", "InputSmoothing", "Steering"]

WEBCAM = "webcam"  # the motion that `Steering.see` updates
COVERED = 0.999  # grid steps, along both axes, within which a point hides lower ones; neighbours on the grid do not

Key = tuple[str, int, int]  # layer, number, member


@dataclass
class TrackLayer:
    """Points of one kind during one chunk.

    keys: k. xy: T k 2. visible: T k. begins: k 2, the points' places at the chunk's begin, if not those of its first
    frame.
    """

    keys: list[Key]
    xy: np.ndarray
    visible: np.ndarray
    begins: np.ndarray | None = None


class Steering:
    """The tracks of one stream, chunk after chunk.

    size: (height, width) of a clip. grid: rows and columns with which the model was trained. max_tracks: slots, and so
    ids. Too many points of the user are an error; points of a camera or a motion beyond max_tracks are left out. A
    camera needs about one and a half grids in addition to the user's points. A dragged or pinned point moves to its
    place in the newest snapshot (msmodel.steering.smoothing.Follower). depth: H W relative inverse depth of the picture
    (larger is nearer), for the camera; None for a plane. During a transfer the camera rests.
    """

    def __init__(
        self,
        size: tuple[int, int],
        fps: float,
        smoothing: InputSmoothing,
        max_tracks: int,
        grid: tuple[int, int],
        depth: np.ndarray | None = None,
    ) -> None:
        if problems := smoothing.problems():
            raise ValueError("; ".join(problems))
        self.size, self.fps, self.smoothing, self.max_tracks = size, fps, smoothing, max_tracks
        self._grid, self._depth = grid, depth
        self._step = np.array([size[1] / grid[1], size[0] / grid[0]])
        self._motions: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._seen: tuple[list[Key], np.ndarray] = ([], np.zeros((0, 2)))
        self.reset()

    def reset(self) -> None:
        """Returns to frame 0 without points. Motions stay."""
        self._next = 0
        self._slots = Slots(self.max_tracks)
        self._follower = Follower(self.smoothing, self.fps, self.size[1])
        self._pinned: dict[Key, bool] = {}  # the user's current points
        self._held: dict[Key, None] = {}  # released and pinned, the oldest first
        self._begun: dict[int, int] = {}  # path -> its first frame
        self._playing = ("", 0)  # motion, its first frame
        self._ground: Ground | None = None
        self._last: dict[Key, np.ndarray] = {}  # where the user's points ended
        self._live: set[Key] = set()  # points of the live motion in the last chunk

    def fork(self) -> Steering:
        """Returns an independent copy that continues from the current state."""
        return copy.deepcopy(self)

    def add_motion(self, name: str, xy_px: np.ndarray, visible: np.ndarray) -> None:
        """Adds a motion that Controls.transfer may name: T k 2 clip pixels at the clip's fps, visible T k.

        It plays from the first chunk that names it, forward and backward endlessly. Of more tracks than slots an even
        selection is kept. Raises ValueError for shapes that do not fit and visible points that are not finite.
        """
        if xy_px.ndim != 3 or xy_px.shape[2] != 2 or visible.shape != xy_px.shape[:2] or not len(xy_px):
            raise ValueError(f"a motion is T n 2 with visible T n, not {xy_px.shape} and {visible.shape}")
        if not np.isfinite(xy_px[visible.astype(bool)]).all():
            raise ValueError(f"motion {name!r} has visible points that are not finite")
        n = xy_px.shape[1]
        kept = np.unique(np.linspace(0, max(n - 1, 0), min(n, self.max_tracks)).round().astype(int))
        seen = visible[:, kept].astype(bool)
        self._motions[name] = (np.where(seen[..., None], xy_px[:, kept], 0.0), seen)

    def see(self, names: Sequence[int], xy_px: np.ndarray) -> None:
        """Sets the current places of the live motion's points (WEBCAM): k names, k 2 clip pixels.

        Points whose name is missing are lost.
        """
        assert xy_px.shape == (len(names), 2) and np.isfinite(xy_px).all()
        self._seen = [("live", int(name), 0) for name in names], np.asarray(xy_px, np.float64)

    def tracks(self, controls: Controls, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tracks of pixel frames first..first+count-1: xy_px T n 2 float32, visible T n bool.

        The frames must follow those of the last call. Raises ValueError for more points than slots, or a motion that
        was not added.
        """
        assert first == self._next, f"chunks come in order: frame {self._next} is next, not {first}"
        _check(controls)
        held, pinned, dragged = self._points(controls, count)
        user = [held, pinned, self._paths(controls.paths, first, count), dragged]
        placed = sum(len(layer.keys) for layer in user[1:])
        if placed > self.max_tracks:
            raise ValueError(f"{placed} points are more than the {self.max_tracks} tracks of this stream: remove some")
        motion = self._motion(controls.transfer, first, count)
        layers = [self._camera(None if controls.transfer else controls.camera, user, count), motion, *user]
        self._next = first + count
        self._cover(layers)
        return self._in_slots(layers, count)

    def _points(self, controls: Controls, count: int) -> tuple[TrackLayer, TrackLayer, TrackLayer]:
        """Returns the layers of released points that are held, of pinned and of dragged points."""
        keys: list[Key] = [("point", int(i), 0) for i in controls.ids]
        named = set(keys)
        for key in [k for k in self._pinned if k not in named]:
            if not self._pinned.pop(key) and self.smoothing.release == "pin":
                self._held[key] = None
            else:
                self._follower.forget([key])
        self._held = {key: None for key in self._held if key not in named}
        self._pinned = dict(zip(keys, controls.pinned.tolist(), strict=True))
        target = shares_to_px(controls.xy, self.size)
        origin = target if controls.origin is None else shares_to_px(controls.origin, self.size)
        xy = self._follower.follow(keys, origin, target, count)
        held = list(reversed(self._held))  # the oldest are left out where slots are few
        place = self._follower.target(held)
        return (
            self._layer(held, self._follower.follow(held, place, place, count)),
            self._layer([k for k in keys if self._pinned[k]], xy[:, controls.pinned], origin[controls.pinned]),
            self._layer([k for k in keys if not self._pinned[k]], xy[:, ~controls.pinned], origin[~controls.pinned]),
        )

    def _paths(self, paths: Sequence[DrawnPath], first: int, count: int) -> TrackLayer:
        self._begun = {p.id: self._begun.get(p.id, first) for p in paths}
        keys: list[Key] = []
        parts = [np.zeros((count, 0, 2))]
        for path in paths:
            keys += [("path", path.id, member) for member in range(len(path.members))]
            seconds = (np.arange(first, first + count) - self._begun[path.id]) / self.fps
            shift = along(shares_to_px(path.line, self.size), seconds / path.seconds)
            parts.append(shares_to_px(path.members, self.size) + shift[:, None])
        return self._layer(keys, np.concatenate(parts, axis=1))

    def _motion(self, name: str, first: int, count: int) -> TrackLayer:
        """Returns the tracks of the transferred motion, if any."""
        if name not in ("", WEBCAM, *self._motions):
            known = ", ".join(self._motions) or "none yet"
            raise ValueError(f"transfer: there is no motion {name!r} (uploaded: {known}); upload it again")
        if name != self._playing[0]:
            self._playing = (name, first)
        keys, xy = self._seen if name == WEBCAM else ([], np.zeros((0, 2)))
        self._follower.forget(self._live.difference(keys))
        self._live = set(keys)
        if name == WEBCAM:
            return self._layer(keys, self._follower.follow(keys, xy, xy, count))
        if not name:
            return self._layer([], np.zeros((count, 0, 2)))
        places, visible = self._motions[name]
        frames, since = len(places), first - self._playing[1]
        at = ping_pong(frames, since + count, since) if frames > 1 else np.zeros(count, int)
        layer = self._layer([("motion", i, self._playing[1]) for i in range(places.shape[1])], places[at])
        layer.visible &= visible[at]
        return layer

    def _camera(self, camera: Camera | None, user: list[TrackLayer], count: int) -> TrackLayer:
        """Returns the ground without the points next to which the user's points were placed or released."""
        last, self._last = self._last, {k: p for u in user for k, p in zip(u.keys, u.xy[-1], strict=True)}
        if camera is None:
            self._ground = None
            return self._layer([], np.zeros((count, 0, 2)))
        begins = self._ground is None
        if self._ground is None:
            self._ground = Ground(self.size, self.fps, self._grid, self._depth)
        placed = [p for u in user for k, p in zip(u.keys, u.xy[0], strict=True) if begins or k not in last]
        let_go = [p for k, p in last.items() if k not in self._last]
        self._ground.take(np.array([*placed, *let_go]).reshape(-1, 2))
        names, xy, visible = self._ground.frames(camera, count)
        return TrackLayer([("ground", name, 0) for name in names], xy, visible)

    def _layer(self, keys: list[Key], xy: np.ndarray, begins: np.ndarray | None = None) -> TrackLayer:
        return TrackLayer(keys, xy, inside(xy, *self.size), begins)

    def _cover(self, layers: list[TrackLayer]) -> None:
        """Hides points under points of a higher layer."""
        for t in range(len(layers[0].xy)):
            above = np.zeros((0, 2))
            for layer in reversed(layers):
                layer.visible[t] &= ~near(layer.xy[t], above, self._step)
                above = np.concatenate([above, layer.xy[t][layer.visible[t]]])

    def _in_slots(self, layers: list[TrackLayer], count: int) -> tuple[np.ndarray, np.ndarray]:
        keys = [key for layer in reversed(layers) for key in layer.keys]
        xy = np.concatenate([layer.xy for layer in reversed(layers)], axis=1)
        seen = np.concatenate([layer.visible for layer in reversed(layers)], axis=1)
        begins = [layer.xy[0] if layer.begins is None else layer.begins for layer in reversed(layers)]
        slots = self._slots.assign(keys, np.concatenate(begins) / self._step, xy[-1] / self._step, seen[-1])
        xy, seen = xy[:, : len(slots)], seen[:, : len(slots)]
        xy_px = np.zeros((count, self.max_tracks, 2), np.float32)
        visible = np.zeros((count, self.max_tracks), bool)
        xy_px[:, slots], visible[:, slots] = xy, seen
        return xy_px, visible & inside(xy_px, *self.size)  # 63.99999999 becomes 64 as float32


def along(line: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Returns the displacement from a line's beginning to its point at a share (m) of its length: corners k 2 -> m 2.

    Shares over 1 give the end.
    """
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=-1))])
    at = share * lengths[-1]
    return np.stack([np.interp(at, lengths, line[:, axis] - line[0, axis]) for axis in (0, 1)], axis=-1)


def near(xy: np.ndarray, above: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Returns which of k points lie within a grid step (2: x, y) of any of m, along both axes: k bool."""
    if not len(xy) or not len(above):
        return np.zeros(len(xy), bool)
    distance, _ = cKDTree(above / step).query(xy / step, p=np.inf, distance_upper_bound=COVERED)
    return np.isfinite(distance)


def _check(controls: Controls) -> None:
    """Asserts what the protocol of the demo has already validated."""
    n = len(controls.ids)
    assert controls.xy.shape == (n, 2) and controls.pinned.shape == (n,) and controls.pinned.dtype == bool
    assert np.isfinite(controls.xy).all()
    assert controls.origin is None or (controls.origin.shape == (n, 2) and np.isfinite(controls.origin).all())
    for path in controls.paths:
        assert path.members.ndim == path.line.ndim == 2 and path.members.shape[1] == path.line.shape[1] == 2
        assert len(path.line) and path.seconds > 0 and np.isfinite(path.members).all() and np.isfinite(path.line).all()
    assert len({path.id for path in controls.paths}) == len(controls.paths)
