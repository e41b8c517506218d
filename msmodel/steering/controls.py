"""Controls of a user as complete snapshots. The newest applies, and none depends on an earlier one.

Legend: n points. Shares: 0..1 of the frame's width and height, x first, origin top-left.
Source: MotionStream, section on interactive use (green: dragged, red: pinned, blue: pre-drawn paths).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

RELEASES = ("free", "pin")


@dataclass(frozen=True)
class DrawnPath:
    """A drawn path that moves a group of points. It starts with the first chunk that reads it.

    members: n 2 shares, where its points start. line: m 2 shares, the path's corners. Every member moves by line(t) -
    line(0), at constant speed over `seconds`, and then stays.
    """

    id: int
    members: np.ndarray
    line: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Camera:
    """Speeds of a camera in front of a plane (or a depth map). All zero: the scene is held still.

    pan_x, pan_y: frame widths and heights a second that the scene's content moves right and down.
    zoom: doublings a second.
    rotate: degrees a second, clockwise rotation of the content as seen.
    orbit: degrees a second about the vertical axis through the middle of the scene; the camera moves right.
    """

    pan_x: float = 0.0
    pan_y: float = 0.0
    zoom: float = 0.0
    rotate: float = 0.0
    orbit: float = 0.0


@dataclass(frozen=True)
class Controls:
    """One snapshot of the controls.

    ids: n int64, constant for as long as a point exists. xy: n 2 float32 shares. pinned: n bool, pinned (red) or
    dragged (green). camera: None for no camera. transfer: name of a motion whose tracks steer the video, "" for none.
    origin: n 2 shares, the first position of each point, None where that is xy: a point may have moved before a chunk
    reads it.
    """

    revision: int = 0
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    xy: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    pinned: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    paths: tuple[DrawnPath, ...] = ()
    camera: Camera | None = None
    transfer: str = ""
    origin: np.ndarray | None = None


@dataclass(frozen=True)
class InputSmoothing:
    """Settings of the smoothing of user input.

    smooth_seconds: time constant of the smoothing, 0 for none. max_speed: frame widths a second that a dragged point
    may move, 0 for no limit. release: what happens to a dragged point that is released: "free" (no longer specified:
    the model decides whether the object stays or moves on) or "pin" (fixed at its last position until it is dragged
    again or the stream is reset).
    """

    smooth_seconds: float = 0.08
    max_speed: float = 1.5
    release: str = "free"

    def problems(self) -> list[str]:
        """Returns every inconsistency, as 'hand.field: what is wrong'."""
        out = []
        for name, value in (("smooth_seconds", self.smooth_seconds), ("max_speed", self.max_speed)):
            if not 0 <= value < np.inf:
                out.append(f"hand.{name}: {value} must be a number of at least 0")
        if self.release not in RELEASES:
            out.append(f"hand.release: {self.release!r} is not one of {', '.join(RELEASES)}")
        return out
