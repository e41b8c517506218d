"""Chooses the motions of rendered scenes: paths of objects and of the camera as affine maps from frame 0.

Legend: s in [0, 1] runs over the clip. Lengths are clip pixels, origin top-left, pixel centres at +0.5; angles radians.
Every map is the identity at s = 0, so that all motions of a scene share their first frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROFILES = ("linear", "ease", "late", "return")
KINDS = ("drag", "drag_all", "camera", "combo", "spin", "static")
KIND_WEIGHTS = (0.18, 0.22, 0.24, 0.26, 0.06, 0.04)


@dataclass(frozen=True)
class Path:
    """Describes the motion of an object or the camera: a shift to `end`, bent sideways by `bend` of its length, with
    rotation and
    scaling on the way."""

    end: tuple[float, float] = (0.0, 0.0)
    bend: float = 0.0
    angle: float = 0.0
    log_scale: float = 0.0
    profile: str = "ease"

    @property
    def moves(self) -> bool:
        return any((*self.end, self.angle, self.log_scale))


@dataclass(frozen=True)
class Motion:
    """Describes the motion in one clip of a scene. objects: one Path for each object, far to near."""

    kind: str
    objects: tuple[Path, ...]
    camera: Path


def progress(profile: str, s: float) -> float:
    """Returns how far along its path an object is at s: 0 at s = 0. "return" comes back to the start."""
    if profile == "linear":
        return s
    if profile == "late":
        return s * s
    if profile == "return":
        return math.sin(math.pi * s)
    return s * s * (3 - 2 * s)


def affine(path: Path, s: float, centre: tuple[float, float], shift_gain: float = 1.0) -> np.ndarray:
    """Returns the 3 x 3 map from positions at frame 0 to positions at s: rotation and scaling about `centre`, then the
    shift."""
    p = progress(path.profile, s)
    dx, dy = (shift_gain * e for e in path.end)
    side = path.bend * math.sin(math.pi * p)
    x, y = p * dx - side * dy, p * dy + side * dx
    scale = math.exp(path.log_scale * p)
    c, n = scale * math.cos(path.angle * p), scale * math.sin(path.angle * p)
    cx, cy = centre
    return np.array([[c, -n, cx + x - c * cx + n * cy], [n, c, cy + y - n * cx - c * cy], [0, 0, 1]])


def author(
    centres: Sequence[tuple[float, float]], height: int, width: int, count: int, generator: np.random.Generator
) -> list[Motion]:
    """Draws `count` different motions for objects at these centres; the first always drags one object far."""
    kinds = ["drag", *generator.choice(KINDS, size=count - 1, p=KIND_WEIGHTS).tolist()]
    stills = [i for i, kind in enumerate(kinds) if kind == "static"]
    for i in stills[1:]:
        kinds[i] = "drag"
    main = int(generator.integers(len(centres)))
    ends: list[tuple[float, float]] = []
    cameras: list[tuple[float, float]] = []
    motions = []
    for kind in kinds:
        moving = {"drag": {main}, "combo": {main}, "spin": {main}, "drag_all": set(range(len(centres)))}.get(
            kind, set()
        )
        paths = [Path()] * len(centres)
        for i in sorted(moving):
            earlier = ends if i == main else []
            paths[i] = _object_path(kind, centres[i], height, width, earlier, generator)
            earlier.append(paths[i].end)
        camera = Path()
        if kind in ("camera", "combo"):
            camera = _camera_path(height, width, cameras, generator)
            cameras.append(camera.end)
        motions.append(Motion(kind, tuple(paths), camera))
    return motions


def _furthest(
    candidates: np.ndarray, earlier: Sequence[tuple[float, float]], generator: np.random.Generator
) -> tuple[float, float]:
    """Returns the candidate (of k 2) furthest from earlier shifts, so that motions from one first frame differ."""
    if not earlier:
        chosen = candidates[generator.integers(len(candidates))]
    else:
        gaps = np.linalg.norm(candidates[:, None] - np.array(earlier)[None], axis=-1).min(axis=1)
        chosen = candidates[int(gaps.argmax())]
    return float(chosen[0]), float(chosen[1])


def _object_path(
    kind: str,
    centre: tuple[float, float],
    height: int,
    width: int,
    earlier: Sequence[tuple[float, float]],
    generator: np.random.Generator,
) -> Path:
    """Draws a drag of 0.15 to 0.55 frame widths that ends in or near the frame, or a spin: a small shift and a large
    rotation."""
    if kind == "spin":
        sign = generator.choice([-1.0, 1.0])
        shift = generator.uniform(-0.08, 0.08, 2) * width
        angle, scale = sign * generator.uniform(0.6, 1.8), generator.uniform(-0.4, 0.45)
        return Path((float(shift[0]), float(shift[1])), 0.0, float(angle), float(scale), _profile(generator))
    targets = generator.uniform([-0.05, -0.05], [1.05, 1.05], (64, 2)) * [width, height]
    shifts = targets - np.array(centre)
    length = np.linalg.norm(shifts, axis=1)
    fitting = shifts[(length >= 0.15 * width) & (length <= 0.55 * width)]
    if not len(fitting):
        fitting = shifts * (0.35 * width / np.maximum(length, 1.0))[:, None]
    end = _furthest(fitting[:8], earlier, generator)
    bend = float(generator.uniform(-0.5, 0.5)) if generator.random() < 0.5 else 0.0
    angle = float(generator.uniform(-0.8, 0.8)) if generator.random() < 0.35 else 0.0
    scale = float(generator.uniform(-0.35, 0.35)) if generator.random() < 0.35 else 0.0
    return Path(end, bend, angle, scale, _profile(generator))


def _camera_path(
    height: int, width: int, earlier: Sequence[tuple[float, float]], generator: np.random.Generator
) -> Path:
    """Draws a pan, zoom, roll or several. The path is that of the picture: panning right shifts it left."""
    has = generator.random(3) < (0.75, 0.45, 0.25)
    if not has.any():
        has[0] = True
    end = (0.0, 0.0)
    if has[0]:
        turns = generator.uniform(0, 2 * math.pi, 8)
        reach = generator.uniform(0.1, 0.3, 8)
        shifts = np.stack([np.cos(turns) * reach * width, np.sin(turns) * reach * min(width, 1.4 * height)], axis=1)
        end = _furthest(shifts, earlier, generator)
    scale = float(generator.uniform(0.12, 0.4) * generator.choice([-0.6, 1.0])) if has[1] else 0.0
    angle = float(generator.uniform(0.06, 0.25) * generator.choice([-1, 1])) if has[2] else 0.0
    return Path(end, 0.0, angle, scale, str(generator.choice(PROFILES[:3])))


def _profile(generator: np.random.Generator) -> str:
    return str(generator.choice(PROFILES, p=(0.35, 0.35, 0.15, 0.15)))


def heading(shift: tuple[float, float]) -> str:
    """Names the main direction of a shift in the picture."""
    dx, dy = shift
    if abs(dx) >= abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def describe(motion: Motion, names: Sequence[str]) -> str:
    """Describes the motion: "the red oval moves left while the camera pans right"."""
    parts = []
    for name, path in zip(names, motion.objects, strict=True):
        if motion.kind == "spin" and path.moves:
            parts.append(f"the {name} turns {'clockwise' if path.angle > 0 else 'anticlockwise'}")
        elif path.moves:
            back = " and back" if path.profile == "return" else ""
            parts.append(f"the {name} moves {heading(path.end)}{back}")
    camera = []
    if any(motion.camera.end):
        opposite = (-motion.camera.end[0], -motion.camera.end[1])
        camera.append(f"pans {heading(opposite)}")
    if motion.camera.log_scale:
        camera.append("zooms in" if motion.camera.log_scale > 0 else "zooms out")
    if motion.camera.angle:
        camera.append("rolls")
    words = ", ".join(parts)
    if camera:
        words += (" while " if words else "") + "the camera " + " and ".join(camera)
    return words or "nothing moves"
