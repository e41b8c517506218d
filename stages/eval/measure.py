"""Stage MEASURE (per_item): figures of every clip of one Generated item, and I3D features where sets are compared.

Every variant gets EPE against the tracks that it was given. Only the clip's own tracks have a reference in pixels, so
PSNR, SSIM, perceptual distance and features are taken for "tracks" (and features for "spare").
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.contracts import Context, Resources, Stage
from stages.eval import i3d, perceptual
from stages.eval.config import MeasureConfig, MeasureRun
from stages.eval.epe import Tracker, retrack
from stages.eval.fidelity import psnr, ssim
from stages.eval.items import EvalClip, Generated, Measured, folder_file, read_clip, read_tracks, read_videos
from stages.trackers import TRACKERS, shared_tracker


def run(cfg: MeasureRun, item: Generated, ctx: Context) -> Measured:
    """Writes figures.json ({clip_id: {epe: {...}, psnr, ...}}) and features.npz into ctx.workdir."""
    videos, what = read_videos(item.file), item.item
    tracker = retracker(cfg.measure, videos.shape[2], ctx)
    pictured = what.model != "real" and what.variant == "tracks"
    figures: dict[str, dict[str, Any]] = {}
    for clip, video in zip(what.clips, videos, strict=True):
        xy_px, visible = read_tracks(clip.track_file(what.variant))
        error = retrack(video, xy_px, visible, cfg.measure.raster, tracker, cfg.measure.moving_px)
        figures[clip.clip_id] = {"epe": asdict(error)}
        if pictured:
            figures[clip.clip_id] |= picture_figures(clip, video, cfg.measure, ctx)
    file = folder_file(ctx.workdir, "figures.json")
    Path(file).write_text(json.dumps(figures, indent=1))
    taken = what.model != "vae" and what.variant in ("tracks", "spare")
    return Measured(item.name, what, file, _features(videos, cfg.measure, ctx) if taken else "")


def retracker(cfg: MeasureConfig, clip_height: int, ctx: Context) -> Tracker:
    """Returns the configured tracker as a function of frames at the raster. Its tolerance grows with the enlargement."""
    scale = cfg.raster_height / clip_height
    tracker = shared_tracker(replace(cfg.tracker, max_back_px=cfg.tracker.max_back_px * scale), str(ctx.device))

    def follow(frames: np.ndarray, queries_xy_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = tracker.track(frames, queries_xy_px)
        return found.xy_px, found.visible

    return follow


def picture_figures(clip: EvalClip, video: np.ndarray, cfg: MeasureConfig, ctx: Context) -> dict[str, float]:
    """Returns PSNR and SSIM at clip size and the perceptual distance, all against the real clip and without frame 0."""
    real, net = read_clip(clip)["frames"], perceptual.load_efficientnet().to(ctx.device)
    return {
        "psnr": psnr(video, real),
        "ssim": ssim(video, real),
        "perceptual": perceptual.distance(net, video, real, cfg.perceptual_every),
    }


def _features(videos: Sequence[np.ndarray] | np.ndarray, cfg: MeasureConfig, ctx: Context) -> str:
    """Writes the I3D features of the videos and returns their file."""
    net = i3d.load_i3d().to(ctx.device)
    file = folder_file(ctx.workdir, "features.npz")
    np.savez_compressed(file, i3d=np.stack([i3d.features(net, v, cfg.fvd_frames) for v in videos]))
    return file


MEASURE = Stage("eval_measure", version=3, how="per_item", run=run, resources=Resources(gpus=1.0))


def measure_stage(cfg: MeasureConfig) -> Stage:
    """Returns MEASURE with the share of a GPU that it needs: all of it where the tracker is a neural network."""
    return MEASURE if TRACKERS[cfg.tracker.name].network else replace(MEASURE, resources=Resources(gpus=0.25))
