"""Stage RENDER (per item): draws scenes with several motions from one first frame, and exact tracks of points on surfaces.

Legend: T frames, n points, h w frame size. Maps are 3 x 3 affine, frame 0 -> frame t, in clip pixels (centres at +0.5).
Frames are drawn at `supersampling` times the size, then averaged down.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from msmodel.config import ClipConfig
from stages.contracts import Context, Resources, Stage
from stages.data.files import save_frames, save_npz
from stages.data.motion import Motion, affine, author, describe
from stages.data.scene import Scene, SceneItem, SceneLayer, build_scene
from stages.records import Clip
from stages.trackers.base import inside, uniform_grid
from stages.trackers.ground_truth import NAME as GROUND_TRUTH

MOTION_IN_CAPTION = 0.5  # share of clips whose caption describes the motion: if all did, text could replace tracks
EDGE_MARGIN_PX = 1.0  # points closer than this to an outline would mix two surfaces


@dataclass(frozen=True)
class RenderRun:
    """Settings of RENDER, as in DataConfig."""

    clip: ClipConfig
    motions: int
    supersampling: int
    grid_rows: int
    grid_cols: int
    object_points: int


def run(cfg: RenderRun, item: SceneItem, ctx: Context) -> tuple[Clip, ...]:
    """Renders one clip of a scene for each motion, with tracks.npz and recipe.json next to the frames."""
    generator = np.random.default_rng(item.seed)
    scene = build_scene(item, cfg.clip, cfg.supersampling, generator)
    points = place_points(scene, cfg, generator)
    centres = [o.shape.centre for o in scene.objects if o.shape]
    motions = author(centres, cfg.clip.height, cfg.clip.width, cfg.motions, generator)
    return tuple(_write(cfg, scene, points, m, i, generator, ctx.workdir) for i, m in enumerate(motions))


def place_points(scene: Scene, cfg: RenderRun, generator: np.random.Generator) -> np.ndarray:
    """Returns query points on frame 0, n 2: a uniform grid, and random points on the visible part of each object.

    Points close to an outline are left out.
    """
    clip = cfg.clip
    groups = [uniform_grid(clip.height, clip.width, cfg.grid_rows, cfg.grid_cols)]
    for i, layer in enumerate(scene.objects, start=1):
        assert layer.shape is not None
        reach = 1.6 * layer.shape.radius
        xy = layer.shape.centre + generator.uniform(-reach, reach, (12 * cfg.object_points, 2))
        on_it = inside(xy, clip.height, clip.width) & (top_layer(scene, xy) == i)
        groups.append(xy[on_it & _clear(scene, xy)][: cfg.object_points].astype(np.float32))
    xy = np.concatenate(groups)
    return xy[_clear(scene, xy)]


def _clear(scene: Scene, xy: np.ndarray) -> np.ndarray:
    """Returns whether points (n 2) keep their distance from every outline on frame 0: n bool."""
    levels = [np.abs(o.shape.level(xy)) for o in scene.objects if o.shape]
    return np.min(levels, axis=0) >= EDGE_MARGIN_PX


def top_layer(scene: Scene, xy: np.ndarray) -> np.ndarray:
    """Returns the index of the nearest layer at each point of frame 0: n int, 0 is the background."""
    top = np.zeros(len(xy), int)
    for i, layer in enumerate(scene.layers):
        if layer.shape:
            top[layer.shape.level(xy) > 0] = i
    return top


def layer_maps(scene: Scene, motion: Motion, clip: ClipConfig) -> np.ndarray:
    """Returns the map from frame 0 to each frame for each layer: T layers 3 3, the identity at frame 0."""
    middle = (clip.width / 2, clip.height / 2)
    maps = np.empty((clip.frames, len(scene.layers), 3, 3))
    for t in range(clip.frames):
        s = t / max(clip.frames - 1, 1)
        for i, layer in enumerate(scene.layers):
            own = np.eye(3)
            if layer.shape:
                own = affine(motion.objects[i - 1], s, layer.shape.centre)
            maps[t, i] = affine(motion.camera, s, middle, layer.depth_gain) @ own
    return maps


def exact_tracks(scene: Scene, maps: np.ndarray, points: np.ndarray, clip: ClipConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns xy_px T n 2 float32 and visible T n: in the frame and under no nearer layer."""
    owner = top_layer(scene, points)
    xy = apply(maps[:, owner], points[None])
    visible = inside(xy, clip.height, clip.width)
    for i, layer in enumerate(scene.layers):
        if layer.shape:
            back = apply(np.linalg.inv(maps[:, i])[:, None], xy)
            visible &= ~((owner < i) & (layer.shape.level(back) > 0))
    return xy.astype(np.float32), visible


