"""Stage TRACKER_BENCH (once): measures every point tracker that can run here against the exact tracks of rendered clips.

Trackers run in turn on each clip, so that a busy machine slows all alike; all use one thread. Each has its own defaults, on
the same device; one that cannot run is listed with the reason.

Figures are the TAP-Vid metrics (Doersch et al. 2022): delta_avg, occlusion accuracy (OA), average Jaccard (AJ), on a
256 x 256 raster with thresholds of 1, 2, 4, 8, 16 px (strict <).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np
import torch

from stages.contracts import Context, Resources, Stage, StageError
from stages.data.files import read_clip_frames
from stages.records import Clip
from stages.trackers import TRACKERS, Tracker, TrackerConfig, make_tracker
from stages.trackers.ground_truth import NAME as GROUND_TRUTH
from stages.trackers.ground_truth import read_tracks

RASTER = 256.0
THRESHOLDS_PX = (1.0, 2.0, 4.0, 8.0, 16.0)


def tapvid(
    true_xy: np.ndarray, true_visible: np.ndarray, xy: np.ndarray, visible: np.ndarray, height: int, width: int
) -> dict[str, float]:
    """Computes delta_avg, oa and aj in [0, 1] of tracks T n 2, in pixels of a height x width frame, with flags T n.

    Frame 0 is the query (mode `first`) and is left out. NaN if no ground-truth point is ever visible.
    """
    scale = np.array([RASTER / width, RASTER / height])
    distance = np.linalg.norm((xy - true_xy)[1:] * scale, axis=-1)
    truth, seen = true_visible[1:], visible[1:]
    if not truth.any():
        return {"delta_avg": float("nan"), "oa": float("nan"), "aj": float("nan")}
    deltas, jaccards = [], []
    for threshold in THRESHOLDS_PX:
        close = distance < threshold
        hit = (close & truth & seen).sum()
        false = (seen & ~(close & truth)).sum()
        deltas.append((close & truth).sum() / truth.sum())
        jaccards.append(hit / (truth.sum() + false))
    return {"delta_avg": float(np.mean(deltas)), "oa": float((truth == seen).mean()), "aj": float(np.mean(jaccards))}


@dataclass(frozen=True)
class TrackerBenchConfig:
    """Settings of the bench. trackers: those to measure. clips: the most rendered clips, spread over scenes."""

    trackers: tuple[str, ...] = tuple(TRACKERS)
    clips: int = 24

    def problems(self) -> list[str]:
        """Lists every inconsistency as 'tracker_bench.field: what is wrong'."""
        unknown = [name for name in self.trackers if name not in TRACKERS]
        out = [f"tracker_bench.trackers: {name!r} is not one of {', '.join(TRACKERS)}" for name in unknown]
        if not self.trackers:
            out.append(f"tracker_bench.trackers: empty; name at least one of {', '.join(TRACKERS)}")
        if self.clips < 1:
            out.append(f"tracker_bench.clips: {self.clips} must be at least 1")
        return out


@dataclass(frozen=True)
class TrackerBenchRun:
    """Settings of TRACKER_BENCH. tracker: shared by all point trackers; its name is replaced by each of bench.trackers."""

    tracker: TrackerConfig
    bench: TrackerBenchConfig


@dataclass(frozen=True)
class TrackerFigures:
    """Holds one point tracker's means over clips.

    back_px: mean forward-backward error of visible points, clip pixels; NaN if it does not check it. ms: median time a
    clip, one
    thread. reason: why it could not run (its figures are then NaN), else "".
    """

    tracker: str
    version: str
    licence: str
    clips: int
    delta_avg: float
    oa: float
    aj: float
    back_px: float
    ms: float
    reason: str = ""


@dataclass(frozen=True)
class TrackerBench:
    """Names the files of the figures: JSON, and a Markdown table."""

    json: str
    table: str
    figures: tuple[TrackerFigures, ...]


def run(cfg: TrackerBenchRun, item: Sequence[Clip], ctx: Context) -> TrackerBench:
    """Measures on rendered clips; writes trackers.json and trackers.md to ctx.workdir. Raises StageError without such clips."""
    if problems := cfg.bench.problems():
        raise StageError("; ".join(problems))
    clips = _spread([c for c in item if c.tracker == GROUND_TRUTH], cfg.bench.clips)
    if not clips:
        raise StageError("tracker_bench: no rendered clip with exact tracks; let the data stage render some scenes")
    trackers, missing = _load(cfg)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in trackers}
    with one_thread():
        for clip in clips:
            frames, (xy, visible) = read_clip_frames(clip), read_tracks(clip.folder)
            for name, tracker in trackers.items():
                rows[name].append(_measure(tracker, frames, xy, visible, time.perf_counter))
    done = {name: _summary(tracker, rows[name]) for name, tracker in trackers.items()}
    figures = tuple((done | missing)[name] for name in cfg.bench.trackers)
    for one in figures:
        ctx.log(f"{one.tracker}: " + (one.reason or f"delta_avg {one.delta_avg:.3f}, OA {one.oa:.3f}, AJ {one.aj:.3f}"))
    ctx.workdir.mkdir(parents=True, exist_ok=True)
    json_file, table_file = ctx.workdir / "trackers.json", ctx.workdir / "trackers.md"
    settings = {"clips": [c.clip_id for c in clips], "tracker": asdict(cfg.tracker)}
    json_file.write_text(json.dumps(settings | {"figures": [_plain(f) for f in figures]}, indent=1))
    table_file.write_text(table(figures))
    return TrackerBench(str(json_file), str(table_file), figures)


def table(figures: Sequence[TrackerFigures]) -> str:
    """Returns a Markdown table, one row a point tracker."""
    lines = ["| tracker | version | licence | clips | delta_avg | OA | AJ | back_px | ms a clip |"]
    lines.append("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for f in figures:
        head = f"| {f.tracker} | {f.version} | {f.licence} | {f.clips} | "
        if f.reason:
            lines.append(head + "not run: " + f.reason.replace("|", "/").replace("\n", " ") + " | | | | |")
        else:
            back = "–" if np.isnan(f.back_px) else f"{f.back_px:.3f}"
            lines.append(head + f"{f.delta_avg:.3f} | {f.oa:.3f} | {f.aj:.3f} | {back} | {f.ms:.0f} |")
    return "\n".join(lines) + "\n"


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits OpenCV and torch to one thread inside, and restores their numbers of threads."""
    before, torch_before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
        torch.set_num_threads(torch_before)


