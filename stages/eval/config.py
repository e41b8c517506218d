"""Settings of the evaluation, one group per stage, so that a change reruns only its stage and those that follow.

Overrides are written `eval.generate.steps=8 eval.select.clips=6`. Defaults are those of the full presets.

A student's setting is named cXsYwZ, for chunk X, sink Y and window Z, with "a" for absolute rotary positions (Self
Forcing's) and kN for N denoising steps: c3s1w1, c3s1w1a, c3s1w1k2. Attention depends on differences of positions only,
so "a" changes nothing without a sink: the paper's Self Forcing row, c3s0w6 with absolute positions, is c3s0w6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from msmodel.config import ModelConfig, StudentConfig
from stages.eval.counterfactual import KINDS, Motions
from stages.eval.fidelity import SSIM_WINDOW
from stages.eval.i3d import MIN_FRAMES
from stages.trackers.base import TrackerConfig
from stages.train.sampling import Guidance

CACHE = re.compile(r"s\d+w\d+a?")  # sink, window and positions alone
SETTING = re.compile(r"c(\d+)s(\d+)w(\d+)(a?)(?:k(\d+))?")


def read_setting(name: str, own: StudentConfig) -> tuple[StudentConfig, bool]:
    """Returns the student's setting of this name, and whether its rotary positions are absolute.

    Raises ValueError if it is no such name, or has no chunk or no step.
    """
    found = SETTING.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no setting: write cXsYwZ, then `a` for absolute positions, then kN for N steps")
    chunk, sink, window, absolute, steps = found.groups()
    chosen = replace(own, chunk=int(chunk), sink=int(sink), window=int(window), steps=int(steps or own.steps))
    if chosen.chunk < 1 or chosen.steps < 1:
        raise ValueError(f"{name!r} has no chunk or no step")
    return chosen, bool(absolute)


def setting_name(cfg: StudentConfig) -> str:
    """Returns the name of a student's chunk, sink and window."""
    return f"c{cfg.chunk}s{cfg.sink}w{cfg.window}"


@dataclass(frozen=True)
class SelectConfig:
    """Settings of stage SELECT: how many held-out clips are evaluated, and with which counterfactual motions."""

    clips: int = 30  # clips of each kind (rendered, real), or all if there are fewer
    counterfactual_clips: int = 8  # clips of each kind for each counterfactual motion
    counterfactuals: tuple[str, ...] = KINDS  # names of the motions that a held-out clip never had
    tracks: int = 2500  # most tracks per clip that a model is given, as many as in training
    motions: Motions = field(default_factory=Motions)
    batch: int = 4  # clips generated at once


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of stage GENERATE. steps: the teacher's Euler steps for figures of quality (report: teacher.steps)."""

    steps: int = 50
    guidance: Guidance = field(default_factory=Guidance)


@dataclass(frozen=True)
class MeasureConfig:
    """Settings of stage MEASURE: the raster of EPE (the paper's 832x480), the tracker, and the feature extractors."""

    raster_height: int = 480  # rows of the raster that EPE is measured on
    raster_width: int = 832  # columns of that raster
    tracker: TrackerConfig = field(default_factory=TrackerConfig)  # its max_back_px is in clip pixels
    moving_px: float = 4.0  # raster pixels; a track that moves at least this far counts as moving
    fvd_frames: int = 16  # frames per clip given to I3D, evenly spread
    perceptual_every: int = 1  # the perceptual distance uses every N-th frame

    @property
    def raster(self) -> tuple[int, int]:
        """Returns (height, width) of the raster in pixels."""
        return self.raster_height, self.raster_width


@dataclass(frozen=True)
class SpeedConfig:
    """Settings of stage SPEED. The teacher is timed as in the paper (50 steps of joint guidance: 150 evaluations)."""

    teacher_steps: int = 50  # Euler steps of the timed teacher
    teacher_rollouts: int = 1  # clips that the teacher is timed on
    chunks: int = 60  # timed chunks of the student, at least
    warmup_rollouts: int = 2  # rollouts before the timed ones


@dataclass(frozen=True)
class LongRunConfig:
    """Settings of stage LONG_RUN: rollouts far beyond the training horizon, and a longer one for the slope of latency.

    The longer one is not decoded.
    """

    clips: int = 4  # clips, alternating between kinds
    horizons: int = 10  # length of the long rollouts, in training clips
    chunks: int = 400  # chunks of the latency run
    warmup_chunks: int = 10  # chunks before the timed ones
    other_caches: tuple[str, ...] = (
        "s0w1",
        "s0w6",
    )  # sink and window of other caches that the same student is compared with


