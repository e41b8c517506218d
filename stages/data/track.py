"""Track: points through every clip. Renders keep their exact tracks; real clips are labelled from a uniform grid.

Legend: T frames, n points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np

from stages.data.files import inherit, read_clip_frames, save_npz
from stages.records import Clip
from stages.spec import Context, Resources, Stage
from stages.trackers import Tracker, TrackerConfig, make_tracker, uniform_grid
from stages.trackers.ground_truth import NAME as GROUND_TRUTH
from stages.trackers.ground_truth import read_tracks


@dataclass(frozen=True)
class TrackRun:
    tracker: TrackerConfig
    grid_rows: int
    grid_cols: int


def run(cfg: TrackRun, item: Sequence[Clip], ctx: Context) -> tuple[Clip, ...]:
    """Clips of one scene or video -> the same, in folders of this stage, with tracks.npz and figures about it."""
    return tuple(_one(cfg, clip, ctx.workdir) for clip in item)


def _one(cfg: TrackRun, clip: Clip, workdir: Path) -> Clip:
    out = inherit(clip, workdir)
    if clip.tracker == GROUND_TRUTH:
        xy, visible = read_tracks(out.folder)
        name = GROUND_TRUTH
    else:
        tracker = _tracker(cfg.tracker)
        frames = read_clip_frames(out)
        grid = uniform_grid(frames.shape[1], frames.shape[2], cfg.grid_rows, cfg.grid_cols)
        found = tracker.track(frames, grid)
        xy, visible = held(found.xy_px, found.visible), found.visible
        save_npz(Path(out.folder) / "tracks.npz", {"xy_px": xy, "visible": visible})
        name = f"{tracker.name} {tracker.version} ({tracker.licence})"
    return replace(
        out,
        tracker=name,
        tracks=xy.shape[1],
        visible_share=float(visible.mean()),
        moving_px=path_px(xy, visible),
    )


def held(xy_px: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Positions with those of invisible points replaced by where the point was seen last: a label holds no guess. T n 2."""
    last = np.maximum.accumulate(np.where(visible, np.arange(len(xy_px))[:, None], 0), axis=0)
    return np.take_along_axis(xy_px, last[..., None], axis=0)


def path_px(xy_px: np.ndarray, visible: np.ndarray) -> float:
    """Median over tracks of the length of the path while visible, px. Tracks never seen twice in a row are left out."""
    both = visible[1:] & visible[:-1]
    steps = np.linalg.norm(np.diff(xy_px, axis=0), axis=-1) * both
    seen = both.any(axis=0)
    return float(np.median(steps.sum(axis=0)[seen])) if seen.any() else 0.0


@lru_cache(maxsize=2)
def _tracker(cfg: TrackerConfig) -> Tracker:
    return make_tracker(cfg)


def group_clips(clips: Iterable[Clip], most: int = 16) -> list[tuple[Clip, ...]]:
    """Items for TRACK and ENCODE: the clips of one scene (or source), at most `most`, in a fixed order."""
    ordered = sorted(clips, key=lambda c: (c.scene, c.clip_id))
    groups = []
    for _, scene in groupby(ordered, key=lambda c: c.scene):
        members = list(scene)
        groups += [tuple(members[i : i + most]) for i in range(0, len(members), most)]
    return groups


TRACK = Stage("track", 1, "per_item", run, Resources(cpus=1.0))
