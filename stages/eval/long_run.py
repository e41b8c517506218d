"""Stage LONG_RUN (once): rolls the student out far beyond its training horizon and compares it with other caches.

It also measures whether latency grows. The given motion is the clip's own, played forward and backward endlessly, so
the target is the real clip played in the same way. Figures are taken over windows of one horizon. EPE is measured per
window: the tracker is queried again at each window's first frame, at the positions of the targets there. EPE thus shows
whether motion is still followed, not where a point ended up.

Legend: T frames, n tracks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msmodel.cache import AbsoluteCache
from msmodel.causal import CausalDiT
from msmodel.config import StudentConfig
from msmodel.points import ping_pong
from stages.contracts import Context, Resources, Stage
from stages.eval import perceptual
from stages.eval.config import LongRunRun, read_setting, setting_name
from stages.eval.drift import Trend, picture_drift, trend, windows
from stages.eval.epe import Tracker, finite_mean, retrack
from stages.eval.generate import student_on, vae_on
from stages.eval.items import CLIP_KINDS, EvalClip, Figures, Selection, folder_file, read_clip, read_tracks, seeded
from stages.eval.measure import retracker
from stages.eval.streaming import NoDecoder, chunks_of, clip_stream, filled_after, frames_in
from stages.eval.timing import latency, latency_slope
from stages.records import Checkpoint


@dataclass(frozen=True)
class LongRunInputs:
    """Inputs of stage LONG_RUN: the selected clips and the student."""

    selection: Selection
    student: Checkpoint


def run(cfg: LongRunRun, inputs: LongRunInputs, ctx: Context) -> Figures:
    """Writes long_run.json {frames, latency slope, drift by setting} and long_run.npz {setting: T h w 3 uint8}.

    The videos are of one clip.
    """
    student = student_on(inputs.student, ctx.device, ctx.dtype)
    runs = settings(student.cfg.student, cfg.long_run.other_caches)
    clips = some_clips(inputs.selection, cfg.long_run.clips)
    chunks = cfg.long_run.horizons * cfg.model.chunks
    drift: dict[str, list[dict[str, Trend]]] = {name: [] for name in (*runs, "real")}
    shown: dict[str, np.ndarray] = {}
    with ctx.progress("long runs", len(clips) * len(runs)) as progress:
        for clip in clips:
            target = back_and_forth(clip, frames_in(chunks, cfg.model))
            videos = {"real": target}
            for name, (setting, absolute) in runs.items():
                videos[name] = long_video(cfg, with_positions(student, absolute), setting, clip, chunks, ctx)
                progress.advance(note=name)
            for name, video in videos.items():
                drift[name].append(clip_drift(cfg, clip, video, target, ctx))
            shown = shown or videos
    out = {
        "frames": frames_in(chunks, cfg.model),
        "horizon_multiple": cfg.long_run.horizons,
        "window_frames": cfg.model.clip.frames,
        "clips": [c.clip_id for c in clips],
        "drift": {name: averaged(parts, cfg.model.clip.frames) for name, parts in drift.items()},
    }
    out |= latency_growth(cfg, student, clips[0], ctx)
    file, videos_file = (folder_file(ctx.workdir, name) for name in ("long_run.json", "long_run.npz"))
    np.savez_compressed(videos_file, **shown)  # type: ignore[arg-type]
    Path(file).write_text(json.dumps(out, indent=1))
    return Figures("long_run", file, videos_file)


def settings(own: StudentConfig, alongside: Sequence[str]) -> dict[str, tuple[StudentConfig, bool]]:
    """Returns by name the student's own setting and the others, each with whether its positions are absolute."""
    others = [f"c{own.chunk}{cache}" for cache in alongside]
    return {setting_name(own): (own, False)} | {name: read_setting(name, own) for name in others}


def some_clips(selection: Selection, count: int) -> list[EvalClip]:
    """Returns the first `count` selected clips, alternating between kinds."""
    by_kind = [[c for c in selection.clips if c.kind == kind and not c.spare] for kind in CLIP_KINDS]
    longest = max(map(len, by_kind), default=0)
    return [group[i] for i in range(longest) for group in by_kind if i < len(group)][:count]


def back_and_forth(clip: EvalClip, frames: int) -> np.ndarray:
    """Returns the real clip played forward and backward: T h w 3 uint8 of `frames` frames."""
    target = read_clip(clip)["frames"]
    return target[ping_pong(len(target), frames)]


def with_positions(student: CausalDiT, absolute: bool) -> CausalDiT:
    """Returns the student itself, or a copy that shares its weights and whose caches use absolute positions."""
    if not absolute:
        return student
    other = copy.copy(student)
    other.cache_type = AbsoluteCache
    return other


