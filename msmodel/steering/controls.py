"""What a user's hands ask for: a complete snapshot. The newest wins, none depends on an earlier one.

Legend: n points. Shares: 0..1 of the frame's width and height, x first, origin top-left.
Source: MotionStream, section on interactive use (green: dragged, red: pinned, blue: pre-drawn paths).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

RELEASES = ("free", "pin")


@dataclass(frozen=True)
class DrawnPath:
    """A drawn path that moves a group. members: n 2 shares, where its points start. line: m 2 shares, the path's
    corners; every member moves by line(t) - line(0), at constant speed over `seconds`, and then stays. It starts with
    the first chunk that sees it."""

    id: int
    members: np.ndarray
    line: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Camera:
    """Speeds of a camera before a plane (or a depth map): pan_x, pan_y frame widths and heights a second (the scene's
    content moves by so much, right and down), zoom in doublings a second, rotate in degrees a second (the content
    turns clockwise as seen), orbit in degrees a second (about the vertical axis through the middle of the scene; the
    camera goes to the right). All zero: the scene is held still."""

    pan_x: float = 0.0
    pan_y: float = 0.0
    zoom: float = 0.0
    rotate: float = 0.0
    orbit: float = 0.0


@dataclass(frozen=True)
class Controls:
    """One snapshot. ids: n int64, a point's name for as long as it lives. xy: n 2 float32 shares. pinned: n bool
    (red), else dragged (green). camera None: no camera. transfer: name of a motion whose tracks drive the picture, ""
    for none. origin: n 2 shares, where each point was first heard of, None where that is xy: the hand may have moved
    before a chunk saw the point."""

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
    """What is done to imperfect input. smooth_seconds: time constant of the smoothing, 0 for none. max_speed: frame
    widths a second a dragged point may move, 0 for no limit. release: what a dragged point does when it is let go:
    "free" (no longer specified: the object stays or goes on as the model thinks) or "pin" (stays specified where it
    was let go, until it is dragged again or the stream is reset)."""

    smooth_seconds: float = 0.08
    max_speed: float = 1.5
    release: str = "free"

    def problems(self) -> list[str]:
        """Every inconsistency, as 'hand.field: what is wrong'."""
        out = []
        for name, value in (("smooth_seconds", self.smooth_seconds), ("max_speed", self.max_speed)):
            if not 0 <= value < np.inf:
                out.append(f"hand.{name}: {value} must be a number of at least 0")
        if self.release not in RELEASES:
            out.append(f"hand.release: {self.release!r} is not one of {', '.join(RELEASES)}")
        return out
