"""Steering: what a user's hands ask for, as tracks for the next chunk of a stream.

A snapshot of the controls (`Controls`) is complete: the newest wins, none depends on an earlier one. `Steering` remembers where
every point was, so that a chunk's tracks begin where the last chunk's ended.

Legend: T pixel frames, n tracks. Shares: 0..1 of the frame's width and height, origin top-left. xy_px: float32 clip pixels.
Source: MotionStream, section on interactive use (green: dragged, red: pinned, blue: pre-drawn paths).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Path:
    """A drawn path that moves a group. members: n 2 shares, where its points start. line: m 2 shares, the path's corners; every
    member moves by line(t) - line(0), at constant speed over `seconds`, and then stays. It starts with the first chunk that sees it."""

    id: int
    members: np.ndarray
    line: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Camera:
    """Speeds of a camera before a plane (or a depth map): pan_x, pan_y frame widths and heights a second (the scene's content moves by
    so much, right and down), zoom in doublings a second, rotate in degrees a second (clockwise as seen), orbit in degrees a second (about the
    vertical axis through the middle of the scene)."""

    pan_x: float = 0.0
    pan_y: float = 0.0
    zoom: float = 0.0
    rotate: float = 0.0
    orbit: float = 0.0


@dataclass(frozen=True)
class Controls:
    """One snapshot. ids: n int64, a point's name for as long as it lives. xy: n 2 float32 shares. pinned: n bool (red), else dragged
    (green). camera None: no camera. transfer: name of a motion whose tracks drive the picture, "" for none."""

    revision: int = 0
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    xy: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    pinned: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    paths: tuple[Path, ...] = ()
    camera: Camera | None = None
    transfer: str = ""


@dataclass(frozen=True)
class Hand:
    """What is done to imperfect input. smooth_seconds: time constant of the smoothing, 0 for none. max_speed: frame widths a second a
    dragged point may move, 0 for no limit. release: what a point does when it is let go: "free" (no longer specified: the object
    stays or goes on as the model thinks) or "pin" (stays specified where it is)."""

    smooth_seconds: float = 0.08
    max_speed: float = 1.5
    release: str = "free"
