"""Stage TRACK (per item): labels real clips with a point tracker, from a uniform grid; renders keep their exact tracks.

Legend: T frames, n points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from stages.contracts import Context, Resources, Stage
from stages.data.files import inherit, read_clip_frames, save_npz
from stages.records import Clip
from stages.trackers import TRACKERS, Tracker, TrackerConfig, Tracks, shared_tracker, uniform_grid
from stages.trackers.ground_truth import NAME as GROUND_TRUTH
from stages.trackers.ground_truth import read_tracks

MOVING = 0.02  # of the frame's width: a point with a longer path counts as moving


@dataclass(frozen=True)
class TrackRun:
    """Settings of TRACK: the point tracker and its grid of queries."""

    tracker: TrackerConfig
    grid_rows: int
    grid_cols: int


def run(cfg: TrackRun, item: Sequence[Clip], ctx: Context) -> tuple[Clip, ...]:
    """Adds tracks.npz, and the figures of the tracks, to clips of one scene or video, in folders of this stage."""
    return tuple(_one(cfg, clip, ctx) for clip in item)


def _one(cfg: TrackRun, clip: Clip, ctx: Context) -> Clip:
    out = inherit(clip, ctx.workdir)
    frames = read_clip_frames(out)
    if clip.tracker == GROUND_TRUTH:
        xy, visible = read_tracks(out.folder)
        found, name = Tracks(xy, visible, visible.astype(np.float32)), GROUND_TRUTH
    else:
        tracker = shared_tracker(cfg.tracker, str(ctx.device))
        grid = uniform_grid(frames.shape[1], frames.shape[2], cfg.grid_rows, cfg.grid_cols)
        found, name = tracker.track(frames, grid), tracker_text(tracker)
        found = replace(found, xy_px=held(found.xy_px, found.visible))
        save_npz(Path(out.folder) / "tracks.npz", stored(found))
    figures = track_figures(found, frames.shape[2])
    return replace(
        out,
        tracker=name,
        tracks=found.xy_px.shape[1],
        visible_share=figures["visible_share"],
        moving_px=figures["moving_px"],
        quality={**out.quality, **figures},
    )


def tracker_text(tracker: Tracker) -> str:
    """Describes a point tracker: name, version, licence and thresholds. Labels with the same text were made the same way."""
    thresholds = [f"{name}={value:g}" for name, value in sorted(tracker.thresholds.items())]
    return ", ".join([f"{tracker.name} {tracker.version} ({tracker.licence})", *thresholds])


def stored(found: Tracks) -> dict[str, np.ndarray]:
    """Returns the arrays of tracks.npz. confidence (float16) is kept only if it says more than `visible`."""
    arrays = {"xy_px": found.xy_px, "visible": found.visible}
    if ((found.confidence > 0) & (found.confidence < 1)).any():
        arrays["confidence"] = found.confidence.astype(np.float16)
    return arrays


def track_figures(found: Tracks, width: int) -> dict[str, float]:
    """Returns the figures that gates judge and the catalogue shows, by name; an unknown figure is left out.

    visible_share: of tracks and frames. moving_px: see path_px. moving_share: of the tracks visible at least twice, those whose
    path while visible is longer than MOVING of the frame's width. confidence: mean over visible points. back_px: see Tracks.
    """
    visible = found.visible
    twice = visible.sum(axis=0) >= 2
    moving = path_lengths_px(found.xy_px, visible)[twice] > MOVING * width
    figures = {
        "visible_share": float(visible.mean()),
        "moving_px": path_px(found.xy_px, visible),
        "moving_share": float(moving.mean()) if twice.any() else 0.0,
    }
    if visible.any():
        figures["confidence"] = float(found.confidence[visible].mean())
    if not math.isnan(found.back_px):
        figures["back_px"] = found.back_px
    return figures


def held(xy_px: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Replaces positions of invisible points by where they were last visible, so that a label holds no guess: T n 2."""
    last = np.maximum.accumulate(np.where(visible, np.arange(len(xy_px))[:, None], 0), axis=0)
    return np.take_along_axis(xy_px, last[..., None], axis=0)


def path_px(xy_px: np.ndarray, visible: np.ndarray) -> float:
    """Returns the median path length of tracks while visible, px. Tracks never visible in two frames in a row are left out."""
    seen = (visible[1:] & visible[:-1]).any(axis=0)
    return float(np.median(path_lengths_px(xy_px, visible)[seen])) if seen.any() else 0.0


def path_lengths_px(xy_px: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Returns each track's length over the steps in which it is visible before and after, px: n."""
    steps = np.linalg.norm(np.diff(xy_px, axis=0), axis=-1)
    return (steps * (visible[1:] & visible[:-1])).sum(axis=0)


def group_clips(clips: Iterable[Clip], most: int = 16) -> list[tuple[Clip, ...]]:
    """Groups clips into items for TRACK and ENCODE: those of one scene (or source) and segment, at most `most`, in a fixed
    order.

    An item depends on the clips of its segment alone, so further videos keep the items that exist.
    """
    ordered = sorted(clips, key=lambda c: (c.scene, c.segment, c.clip_id))
    groups = []
    for _, segment in groupby(ordered, key=lambda c: (c.scene, c.segment)):
        members = list(segment)
        groups += [tuple(members[i : i + most]) for i in range(0, len(members), most)]
    return groups


TRACK = Stage("track", 3, "per_item", run, Resources(cpus=1.0, gpus=1.0))


def track_stage(cfg: TrackerConfig) -> Stage:
    """Returns TRACK for this point tracker: one without a neural network asks for no GPU, and labels as in version 2."""
    return TRACK if TRACKERS[cfg.name].network else replace(TRACK, version=2, resources=Resources(cpus=1.0))
