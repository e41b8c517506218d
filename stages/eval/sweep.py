"""Stages SWEEP (once for each setting) and SWEEP_REPORT (once): one trained student under another cache, chunk, rotary
position or number of steps.

The paper's extended-length table and its figures of sinks and windows, from one model: nothing is trained again, so a setting
far from the trained one pays for that too. Figures are those of LONG_RUN over `eval.sweep.horizons` horizons.
The report is one table and one plot of all settings: sweep.json, sweep.html, sweep.png.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig, StudentConfig
from stages.contracts import (
    Context,
    Resources,
    Stage,
)
from stages.data.contact_sheets import data_uri
from stages.eval.config import LongRunConfig, LongRunRun, MeasureConfig, read_setting
from stages.eval.epe import TrackError, average, finite_mean
from stages.eval.generate import student_on
from stages.eval.items import CLIP_KINDS, Figures, Measured, Selection, folder_file, seeded
from stages.eval.long_run import averaged, back_and_forth, clip_drift, long_video, some_clips, with_positions
from stages.eval.plots import sweep_plot
from stages.eval.streaming import NoDecoder, chunks_of, clip_stream, filled_after
from stages.eval.summary import clean, version
from stages.eval.timing import latency
from stages.records import Checkpoint, Report
from stages.train.method import at_least
from stages.train.sampling import Guidance

WARMUP_CHUNKS = 5


@dataclass(frozen=True)
class SweepConfig:
    """settings: of the student. guidance: weights "text/track" under which the teacher is measured. chunks: timed ones."""

    settings: tuple[str, ...] = (
        "c3s1w1", "c3s1w1a", "c3s0w1", "c1s1w1", "c3s0w6", "c3s2w1", "c3s1w2", "c3s1w3", "c3s1w4", "c3s1w1k1",
        "c3s1w1k2", "c3s1w1k4",
    )  # fmt: skip
    guidance: tuple[str, ...] = ("0/1.5", "1.5/1.5", "3/1.5", "3/0", "3/3")
    guidance_clips: int = 4  # of each kind
    clips: int = 4  # kinds take turns
    horizons: int = 3  # the paper's 241 frames are three of its horizons
    chunks: int = 60

    def problems(self) -> list[str]:
        """Every inconsistency, as 'sweep.field: what is wrong'; empty when sound."""
        least = {"guidance_clips": 1, "clips": 1, "horizons": 2, "chunks": 3}
        out = at_least(self, least)
        for field, names, read in (
            ("settings", self.settings, lambda name: read_setting(name, StudentConfig())),
            ("guidance", self.guidance, read_weights),
        ):
            for name in names:
                try:
                    read(name)
                except ValueError as error:
                    out.append(f"{field}: {error}")
        return [f"sweep.{p}" for p in out]


@dataclass(frozen=True)
class SweepRun:
    """One setting. What another setting needs does not count in this one's key."""

    model: ModelConfig
    measure: MeasureConfig
    setting: str
    clips: int
    horizons: int
    chunks: int


@dataclass(frozen=True)
class SweepInputs:
    selection: Selection
    student: Checkpoint


def sweep_run(model: ModelConfig, measure: MeasureConfig, cfg: SweepConfig, setting: str) -> SweepRun:
    return SweepRun(model, measure, setting, cfg.clips, cfg.horizons, cfg.chunks)


def read_weights(name: str) -> Guidance:
    """Guidance from "text/track". ValueError: not two numbers, or weights that cannot be combined."""
    try:
        text, track = (float(part) for part in name.split("/"))
    except ValueError:
        raise ValueError(f"{name!r} is no pair of weights: write text/track, as in 3/1.5") from None
    if problems := Guidance(text, track).problems():
        raise ValueError(f"{name!r}: {problems[0]}")
    return Guidance(text, track)


def run(cfg: SweepRun, inputs: SweepInputs, ctx: Context) -> Figures:
    """Writes sweep.json {setting, drift, latency_ms, fps, threads}."""
    trained = student_on(inputs.student, ctx.device)
    setting, absolute = read_setting(cfg.setting, trained.cfg.student)
    student = with_positions(trained, absolute)
    long_run = LongRunRun(cfg.model, cfg.measure, LongRunConfig(cfg.clips, cfg.horizons, cfg.chunks))
    chunks = cfg.horizons * (cfg.model.latent_frames - int(cfg.model.image_alone)) // setting.chunk
    drift = []
    clips = some_clips(inputs.selection, cfg.clips)
    with ctx.progress(cfg.setting, len(clips) + 1) as progress:
        for clip in clips:
            video = long_video(long_run, student, setting, clip, chunks, ctx)
            drift.append(clip_drift(long_run, clip, video, back_and_forth(clip, len(video)), ctx))
            progress.advance()
        out: dict[str, Any] = {"setting": cfg.setting, "drift": averaged(drift, cfg.model.clip.frames)}
        out |= speed_of(cfg, student, setting, inputs.selection, ctx)
        progress.advance()
    ctx.emit(0, row(out))
    file = folder_file(ctx.workdir, "sweep.json")
    Path(file).write_text(json.dumps(out, indent=1))
    return Figures(cfg.setting, file)