def _load(cfg: TrackerBenchRun) -> tuple[dict[str, Tracker], dict[str, TrackerFigures]]:
    """Returns the point trackers that can run here by name, and rows for those that cannot."""
    trackers: dict[str, Tracker] = {}
    missing: dict[str, TrackerFigures] = {}
    nan = float("nan")
    for name in cfg.bench.trackers:
        try:
            trackers[name] = make_tracker(replace(cfg.tracker, name=name))
        except ValueError as e:
            missing[name] = TrackerFigures(name, "–", "–", 0, nan, nan, nan, nan, nan, str(e))
    return trackers, missing


def _measure(
    tracker: Tracker, frames: np.ndarray, xy: np.ndarray, visible: np.ndarray, clock: Callable[[], float]
) -> dict[str, float]:
    """Measures one clip, queried on frame 0. Points that are not visible there are left out."""
    seen = visible[0]
    start = clock()
    found = tracker.track(frames, xy[0, seen])
    ms = 1000 * (clock() - start)
    figures = tapvid(xy[:, seen], visible[:, seen], found.xy_px, found.visible, *frames.shape[1:3])
    return figures | {"back_px": found.back_px, "ms": ms}


def _summary(tracker: Tracker, rows: Sequence[dict[str, float]]) -> TrackerFigures:
    delta_avg, oa, aj, back_px = (_mean([r[key] for r in rows]) for key in ("delta_avg", "oa", "aj", "back_px"))
    ms = float(np.median([r["ms"] for r in rows]))
    return TrackerFigures(tracker.name, tracker.version, tracker.licence, len(rows), delta_avg, oa, aj, back_px, ms)


def _mean(values: Sequence[float]) -> float:
    """Returns the mean of the known values: a clip without a visible point has none."""
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _spread(clips: Sequence[Clip], most: int) -> list[Clip]:
    """Chooses at most `most` clips: one of every scene before any scene's second, held-out scenes first."""
    count: dict[str, int] = {}
    ranked = []
    for clip in sorted(clips, key=lambda c: (c.split != "heldout", c.scene, c.clip_id)):
        count[clip.scene] = count.get(clip.scene, -1) + 1
        ranked.append((count[clip.scene], clip))
    return [clip for _, clip in sorted(ranked, key=lambda r: r[0])[:most]]


def _plain(figures: TrackerFigures) -> dict[str, float | int | str | None]:
    """Returns the figures for JSON, which has no NaN: null stands for it."""
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(figures).items()}


TRACKER_BENCH = Stage("tracker_bench", 1, "once", run, Resources(cpus=1.0))
