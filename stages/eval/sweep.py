"""Stage SWEEP (once for each setting): one trained student under another cache, chunk, rotary position or number of steps.

The paper's extended-length table and its figures of sinks and windows, from one model: nothing is trained anew, so a setting
far from the trained one pays for that too. Figures are those of LONG_RUN over `eval.sweep.horizons` horizons.
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
from stages.eval.config import LongRunConfig, LongRunRun, MeasureConfig
from stages.eval.epe import finite_mean
from stages.eval.generate import student_on
from stages.eval.items import Figures, Selection, folder_file, seeded
from stages.eval.long_run import averaged, back_and_forth, clip_drift, long_video, some_clips
from stages.eval.setting import read_setting, with_positions
from stages.eval.streaming import NoDecoder, chunks_of, clip_stream, filled_after
from stages.eval.timing import latency
from stages.records import Checkpoint
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