def speed_of(
    cfg: SweepRun, student: CausalDiT, setting: StudentConfig, selection: Selection, ctx: Context
) -> dict[str, Any]:
    """Latency of cfg.chunks chunks with a full cache, DiT only, and the frames a second that this makes."""
    clip = some_clips(selection, 1)[0]
    stream = clip_stream(student, clip, cfg.model, ctx.seed, ctx.device)
    session = stream.session(NoDecoder(), seeded(ctx.seed, "sweep"), setting)
    chunks_of(session, filled_after(setting) + WARMUP_CHUNKS)
    seconds = [chunk.seconds_dit for chunk in chunks_of(session, cfg.chunks)]
    frames = setting.chunk * cfg.model.vae.stride_t * len(seconds)
    return {"latency_ms": asdict(latency(seconds)), "fps": frames / sum(seconds), "threads": torch.get_num_threads()}


def row(found: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one setting that a table shows: EPE and perceptual distance as means over the windows, colour drift
    at the end, speed. NaN where nothing could be measured."""
    drift = found["drift"]
    return {
        "epe": finite_mean(drift["epe"]["values"]),
        "perceptual": finite_mean(drift["perceptual"]["values"]),
        "perceptual_last": drift["perceptual"]["values"][-1],
        "lab_shift_last": drift["lab_shift"]["values"][-1],
        "latency_ms": found["latency_ms"]["mean"],
        "latency_std_ms": found["latency_ms"]["std"],
        "fps": found["fps"],
    }


SWEEP = Stage("eval_sweep", version=3, how="once", run=run, resources=Resources(cpus=2, threads=2))


TEMPLATE = Path(__file__).with_name("sweep.html.j2")


@dataclass(frozen=True)
class Guided:
    """The teacher measured under one pair of weights."""

    weights: str
    measured: tuple[Measured, ...]


@dataclass(frozen=True)
class SweepReportRun:
    """What the page says of its setting."""

    preset: str
    steps: int  # Euler steps of the teacher
    horizons: int
    raster: tuple[int, int]


@dataclass(frozen=True)
class SweepReportInputs:
    points: tuple[Figures, ...]
    guided: tuple[Guided, ...]
    git_sha: str = "unknown"


def run_report(cfg: SweepReportRun, inputs: SweepReportInputs, ctx: Context) -> Report:
    """Writes the three files into ctx.workdir and hands them to the tracker."""
    found = {p.name: json.loads(Path(p.file).read_text()) for p in inputs.points}
    report: dict[str, Any] = {
        "preset": cfg.preset,
        "git_sha": inputs.git_sha,
        "seed": ctx.seed,
        "version": version(ctx.workdir),
        "horizons": cfg.horizons,
        "students": {name: clean(row(figures)) for name, figures in found.items()},
        "guidance": {g.weights: clean(guided_row(g)) for g in inputs.guided},
    }
    files = [ctx.workdir / name for name in ("sweep.json", "sweep.html", "sweep.png")]
    picture = sweep_plot(report)
    files[0].write_text(json.dumps(report, indent=1, allow_nan=False))
    files[1].write_text(page(cfg, report, picture))
    files[2].write_bytes(picture)
    for file in files:
        ctx.artifact(file, "sweep")
    return Report(str(ctx.workdir), *(str(file) for file in files))


def guided_row(guided: Guided) -> dict[str, float]:
    """EPE and perceptual distance of each kind of clips; NaN where there are none."""
    out: dict[str, float] = {}
    for kind in CLIP_KINDS:
        parts = [json.loads(Path(m.file).read_text()) for m in guided.measured if m.item.kind == kind]
        rows = [clip for part in parts for clip in part.values()]
        out[f"{kind}_epe"] = average([TrackError(**r["epe"]) for r in rows]).epe
        out[f"{kind}_perceptual"] = finite_mean([r["perceptual"] for r in rows])
    return out


def page(cfg: SweepReportRun, report: Mapping[str, Any], picture: bytes) -> str:
    """The HTML page. Nothing in it is fetched from elsewhere."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = lambda value, digits=2: "–" if value is None else f"{value:,.{digits}f}"
    return environment.from_string(TEMPLATE.read_text()).render(
        r=report, cfg=cfg, kinds=CLIP_KINDS, plot=data_uri(picture, "image/png")
    )


SWEEP_REPORT = Stage("eval_sweep_report", version=2, how="once", run=run_report)
