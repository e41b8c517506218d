"""Figures of the paper (MotionStream, tables of section 5) for comparison with ours, and how its setting differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msmodel.config import ModelConfig
from stages.eval.config import EvalConfig
from stages.train.sampling import Guidance

EPE_RASTER = (480, 832)
CUT = 0.5  # tracks count as followed if they at least halve the EPE
KEPT = 1.55  # the paper's larger ratio of the student's EPE to the teacher's
DRIFT = {  # other caches of the paper's table of extended lengths
    "s0w1": ("a sink lowers long-run drift", "LPIPS 0.464 with, 0.501 without"),
    "s0w6": ("less drift than Self Forcing's cache", "LPIPS 0.464 against 0.480"),
}
WIDEST = 2.0  # percent; a latency slope with a wider interval is inconclusive


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's tables. fps: DiT and VAE on one H100. Others: DAVIS val (30 clips), then Sora clips (20)."""

    model: str
    fps: str
    psnr: tuple[float, float]
    ssim: tuple[float, float]
    lpips: tuple[float, float]
    epe: tuple[float, float]


ROWS = (
    PaperRow("teacher 1.3B, 480p", "0.79", (16.61, 17.82), (0.477, 0.586), (0.427, 0.333), (5.35, 2.71)),
    PaperRow(
        "student 1.3B, 480p", "16.7 (29.5 tiny VAE)", (16.20, 16.67), (0.447, 0.531), (0.443, 0.360), (7.80, 4.21)
    ),
    PaperRow("teacher 5B, 720p", "0.74", (16.10, 17.18), (0.466, 0.571), (0.427, 0.331), (7.86, 3.16)),
    PaperRow("student 5B, 720p", "10.4 (23.9 tiny VAE)", (16.30, 16.62), (0.456, 0.545), (0.438, 0.343), (11.18, 4.30)),
)


@dataclass(frozen=True)
class Finding:
    """A finding of the paper that a reproduction must show at any scale. shown: None if it cannot be decided."""

    claim: str
    ours: str
    paper: str
    shown: bool | None


def findings(report: Mapping[str, Any]) -> list[Finding]:
    """Returns the paper's findings with our figures on each kind of clips."""
    out: list[Finding] = []
    for kind in ("rendered", "real"):
        if not report[kind]["clips"]:
            continue
        r = report[kind]["ratios"]
        cut, kept = r["teacher_epe_over_no_tracks"], r["student_epe_over_teacher"]
        own_cut = r["student_epe_over_no_tracks"]
        out.append(
            Finding(
                f"tracks cut the teacher's EPE ({kind})",
                "not measured" if cut is None else f"to {cut:.2f} of its EPE without tracks",
                "several-fold",
                None if cut is None else cut < CUT,
            )
        )
        out.append(
            Finding(
                f"the student keeps the EPE ({kind})",
                "not measured"
                if kept is None or own_cut is None
                else f"{kept:.2f} x the teacher's, {own_cut:.2f} of its own without",
                "1.46 x (DAVIS), 1.55 x (Sora)",
                None if kept is None or own_cut is None else kept <= KEPT and own_cut < CUT,
            )
        )
    return out + _speed_findings(report) + _drift_findings(report["long_run"])


def _speed_findings(report: Mapping[str, Any]) -> list[Finding]:
    """Returns the findings on throughput and on latency over length."""
    fast = next((f for k in ("rendered", "real") if (f := report[k]["ratios"]["student_fps_over_teacher"])), None)
    long_run = report["long_run"]
    ci, slope = long_run["latency_slope_ci"], long_run["latency_slope_pct_per_100_chunks"]
    grows = "not measured" if ci is None else f"{slope:+.2f}% per 100 chunks [{ci[0]:+.2f}, {ci[1]:+.2f}]"
    return [
        Finding(
            "the student is over 20 times as fast",
            "not measured" if fast is None else f"{fast:.1f} x the teacher's FPS",
            "21 x",
            None if fast is None else fast > 20,
        ),
        Finding(
            "latency does not grow with length",
            grows,
            "constant",
            None if ci is None or ci[1] - ci[0] > WIDEST else ci[0] <= 0 <= ci[1],
        ),
    ]


def _drift_findings(long_run: Mapping[str, Any]) -> list[Finding]:
    """Returns a comparison of the student's own cache with every other one.

    It compares the last window's perceptual distance to the target (the paper uses LPIPS).
    """
    own, *others = list(long_run["drift"]) or [""]
    out = []
    for other in others:
        name = other[other.index("s") :]
        claim, paper = DRIFT.get(name, (f"less drift than {other}", "not reported"))
        last = {s: {k: long_run["drift"][s][k]["values"][-1] for k in ("perceptual", "epe")} for s in (own, other)}
        if any(value is None for figures in last.values() for value in figures.values()):
            continue
        ours = "; ".join(f"{s} {f['perceptual']:.3f}, EPE {f['epe']:.1f}" for s, f in last.items())
        less = last[own]["perceptual"] < last[other]["perceptual"]
        out.append(Finding(claim, f"perceptual distance in the last horizon: {ours}", paper, less))
    return out


def differences(model: ModelConfig, cfg: EvalConfig, speed: Mapping[str, Any]) -> list[str]:
    """Returns the differences between our setting and the paper's, which make figures differ, one per line."""
    clip, m = model.clip, cfg.measure
    out = [
        "Clips: held-out clips of this run's own data set; the paper's are DAVIS val (30) and Sora (20).",
        f"Size: {clip.width}x{clip.height}, {clip.frames} frames at {clip.fps:g} fps; the paper's 832x480x81 at 16 fps and "
        "1280x704x121 at 24 fps.",
        "Perceptual distance: EfficientNet-lite0 features; the paper's is LPIPS. The two scales have nothing in common.",
        f"Machine: {speed.get('device', 'not timed')}; the paper's is one H100 in bf16.",
    ]
    if m.raster != EPE_RASTER:
        out.append(f"EPE: pixels of a {m.raster_width}x{m.raster_height} raster; the paper's 832x480.")
    if m.tracker.name not in ("cotracker3_offline", "cotracker3_online"):
        out.append(f"EPE: re-tracked with {m.tracker.name}; the paper uses CoTracker3.")
    if cfg.generate.steps != 50:
        out.append(
            f"Teacher: quality at {cfg.generate.steps} steps, the paper's at 50. (Its speed here is at 50 steps, as there.)"
        )
    weights, paper = cfg.generate.guidance, Guidance()
    if weights != paper:
        out.append(
            f"Guidance: text {weights.text:g}, track {weights.track:g}; the paper's {paper.text:g} and {paper.track:g}. "
            "(The teacher's speed here is at the paper's.)"
        )
    return out
