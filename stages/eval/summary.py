"""Builds report.json: the figures of an evaluation under stable names. A missing figure is null, with its reason.

Every figure is a mean over clips. FVD and KVD compare equal numbers of generated and real clips (the same clips'
originals).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.eval import i3d, perceptual
from stages.eval.config import ReportRun
from stages.eval.counterfactual import KINDS
from stages.eval.epe import TrackError, average, finite_mean
from stages.eval.frechet import frechet_distance, kernel_distance, split_spread
from stages.eval.items import ADAPTED, CLIP_KINDS, EvalClip, Figures, Generated, Measured, Selection
from stages.records import Checkpoint, ShardSet

SCHEMA = 1
STAGES = ("data", "teacher", "distill", "eval")
PICTURES = ("psnr", "ssim", "perceptual")
SPEED_TEACHER = ("fps",)
SPEED_STUDENT = ("fps", "chunk_latency_ms", "ttff_ms", "fps_with_vae", "fps_with_tiny_vae", "peak_memory_mb")


@dataclass(frozen=True)
class ReportInputs:
    """Inputs of stage REPORT: all measurements. seconds: wall-clock time of data, teacher, distill and eval, if known."""

    selection: Selection
    dataset: tuple[ShardSet, ...]
    generated: tuple[Generated, ...]
    measured: tuple[Measured, ...]
    speed: Figures | None = None
    long_run: Figures | None = None
    teacher: Checkpoint | None = None
    student: Checkpoint | None = None
    adapted: Checkpoint | None = None
    tiny_vae: Checkpoint | None = None
    git_sha: str = "unknown"
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Nulls:
    """Turns what is not a finite number into null and records the reason by path."""

    reasons: dict[str, str] = field(default_factory=dict)

    def number(self, path: str, value: float | None, reason: str) -> float | None:
        """Returns `value` if it is finite; else records `reason` and returns None."""
        if value is not None and math.isfinite(value):
            return float(value)
        self.reasons[path] = reason
        return None


class Table:
    """Measured figures and features by (kind, model, variant)."""

    def __init__(self, measured: Sequence[Measured]) -> None:
        self.clips: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
        self.features: dict[tuple[str, str, str], np.ndarray] = {}
        for m in sorted(measured, key=lambda m: m.name):
            key = (m.item.kind, m.item.model, m.item.variant)
            self.clips.setdefault(key, {}).update(json.loads(Path(m.file).read_text()))
            if m.features:
                with np.load(m.features) as data:
                    part = data["i3d"]
                old = self.features.get(key)
                self.features[key] = part if old is None else np.concatenate([old, part])

    def errors(self, kind: str, model: str, variant: str) -> TrackError:
        """Returns the mean over clips; every field is NaN if nothing was measured."""
        rows = self.clips.get((kind, model, variant), {}).values()
        return average([TrackError(**row["epe"]) for row in rows])

    def mean(self, kind: str, model: str, figure: str) -> float:
        """Returns the mean of a figure over clips with their own tracks, NaN if nothing was measured."""
        rows = self.clips.get((kind, model, "tracks"), {}).values()
        return finite_mean([row[figure] for row in rows if figure in row])

    def count(self, kind: str, model: str, variant: str) -> int:
        return len(self.clips.get((kind, model, variant), {}))

    def set_of(self, kind: str, model: str, variant: str = "tracks") -> np.ndarray:
        """Returns I3D features, n 400 (n = 0 if there are none)."""
        return self.features.get((kind, model, variant), np.zeros((0, i3d.CLASSES)))


def build(cfg: ReportRun, inputs: ReportInputs, seed: int) -> dict[str, Any]:
    """Returns the content of report.json."""
    nulls, table = Nulls(), Table(inputs.measured)
    speed = read_json(inputs.speed)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "preset": cfg.preset,
        "git_sha": inputs.git_sha,
        "seed": seed,
        "dataset": dataset(inputs),
    }
    for kind in CLIP_KINDS:
        report[kind] = kind_summary(cfg, kind, table, speed, inputs, nulls)
    report["long_run"] = long_run(read_json(inputs.long_run), nulls)
    report["seconds"] = {
        name: nulls.number(f"seconds.{name}", inputs.seconds.get(name), "this target was not run in this invocation")
        for name in STAGES
    }
    report["provenance"] = provenance(cfg, inputs, speed)
    report["null_reasons"] = dict(sorted(nulls.reasons.items()))
    return report


def version(folder: Path) -> dict[str, str]:
    """Returns what identifies this report: its step (stage/key), when it was made, and the file with its settings.

    folder: where it is written, RUNS/PRESET/STAGE/KEY, which later settings never overwrite.
    """
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    step = f"{folder.parent.name}/{folder.name}"
    return {"step": step, "made": made, "settings": f"{step}/manifest.json"}


def read_json(figures: Figures | None) -> dict[str, Any]:
    return {} if figures is None else json.loads(Path(figures.file).read_text())


def dataset(inputs: ReportInputs) -> dict[str, Any]:
    """Returns sizes and a digest over all splits. The evaluated clips are from the held-out split only."""
    digest = hashlib.sha256(" ".join(sorted(s.digest for s in inputs.dataset)).encode()).hexdigest()
    chosen = [c for c in inputs.selection.clips if not c.spare]
    return {
        "clips": sum(s.clips for s in inputs.dataset),
        "digest": digest,
        "splits": {s.split: {"clips": s.clips, "real": s.real, "rendered": s.rendered} for s in inputs.dataset},
        "heldout_digest": inputs.selection.dataset_digest,
        "evaluated": {kind: [c.clip_id for c in chosen if c.kind == kind] for kind in CLIP_KINDS},
    }


def kind_summary(
    cfg: ReportRun, kind: str, table: Table, speed: Mapping[str, Any], inputs: ReportInputs, nulls: Nulls
) -> dict[str, Any]:
    """Returns the figures of one kind of clips, "rendered" or "real"."""
    floor, floor_n = real_floor(table, kind)
    models = {}
    for name, checkpoint in (("teacher", inputs.teacher), ("student", inputs.student)):
        models[name] = model_summary(cfg, kind, name, table, speed, checkpoint, floor_n, nulls)
    teacher, student = models["teacher"], models["student"]
    models[ADAPTED] = adapted_summary(cfg, kind, table, inputs.adapted, floor_n, nulls)
    no_clips = f"no {kind} clips were evaluated"
    ratios = {
        "student_fps_over_teacher": ratio(student["fps"], teacher["fps"]),
        "student_epe_over_teacher": ratio(student["epe"], teacher["epe"]),
        "teacher_epe_over_no_tracks": ratio(teacher["epe"], teacher["epe_no_tracks"]),
        "student_epe_over_no_tracks": ratio(student["epe"], student["epe_no_tracks"]),
    }
    noise = {
        "epe_retracked": table.errors(kind, "real", "tracks").epe,
        "epe_vae_roundtrip": table.errors(kind, "vae", "tracks").epe,
        "fvd_real_vs_real": floor,
    }
    reasons = {"fvd_real_vs_real": "fewer than four real clips: no two sets to compare"}
    return {
        **models,
        "ratios": {
            k: nulls.number(f"{kind}.ratios.{k}", v, "one of its two figures is missing") for k, v in ratios.items()
        },
        "noise_floor": {
            k: nulls.number(f"{kind}.noise_floor.{k}", v, reasons.get(k, no_clips)) for k, v in noise.items()
        }
        | {
            "fvd_clips": floor_n,
            "psnr_vae_roundtrip": nulls.number(
                f"{kind}.noise_floor.psnr_vae_roundtrip", table.mean(kind, "vae", "psnr"), no_clips
            ),
            "seen_retracked": nulls.number(
                f"{kind}.noise_floor.seen_retracked", table.errors(kind, "real", "tracks").seen, no_clips
            ),
        },
        "clips": table.count(kind, "real", "tracks"),
    }


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def real_floor(table: Table, kind: str) -> tuple[float | None, int]:
    """Returns FVD between two disjoint sets of real clips, and their size.

    The sets are the selected and the spare clips, or, if there are too few spare ones, two halves of the selected.
    """
    chosen, spare = table.set_of(kind, "real"), table.set_of(kind, "real", "spare")
    if len(spare) >= max(2, len(chosen) // 2):
        n = min(len(chosen), len(spare))
        return frechet_distance(chosen[:n], spare[:n]), n
    n = len(chosen) // 2
    return (frechet_distance(chosen[:n], chosen[n : 2 * n]), n) if n >= 2 else (None, n)


def model_summary(
    cfg: ReportRun,
    kind: str,
    model: str,
    table: Table,
    speed: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    floor_n: int,
    nulls: Nulls,
) -> dict[str, Any]:
    """Returns the figures of one model on one kind of clips."""
    at = f"{kind}.{model}"
    missing = f"there is no {model} in this evaluation" if checkpoint is None else f"no {kind} clips were evaluated"
    own = table.errors(kind, model, "tracks")
    out: dict[str, Any] = {
        "epe": nulls.number(f"{at}.epe", own.epe, missing),
        "epe_no_tracks": nulls.number(f"{at}.epe_no_tracks", table.errors(kind, model, "no_tracks").epe, missing),
        "epe_counterfactual": {},
    }
    asked = cfg.eval.select.counterfactuals
    for name in KINDS:
        why = missing if name in asked else "not asked for (eval.select.counterfactuals)"
        why = (
            "no other held-out scene to borrow tracks from" if name == "swap" and why is missing and checkpoint else why
        )
        path = f"{at}.epe_counterfactual.{name}"
        out["epe_counterfactual"][name] = nulls.number(path, table.errors(kind, model, name).epe, why)
    for name in PICTURES:
        out[name] = nulls.number(f"{at}.{name}", table.mean(kind, model, name), missing)
    sets = set_figures(cfg, table.set_of(kind, model), table.set_of(kind, "real"), floor_n)
    for name in ("fvd_i3d", "kvd_i3d"):
        out[name] = nulls.number(f"{at}.{name}", sets[name], missing if checkpoint is None else "too few clips")
    out |= speed_figures(at, model, speed, checkpoint, nulls)
    out["steps"] = _steps(cfg, model) if checkpoint is not None else None
    if checkpoint is None:
        nulls.reasons[f"{at}.steps"] = missing
    errors = {v: clean(asdict(table.errors(kind, model, v))) for v in ("tracks", "no_tracks", *KINDS)}
    out["details"] = {
        "epe": {variant: e for variant, e in errors.items() if table.count(kind, model, variant)},
        "clips": {v: table.count(kind, model, v) for v in errors if table.count(kind, model, v)},
        **{k: v for k, v in sets.items() if k not in ("fvd_i3d", "kvd_i3d")},
    }
    return out


def adapted_summary(
    cfg: ReportRun, kind: str, table: Table, checkpoint: Checkpoint | None, floor_n: int, nulls: Nulls
) -> dict[str, float | None]:
    """Returns the figures of the student before distribution matching, which show the effect of DMD.

    It follows its own tracks at the same number of steps.
    """
    why = "the adapted student is not in this evaluation" if checkpoint is None else f"no {kind} clips were evaluated"
    values = {"epe": table.errors(kind, ADAPTED, "tracks").epe}
    values |= {name: table.mean(kind, ADAPTED, name) for name in PICTURES}
    sets = set_figures(cfg, table.set_of(kind, ADAPTED), table.set_of(kind, "real"), floor_n)
    values |= {name: sets[name] for name in ("fvd_i3d", "kvd_i3d")}
    return {name: nulls.number(f"{kind}.{ADAPTED}.{name}", value, why) for name, value in values.items()}


def _steps(cfg: ReportRun, model: str) -> int:
    return cfg.eval.generate.steps if model == "teacher" else cfg.model.student.steps


def set_figures(cfg: ReportRun, made: np.ndarray, real: np.ndarray, floor_n: int) -> dict[str, Any]:
    """Returns FVD and KVD at equal N, the spread over disjoint splits, and FVD at the floor's N."""
    n = min(len(made), len(real))
    out: dict[str, Any] = {"fvd_i3d": None, "kvd_i3d": None, "kvd_interval": None, "fvd_splits": [], "fvd_clips": n}
    out["fvd_at_floor_clips"] = None
    if n >= 2:
        out["fvd_i3d"] = frechet_distance(made[:n], real[:n])
        out["fvd_splits"] = split_spread(made[:n], real[:n], cfg.eval.report.fvd_splits)
    if 2 <= floor_n <= n:
        out["fvd_at_floor_clips"] = frechet_distance(made[:floor_n], real[:floor_n])
    if n >= 3:
        kvd = kernel_distance(made[:n], real[:n])
        out["kvd_i3d"], out["kvd_interval"] = kvd.value, [kvd.low, kvd.high]
    return out