@dataclass(frozen=True)
class ReportConfig:
    """Settings of stage REPORT."""

    fvd_splits: int = 2  # disjoint parts of the clips that FVD is also computed on, to show its spread
    show_clips: int = 2  # clips of each kind that report.html shows as videos
    video_height: int = 192  # height of each tile of those videos, pixels


@dataclass(frozen=True)
class EvalConfig:
    """Settings of the evaluation."""

    select: SelectConfig = field(default_factory=SelectConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    long_run: LongRunConfig = field(default_factory=LongRunConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    replay: str = ""  # folder of a recorded session, which is replayed and compared instead of an evaluation

    def problems(self) -> list[str]:
        """Returns every inconsistency as 'eval.field: what is wrong and how to fix it'; empty if there is none."""
        out = self._below_least()
        unknown = [k for k in self.select.counterfactuals if k not in KINDS]
        if unknown:
            out.append(f"eval.select.counterfactuals: {', '.join(unknown)} not among {', '.join(KINDS)}")
        if self.select.counterfactual_clips > self.select.clips:
            out.append(f"eval.select.counterfactual_clips: more than eval.select.clips ({self.select.clips})")
        m = self.select.motions
        for name in ("pan", "drag", "drag_radius"):
            if not 0 < vars(m)[name] < 1:
                out.append(f"eval.select.motions.{name}: {vars(m)[name]} must lie between 0 and 1")
        if m.zoom <= 0 or m.zoom == 1:
            out.append(f"eval.select.motions.zoom: {m.zoom} must be positive and not 1")
        if self.measure.moving_px < 0:
            out.append(f"eval.measure.moving_px: {self.measure.moving_px} is below zero")
        caches = [name for name in self.long_run.other_caches if not CACHE.fullmatch(name)]
        out += [f"eval.long_run.other_caches: {name!r} is no sink and window: write sXwY" for name in caches]
        out += [f"eval.generate.guidance.{p}" for p in self.generate.guidance.problems()]
        return out + [f"eval.measure.{p}" for p in self.measure.tracker.problems()]

    def _below_least(self) -> list[str]:
        """Returns the problems of settings that are below their least value."""
        groups: Mapping[str, tuple[Any, Mapping[str, int]]] = {
            "select": (self.select, {"clips": 2, "counterfactual_clips": 0, "tracks": 1, "batch": 1}),
            "select.motions": (
                self.select.motions,
                {"grid_rows": 1, "grid_cols": 1, "sparse_dragged": 1, "sparse_pinned": 0},
            ),
            "generate": (self.generate, {"steps": 1}),
            "measure": (
                self.measure,
                {
                    "raster_height": SSIM_WINDOW,
                    "raster_width": SSIM_WINDOW,
                    "fvd_frames": MIN_FRAMES,
                    "perceptual_every": 1,
                },
            ),
            "speed": (self.speed, {"teacher_steps": 1, "teacher_rollouts": 1, "chunks": 3, "warmup_rollouts": 0}),
            "long_run": (self.long_run, {"clips": 1, "horizons": 2, "chunks": 3, "warmup_chunks": 0}),
            "report": (self.report, {"fvd_splits": 2, "show_clips": 0, "video_height": 16}),
        }
        return [
            f"eval.{group}.{name}: {vars(config)[name]} must be at least {low}"
            for group, (config, least) in groups.items()
            for name, low in least.items()
            if vars(config)[name] < low
        ]


@dataclass(frozen=True)
class GenerateRun:
    """Settings that stage GENERATE reads. All of them are hashed into its key."""

    model: ModelConfig
    generate: GenerateConfig


@dataclass(frozen=True)
class SelectRun:
    """Settings that stage SELECT reads. All of them are hashed into its key."""

    model: ModelConfig
    select: SelectConfig


@dataclass(frozen=True)
class MeasureRun:
    """Settings that stage MEASURE reads. All of them are hashed into its key."""

    model: ModelConfig
    measure: MeasureConfig


@dataclass(frozen=True)
class SpeedRun:
    """Settings that stage SPEED reads. All of them are hashed into its key."""

    model: ModelConfig
    speed: SpeedConfig


@dataclass(frozen=True)
class LongRunRun:
    """Settings that stage LONG_RUN reads. All of them are hashed into its key."""

    model: ModelConfig
    measure: MeasureConfig  # raster and tracker of the EPE over windows
    long_run: LongRunConfig


@dataclass(frozen=True)
class ReplayRun:
    """Settings that stage REPLAY reads. All of them are hashed into its key."""

    model: ModelConfig
    measure: MeasureConfig


@dataclass(frozen=True)
class ReportRun:
    """Settings that stage REPORT reads. preset: its name, for the page's head."""

    preset: str
    model: ModelConfig
    eval: EvalConfig