def apply(maps: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Applies affine maps (... 3 3) to points (... 2)."""
    return np.einsum("...ij,...j->...i", maps[..., :2, :2], xy) + maps[..., :2, 2]


def draw(scene: Scene, maps: np.ndarray, clip: ClipConfig, supersampling: int) -> np.ndarray:
    """Draws the frames of a clip, T h w 3 uint8. maps: T layers 3 3."""
    size = (clip.width * supersampling, clip.height * supersampling)
    frames = []
    for per_layer in maps:
        canvas = _warp(scene.layers[0], per_layer[0], size, supersampling, cv2.BORDER_REFLECT_101).astype(np.float32)
        for layer, matrix in zip(scene.objects, per_layer[1:], strict=True):
            rgba = _warp(layer, matrix, size, supersampling, cv2.BORDER_CONSTANT)
            alpha = rgba[..., 3:].astype(np.float32) / 255
            canvas += alpha * (rgba[..., :3] - canvas)
        small = cv2.resize(canvas, (clip.width, clip.height), interpolation=cv2.INTER_AREA)
        frames.append(np.clip(np.round(small), 0, 255).astype(np.uint8))
    return np.stack(frames)


def _warp(layer: SceneLayer, matrix: np.ndarray, size: tuple[int, int], ss: int, border: int) -> np.ndarray:
    """Warps a layer's texture to one frame, enlarged. OpenCV's pixel centres lie at whole numbers, hence the halves."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    enlarge = np.diag([ss, ss, 1.0])
    full = np.linalg.inv(half) @ enlarge @ matrix @ layer.to_frame @ half
    return cv2.warpAffine(layer.texture, full[:2], size, flags=cv2.INTER_LINEAR, borderMode=border)


def _write(
    cfg: RenderRun,
    scene: Scene,
    points: np.ndarray,
    motion: Motion,
    number: int,
    generator: np.random.Generator,
    workdir: Path,
) -> Clip:
    item = scene.item
    clip_id = f"{item.scene_id}-{number:02d}-{motion.kind.replace('_', '-')}"
    folder = workdir / clip_id
    maps = layer_maps(scene, motion, cfg.clip)
    save_frames(folder, draw(scene, maps, cfg.clip, cfg.supersampling), cfg.clip.fps)
    xy, visible = exact_tracks(scene, maps, points, cfg.clip)
    save_npz(folder / "tracks.npz", {"xy_px": xy, "visible": visible})
    words = describe(motion, [o.name for o in scene.objects])
    recipe = {"kind": motion.kind, "words": words, "seed": item.seed, "motion": asdict(motion)}
    (folder / "recipe.json").write_text(json.dumps(recipe, sort_keys=True))
    describes_motion = generator.random() < MOTION_IN_CAPTION
    return Clip(
        clip_id=clip_id,
        folder=str(folder),
        scene=item.scene_id,
        split=item.split,
        kind="rendered",
        caption=f"{scene.caption}, {words}" if describes_motion else scene.caption,
        source="rendered from " + " + ".join(_unique(p.source for p in item.stills)),
        licence=" + ".join(_unique(p.licence for p in item.stills)),
        recipe=motion.kind,
        clip_seconds=cfg.clip.frames / cfg.clip.fps,
        tracker=GROUND_TRUTH,
        tracks=len(points),
    )


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


RENDER = Stage("render", 1, "per_item", run, Resources(cpus=1.0))