def long_video(
    cfg: LongRunRun, student: CausalDiT, setting: StudentConfig, clip: EvalClip, chunks: int, ctx: Context
) -> np.ndarray:
    """Returns a rollout T h w 3 uint8, decoded chunk by chunk. All settings use the same noise."""
    stream = clip_stream(student, clip, cfg.model, ctx.seed, ctx.device)
    session = stream.session(vae_on(cfg.model.vae, ctx.device), seeded(ctx.seed, "long run", clip.clip_id), setting)
    return np.concatenate([chunk.frames.numpy() for chunk in chunks_of(session, chunks)])


def clip_drift(
    cfg: LongRunRun, clip: EvalClip, video: np.ndarray, target: np.ndarray, ctx: Context
) -> dict[str, Trend]:
    """Returns epe, perceptual (against the target), lab_shift, saturation, sharpness over windows of one horizon."""
    size = cfg.model.clip.frames
    xy_px, visible = read_tracks(clip.track_file("tracks"))
    at = ping_pong(len(xy_px), len(video))
    tracker = retracker(cfg.measure, video.shape[1], ctx)
    net = perceptual.load_efficientnet().to(ctx.device)
    every = cfg.measure.perceptual_every
    errors = window_epe(cfg, video, xy_px[at], visible[at], tracker)
    away = [
        perceptual.distance(net, a, b, every) for a, b in zip(windows(video, size), windows(target, size), strict=True)
    ]
    return {"epe": trend(errors, size), "perceptual": trend(away, size), **picture_drift(video, size)}


def window_epe(
    cfg: LongRunRun, video: np.ndarray, xy_px: np.ndarray, visible: np.ndarray, tracker: Tracker
) -> list[float]:
    """Returns the EPE of each window in pixels of the raster; NaN if no track is visible at a window's start."""
    size, m = cfg.model.clip.frames, cfg.measure
    parts = zip(windows(video, size), windows(xy_px, size), windows(visible, size), strict=True)
    return [retrack(frames, xy, seen, m.raster, tracker, m.moving_px).epe for frames, xy, seen in parts]


def averaged(parts: Iterable[dict[str, Trend]], size: int) -> dict[str, Any]:
    """Returns for each figure the mean over clips in each window, and the trend of that mean."""
    parts = list(parts)
    out: dict[str, Any] = {}
    for name in parts[0]:
        columns = zip(*(p[name].values for p in parts), strict=True)
        out[name] = asdict(trend([finite_mean(column) for column in columns], size))
    return out


def latency_growth(cfg: LongRunRun, student: CausalDiT, clip: EvalClip, ctx: Context) -> dict[str, Any]:
    """Returns the latency of long_run.chunks further chunks, DiT only, and its slope relative to a young stream.

    A machine's speed varies by more than the growth to be measured. So each chunk of the growing stream is paired with
    a chunk of a fork of the stream as it was after the warm-up, and the two alternate in which goes first: the fork
    does the same work at a constant age. The slope of the ratio of the two must not differ from zero. The slope of the
    seconds alone is reported too.
    """
    stream = clip_stream(student, clip, cfg.model, ctx.seed, ctx.device)
    session = stream.session(NoDecoder(), seeded(ctx.seed, "latency"))
    chunks_of(session, max(cfg.long_run.warmup_chunks, filled_after(student.cfg.student)))
    young = session.fork()
    seconds: list[float] = []
    alongside: list[float] = []
    for index in range(cfg.long_run.chunks):
        turns = [(session, seconds), (young.fork(), alongside)]
        for one, taken in turns if index % 2 else reversed(turns):
            taken.append(one.next_chunk().seconds_dit)
    ratios = [a / b for a, b in zip(seconds, alongside, strict=True)]
    slope, alone = latency_slope(ratios), latency_slope(seconds)
    return {
        "latency_slope_pct_per_100_chunks": slope.pct_per_100_chunks,
        "latency_slope_ci": [slope.low, slope.high],
        "latency_constant": slope.constant,
        "latency_slope_alone_pct_per_100_chunks": alone.pct_per_100_chunks,
        "latency_slope_alone_ci": [alone.low, alone.high],
        "latency_chunks": len(seconds),
        "latency_ms": asdict(latency(seconds)),
        "chunk_seconds": seconds,
        "chunk_seconds_alongside": alongside,
    }


LONG_RUN = Stage("eval_long_run", version=4, how="once", run=run, resources=Resources(cpus=2, threads=2))
