"""Every setting of the evaluation, one group a stage, so that a changed setting reruns that stage and what follows it.

Overrides read `eval.generate.steps=8 eval.select.clips=6`. Defaults are the full presets'.

Names of a student's settings: cXsYwZ, with "a" for absolute rotary positions (Self Forcing's) and kN for N denoising steps:
c3s1w1, c3s1w1a, c3s1w1k2. Attention sees differences of positions only, so "a" changes nothing without a sink: the paper's
Self Forcing row, c3s0w6 with absolute positions, is c3s0w6.
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
    """The student's setting that `name` means, and whether rotary positions are absolute. ValueError: not a name, or no
    chunk or no step in it."""
    found = SETTING.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no setting: write cXsYwZ, then `a` for absolute positions, then kN for N steps")
    chunk, sink, window, absolute, steps = found.groups()
    chosen = replace(own, chunk=int(chunk), sink=int(sink), window=int(window), steps=int(steps or own.steps))
    if chosen.chunk < 1 or chosen.steps < 1:
        raise ValueError(f"{name!r} has no chunk or no step")
    return chosen, bool(absolute)


def setting_name(cfg: StudentConfig) -> str:
    return f"c{cfg.chunk}s{cfg.sink}w{cfg.window}"


@dataclass(frozen=True)
class SelectConfig:
    """Which held-out clips are evaluated, and the motions they never had."""

    clips: int = 30  # of each kind (rendered, real), as many as there are if fewer
    counterfactual_clips: int = 8  # of each kind, for each counterfactual
    counterfactuals: tuple[str, ...] = KINDS  # kinds of motion that a held-out clip never had
    tracks: int = 2500  # most tracks a clip that a model is asked to follow: as many as in training
    motions: Motions = field(default_factory=Motions)
    batch: int = 4  # clips generated at once


@dataclass(frozen=True)
class GenerateConfig:
    """How clips are generated. steps: the teacher's Euler steps where its quality is measured (report: teacher.steps)."""

    steps: int = 50
    guidance: Guidance = field(default_factory=Guidance)


@dataclass(frozen=True)
class MeasureConfig:
    """The raster that EPE is measured on (the paper's 832x480), the re-tracker, and the extractors' settings."""

    raster_height: int = 480  # rows of the raster that EPE is measured on
    raster_width: int = 832  # columns of that raster
    tracker: TrackerConfig = field(default_factory=TrackerConfig)  # its max_back_px counts clip pixels
    moving_px: float = 4.0  # raster pixels: a track that gets this far counts as moving
    fvd_frames: int = 16  # frames a clip shown to I3D, evenly spread
    perceptual_every: int = 1  # every how many frames the perceptual distance looks

    @property
    def raster(self) -> tuple[int, int]:
        return self.raster_height, self.raster_width


@dataclass(frozen=True)
class SpeedConfig:
    """The teacher is always timed at the paper's setting (50 steps of joint guidance: 150 evaluations)."""

    teacher_steps: int = 50  # Euler steps of the timed teacher
    teacher_rollouts: int = 1  # clips that the teacher is timed on
    chunks: int = 60  # timed chunks of the student, at least
    warmup_rollouts: int = 2  # rollouts before the timed ones


@dataclass(frozen=True)
class LongRunConfig:
    """Rollouts far beyond the training horizon, and a longer one, undecoded, for the slope of the latency."""

    clips: int = 4  # kinds take turns
    horizons: int = 10  # length of the long rollouts, in training clips
    chunks: int = 400  # of the latency run
    warmup_chunks: int = 10  # chunks before the timed ones
    beside: tuple[str, ...] = ("s0w1", "s0w6")  # sink and window of the same student under other caches


@dataclass(frozen=True)
class ReportConfig:
    fvd_splits: int = 2  # disjoint parts of the clips that FVD is also computed on, to show its spread
    show_clips: int = 2  # of each kind, as videos in report.html
    video_height: int = 192  # pixels of each tile of those videos


@dataclass(frozen=True)
class EvalConfig:
    select: SelectConfig = field(default_factory=SelectConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    long_run: LongRunConfig = field(default_factory=LongRunConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    replay: str = ""  # a folder of a recorded session: plays it again and compares, in place of an evaluation

    def problems(self) -> list[str]:
        """Every inconsistency, as 'eval.field: what is wrong and how to fix it'; empty when sound."""
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
        caches = [name for name in self.long_run.beside if not CACHE.fullmatch(name)]
        out += [f"eval.long_run.beside: {name!r} is no sink and window: write sXwY" for name in caches]
        out += [f"eval.generate.guidance.{p}" for p in self.generate.guidance.problems()]
        return out + [f"eval.measure.{p}" for p in self.measure.tracker.problems()]

    def _below_least(self) -> list[str]:
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
    """What stage GENERATE reads; hashed whole into its key."""

    model: ModelConfig
    generate: GenerateConfig


@dataclass(frozen=True)
class SelectRun:
    model: ModelConfig
    select: SelectConfig


@dataclass(frozen=True)
class MeasureRun:
    model: ModelConfig
    measure: MeasureConfig


@dataclass(frozen=True)
class SpeedRun:
    model: ModelConfig
    speed: SpeedConfig


@dataclass(frozen=True)
class LongRunRun:
    model: ModelConfig
    measure: MeasureConfig  # raster and tracker of the drifting EPE
    long_run: LongRunConfig


@dataclass(frozen=True)
class ReplayRun:
    model: ModelConfig
    measure: MeasureConfig


@dataclass(frozen=True)
class ReportRun:
    """preset: its name, for the page's head."""

    preset: str
    model: ModelConfig
    eval: EvalConfig