def speed_figures(
    at: str, model: str, speed: Mapping[str, Any], checkpoint: Checkpoint | None, nulls: Nulls
) -> dict[str, Any]:
    """Returns the speed fields that every report has, and the others as far as they were measured."""
    measured = speed.get(model) or {}
    why = f"there is no {model} in this evaluation" if checkpoint is None else "speed was not measured"
    out: dict[str, Any] = {k: v for k, v in measured.items() if k not in ("steps", "chunks", "rollouts", "evaluations")}
    if model == "teacher":
        out |= {f"fps_{k}": measured[k] for k in ("steps", "evaluations") if k in measured}
    for name in SPEED_TEACHER if model == "teacher" else SPEED_STUDENT:
        if measured.get(name) is None:
            tiny = name == "fps_with_tiny_vae" and measured
            nulls.reasons[f"{at}.{name}"] = "there is no tiny VAE in this evaluation" if tiny else why
            out[name] = None
    return out


def long_run(measured: Mapping[str, Any], nulls: Nulls) -> dict[str, Any]:
    """Returns the figures of the long run.

    drift: one entry per setting. reference: the real clip itself, played back and forth.
    """
    names = ("frames", "horizon_multiple", "latency_slope_pct_per_100_chunks", "latency_slope_ci")
    if not measured:
        nulls.reasons["long_run"] = "no long run was made: there is no student in this evaluation"
        return dict.fromkeys(names) | {"drift": {}}
    drift = {k: clean(v) for k, v in measured["drift"].items()}
    more = (
        *("window_frames", "clips", "latency_constant", "latency_chunks", "latency_ms"),
        *("latency_slope_alone_pct_per_100_chunks", "latency_slope_alone_ci"),
    )
    out = {name: measured[name] for name in (*names, *more)}
    return out | {"drift": {k: v for k, v in drift.items() if k != "real"}, "reference": drift.get("real", {})}


