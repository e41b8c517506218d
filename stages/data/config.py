"""Settings of the data stages. The comment of a field names the stage that reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.data.gates import GateConfig
from stages.trackers.base import TrackerConfig

VARIANTS = ("reversed", "push_in", "fast")
TRAINED_ON = ("all", "real", "synthetic")


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data stages. Defaults are those of the full presets. The user's own videos are the top-level `src`.

    synthetic: further videos that a model has generated, in the same forms as `src`; all their clips train, as "generated"
    ones. phase1_clips, phase2_clips, distill_clips: the clips on which the teacher trains (before and in its phase 2), and ODE
    pairs and DMD: "real", "synthetic" (generated or rendered), or "all". Without generated clips each of these means all.
    """

    synthetic: str = ""  # sources
    phase1_clips: str = "real"  # pipelines
    phase2_clips: str = "synthetic"
    distill_clips: str = "synthetic"
    videos_root: str = ""  # sources: where the relative paths of a table or list start; "" where the table lies
    min_side_px: int = 16  # ingest: a video whose shorter side is below this is rejected
    max_side_px: int = 8192  # ingest: as is one whose longer side is above this
    min_aspect: float = 0.2  # ingest: width over height, as shown
    max_aspect: float = 5.0  # width / height above which a video is rejected
    heldout_share: float = 0.15  # sources: share of a user's videos that is held out, by content hash
    segment_seconds: float = 300.0  # cut: a longer video is processed in parts of this length; no clip spans two
    split_threshold: float = 3.0  # cut: PySceneDetect AdaptiveDetector, ratio of a cut to its surroundings
    split_min_content: float = 15.0  # cut: smallest change of hue, saturation and luma that can be a cut
    split_min_seconds: float = 0.2  # cut: shortest shot
    clip_overlap: float = 0.0  # cut: share of a clip that the next one repeats
    variants: tuple[str, ...] = ()  # cut: further motions made from training clips; their captions stay
    train_scenes: int = 150  # render
    heldout_scenes: int = 12  # render
    motions: int = 4  # render: clips that share one first frame
    objects: int = 4  # render: most moving objects in a scene
    supersampling: int = 2  # render
    object_points: int = 24  # render: further tracks on each object, in addition to the grid
    grid_rows: int = 50  # render, track: uniform grid of queries on the first frame
    grid_cols: int = 50  # columns of the grid of points that is tracked
    tracker: TrackerConfig = field(default_factory=TrackerConfig)  # track: real clips
    gates: GateConfig = field(default_factory=GateConfig)
    report_only: bool = False  # make data: print what each gate would drop, and pack nothing
    clips_per_shard: int = 64  # pack
    lossless_frames: bool = False  # pack: store uint8 frames too; else readers decode the mp4

    def problems(self) -> list[str]:
        """Lists every inconsistency as 'data.field: what is wrong and how to fix it'; empty if there is none."""
        out = []
        at_least = {
            "min_side_px": 2,
            "train_scenes": 0,
            "heldout_scenes": 0,
            "motions": 1,
            "objects": 1,
            "supersampling": 1,
            "object_points": 0,
            "grid_rows": 1,
            "grid_cols": 1,
            "clips_per_shard": 1,
        }
        for name, least in at_least.items():
            if vars(self)[name] < least:
                out.append(f"data.{name}: {vars(self)[name]} must be at least {least}")
        if not 0 < self.heldout_share < 1:
            out.append(f"data.heldout_share: {self.heldout_share} must lie between 0 and 1")
        if not 0 <= self.clip_overlap < 1:
            out.append(f"data.clip_overlap: {self.clip_overlap} must be at least 0 and below 1")
        if self.max_side_px < self.min_side_px:
            out.append(f"data.max_side_px: {self.max_side_px} must be at least data.min_side_px ({self.min_side_px})")
        if not 0 < self.min_aspect <= self.max_aspect:
            out.append(f"data.min_aspect: {self.min_aspect} must be above 0 and at most data.max_aspect")
        for name in ("segment_seconds", "split_threshold", "split_min_content", "split_min_seconds"):
            if vars(self)[name] <= 0:
                out.append(f"data.{name}: {vars(self)[name]} must be positive")
        for name in ("phase1_clips", "phase2_clips", "distill_clips"):
            if vars(self)[name] not in TRAINED_ON:
                out.append(f"data.{name}: {vars(self)[name]!r} is not one of {', '.join(TRAINED_ON)}")
        for name in self.variants:
            if name not in VARIANTS:
                out.append(f"data.variants: {name!r} is not one of {', '.join(VARIANTS)}")
        return out + [f"data.{p}" for p in (*self.tracker.problems(), *self.gates.problems())]


@dataclass(frozen=True)
class DataBenchConfig:
    """Settings of `make bench-data`. clips: for the timings. memory_clips: few and many, for memory. rounds: of each timing."""

    clips: int = 160
    memory_clips: tuple[int, int] = (40, 400)
    rounds: int = 3

    def problems(self) -> list[str]:
        """Lists every inconsistency as 'bench_data.field: what is wrong'."""
        counts = (self.clips, *self.memory_clips, self.rounds)
        return [] if min(counts) > 0 else ["bench_data: every count must be at least 1"]
