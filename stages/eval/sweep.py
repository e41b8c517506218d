"""Stages SWEEP (once per setting) and SWEEP_REPORT (once): one trained student under other settings.

A setting is a cache, a chunk, a rotary position or a number of steps. The sweep makes the paper's extended-length table
and its figures of sinks and windows from one model. Nothing is trained again, so settings far from the trained one have
that disadvantage too. Figures are those of LONG_RUN over `sweep.horizons` horizons. The report is one table and one
plot of all settings: sweep.json, sweep.html, sweep.png.
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
from stages.contracts import Context, Resources, Stage
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
    """Settings of the sweep.

    guidance: weights "text/track" with which the teacher is measured. chunks: timed chunks of each setting.
    """

    settings: tuple[str, ...] = (  # settings of the student, named as in stages/eval/config.py
        "c3s1w1", "c3s1w1a", "c3s0w1", "c1s1w1", "c3s0w6", "c3s2w1", "c3s1w2", "c3s1w3", "c3s1w4", "c3s1w1k1",
        "c3s1w1k2", "c3s1w1k4",
    )  # fmt: skip
    guidance: tuple[str, ...] = ("0/1.5", "1.5/1.5", "3/1.5", "3/0", "3/3")
    guidance_clips: int = 4  # clips of each kind that guidance is measured on
    clips: int = 4  # clips, alternating between kinds
    horizons: int = 3  # length of the rollouts in training clips; the paper's 241 frames are three
    chunks: int = 60

    def problems(self) -> list[str]:
        """Returns every inconsistency as 'sweep.field: what is wrong'; empty if there is none."""
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
    """Run config of one setting. It holds only what this setting needs, so that others do not change its key."""

    model: ModelConfig
    measure: MeasureConfig
    setting: str
    clips: int
    horizons: int
    chunks: int


@dataclass(frozen=True)
class SweepInputs:
    """Inputs of stage SWEEP: the selected clips and the student."""

    selection: Selection
    student: Checkpoint


def sweep_run(model: ModelConfig, measure: MeasureConfig, cfg: SweepConfig, setting: str) -> SweepRun:
    """Returns the run config of one setting."""
    return SweepRun(model, measure, setting, cfg.clips, cfg.horizons, cfg.chunks)


def read_weights(name: str) -> Guidance:
    """Returns Guidance from "text/track". Raises ValueError if these are not two numbers that can be combined."""
    try:
        text, track = (float(part) for part in name.split("/"))
    except ValueError:
        raise ValueError(f"{name!r} is no pair of weights: write text/track, as in 3/1.5") from None
    if problems := Guidance(text, track).problems():
        raise ValueError(f"{name!r}: {problems[0]}")
    return Guidance(text, track)


def run(cfg: SweepRun, inputs: SweepInputs, ctx: Context) -> Figures:
    """Writes sweep.json {setting, drift, latency_ms, fps, threads}."""
    trained = student_on(inputs.student, ctx.device, ctx.dtype)
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
    """Returns the latency of cfg.chunks chunks with a full cache, DiT only, and the resulting frames per second."""
    clip = some_clips(selection, 1)[0]
    stream = clip_stream(student, clip, cfg.model, ctx.seed, ctx.device)
    session = stream.session(NoDecoder(), seeded(ctx.seed, "sweep"), setting)
    chunks_of(session, filled_after(setting) + WARMUP_CHUNKS)
    seconds = [chunk.seconds_dit for chunk in chunks_of(session, cfg.chunks)]
    frames = setting.chunk * cfg.model.vae.stride_t * len(seconds)
    return {"latency_ms": asdict(latency(seconds)), "fps": frames / sum(seconds), "threads": torch.get_num_threads()}


def row(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures of one setting for the table; NaN if nothing could be measured.

    EPE and perceptual distance are means over the windows. Perceptual distance and colour drift are also given for the
    last window. Then come latency and throughput.
    """
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
    """The figures of the teacher with one pair of weights."""

    weights: str
    measured: tuple[Measured, ...]


@dataclass(frozen=True)
class SweepReportRun:
    """Settings that the page of stage SWEEP_REPORT shows."""

    preset: str
    steps: int  # Euler steps of the teacher
    horizons: int
    raster: tuple[int, int]


@dataclass(frozen=True)
class SweepReportInputs:
    """Inputs of stage SWEEP_REPORT: figures of the student's settings and of the teacher's guidance weights."""

    points: tuple[Figures, ...]
    guided: tuple[Guided, ...]
    git_sha: str = "unknown"


def run_report(cfg: SweepReportRun, inputs: SweepReportInputs, ctx: Context) -> Report:
    """Writes sweep.json, sweep.html and sweep.png to ctx.workdir and sends them to the tracker."""
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
    """Returns EPE and perceptual distance of each kind of clips; NaN if there are none."""
    out: dict[str, float] = {}
    for kind in CLIP_KINDS:
        parts = [json.loads(Path(m.file).read_text()) for m in guided.measured if m.item.kind == kind]
        rows = [clip for part in parts for clip in part.values()]
        out[f"{kind}_epe"] = average([TrackError(**r["epe"]) for r in rows]).epe
        out[f"{kind}_perceptual"] = finite_mean([r["perceptual"] for r in rows])
    return out


def page(cfg: SweepReportRun, report: Mapping[str, Any], picture: bytes) -> str:
    """Returns the HTML page. It fetches nothing from elsewhere."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = lambda value, digits=2: "–" if value is None else f"{value:,.{digits}f}"
    return environment.from_string(TEMPLATE.read_text()).render(
        r=report, cfg=cfg, kinds=CLIP_KINDS, plot=data_uri(picture, "image/png")
    )


SWEEP_REPORT = Stage("eval_sweep_report", version=2, how="once", run=run_report)