def clean(value: Any) -> Any:
    """Returns the value with NaN and infinity, which JSON does not have, replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return value


def provenance(cfg: ReportRun, inputs: ReportInputs, speed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns everything that a figure depends on."""
    m = cfg.eval.measure
    checkpoints = {
        c.name: {"step": c.step, "digest": c.digest}
        for c in (inputs.teacher, inputs.adapted, inputs.student, inputs.tiny_vae)
        if c
    }
    return {
        "checkpoints": checkpoints,
        "config": {"model": asdict(cfg.model), "eval": asdict(cfg.eval)},
        "epe": {
            "raster": {"height": m.raster_height, "width": m.raster_width},
            "clip": {"height": cfg.model.clip.height, "width": cfg.model.clip.width},
            "retracker": m.tracker.name,
            "input_tracks": sorted({c.tracker for c in inputs.selection.clips if c.tracker}),
            "masked_by": "input visibility",
            "mean": "per clip, then over clips",
            "left_out": "frame 0 (given); tracks not visible in frame 0",
            "moving_px": m.moving_px,
        },
        "fvd": {
            "extractor": i3d.NAME,
            "weights_sha256": i3d.SHA256,
            "frames": m.fvd_frames,
            "sampling": f"{m.fvd_frames} frames evenly spread over the clip's {cfg.model.clip.frames}",
            "resize": f"bilinear with antialiasing to {i3d.SIZE}x{i3d.SIZE}",
        },
        "perceptual": {"name": perceptual.NAME, "weights_sha256": perceptual.SHA256, "every": m.perceptual_every},
        "pictures": "decoded uint8 at clip size, mean of per-frame PSNR, SSIM 11x11 sigma 1.5 valid, frame 0 left out",
        "speed": speed.get("settings", {}),
        "sources": sorted({c.source for c in inputs.selection.clips if c.source}),
    }


def shown_clips(clips: Sequence[EvalClip], count: int) -> list[EvalClip]:
    """Returns the first `count` selected clips of each kind."""
    return [c for kind in CLIP_KINDS for c in [x for x in clips if x.kind == kind and not x.spare][:count]]
