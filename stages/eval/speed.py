"""Stage SPEED (once): throughput of the teacher at the paper's 50 steps, latency and throughput of the student.

"DiT" means from controls to latents, including the cache's clean pass. "With VAE" and "with tiny VAE" add decoding to
pixels. Clocks are read after the device has finished (paper, section 5: throughput and latency per chunk, mean and
spread).
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from msmodel.stream import DecoderMaker
from stages.contracts import Context, Resources, Stage, StageError
from stages.eval.config import SpeedRun
from stages.eval.generate import clip_noise, conditioning, student_on, teacher_on, vae_on
from stages.eval.items import EvalClip, Figures, Selection, folder_file, seeded
from stages.eval.streaming import ClipStream, chunks_of, clip_stream, filled_after, first_frame_seconds
from stages.eval.timing import latency, now, peak_memory
from stages.records import Checkpoint
from stages.train.sampling import Guidance, sample_teacher


@dataclass(frozen=True)
class SpeedInputs:
    """Inputs of stage SPEED. Models that are None are not timed."""

    selection: Selection
    teacher: Checkpoint | None = None
    student: Checkpoint | None = None
    tiny_vae: Checkpoint | None = None


def run(cfg: SpeedRun, inputs: SpeedInputs, ctx: Context) -> Figures:
    """Writes speed.json {settings, student, teacher}.

    The student is timed first, so that its peak memory does not include the teacher.
    """
    clip = first_clip(inputs.selection)
    out: dict[str, Any] = {"settings": settings(ctx), "student": None, "teacher": None}
    if inputs.student is not None:
        out["student"] = student_speed(cfg, inputs.student, inputs.tiny_vae, clip, ctx)
    if inputs.teacher is not None:
        out["teacher"] = teacher_speed(cfg, inputs.teacher, clip, ctx)
    file = folder_file(ctx.workdir, "speed.json")
    Path(file).write_text(json.dumps(out, indent=1))
    return Figures("speed", file)


def first_clip(selection: Selection) -> EvalClip:
    """Returns the first selected clip. Raises StageError if there is none."""
    chosen = [c for c in selection.clips if not c.spare]
    if not chosen:
        raise StageError("evaluation: no held-out clip was chosen, nothing to time")
    return chosen[0]


def settings(ctx: Context) -> dict[str, Any]:
    """Returns what a figure of speed depends on, apart from the model."""
    device = torch.cuda.get_device_name(ctx.device) if ctx.device.type == "cuda" else platform.machine() + " CPU"
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compiled": False,
        "batch": 1,
    }


def teacher_speed(cfg: SpeedRun, checkpoint: Checkpoint, clip: EvalClip, ctx: Context) -> dict[str, Any]:
    """Times whole clips of the teacher, after one warm-up step.

    It uses speed.teacher_steps and the paper's joint guidance.
    """
    teacher = teacher_on(checkpoint, ctx.device, ctx.dtype)
    vae, dtype = vae_on(cfg.model.vae, ctx.device), next(teacher.parameters()).dtype
    cond = conditioning([clip], "tracks", cfg.model, ctx.seed, ctx.device)
    noise = clip_noise([clip], cfg.model, ctx.seed, ctx.device)
    vae.decode(sample_teacher(teacher, cond, noise, 1, Guidance(), cfg.model).float())
    sampling = decoding = 0.0
    for _ in range(cfg.speed.teacher_rollouts):
        began = now(ctx.device)
        latents = sample_teacher(teacher, cond, noise, cfg.speed.teacher_steps, Guidance(), cfg.model)
        sampled = now(ctx.device)
        vae.decode(latents.float())
        sampling, decoding = sampling + sampled - began, decoding + now(ctx.device) - sampled
    frames = cfg.speed.teacher_rollouts * cfg.model.clip.frames
    return {
        "fps": frames / sampling,
        "fps_with_vae": frames / (sampling + decoding),
        "steps": cfg.speed.teacher_steps,
        "evaluations": 3 * cfg.speed.teacher_steps,
        "rollouts": cfg.speed.teacher_rollouts,
        "seconds_a_clip": sampling / cfg.speed.teacher_rollouts,
        "dtype": str(dtype),
    }


def student_speed(
    cfg: SpeedRun, checkpoint: Checkpoint, tiny_vae: Checkpoint | None, clip: EvalClip, ctx: Context
) -> dict[str, Any]:
    """Times the student: latency and throughput per decoder, time to first frame, peak memory."""
    with peak_memory(ctx.device) as peak:
        student = student_on(checkpoint, ctx.device, ctx.dtype)
        stream = clip_stream(student, clip, cfg.model, ctx.seed, ctx.device)
        full = decoder_speed(cfg, stream, vae_on(cfg.model.vae, ctx.device), ctx)
    out = {
        "fps": full["fps"],
        "chunk_latency_ms": full["chunk_latency_ms"],
        "ttff_ms": full["ttff_ms"],
        "fps_with_vae": full["fps_decoded"],
        "chunk_latency_with_vae_ms": full["chunk_latency_decoded_ms"],
        "fps_with_tiny_vae": None,
        "peak_memory_mb": peak.megabytes,
        "peak_memory_of": peak.what,
        "chunks": cfg.speed.chunks,
        "steps": student.cfg.student.steps,
    }
    if tiny_vae is not None:
        from msmodel.tiny_vae import load_tiny_vae

        tiny = decoder_speed(cfg, stream, load_tiny_vae(tiny_vae.folder).eval().to(ctx.device), ctx)
        out["fps_with_tiny_vae"] = tiny["fps_decoded"]
        out["chunk_latency_with_tiny_vae_ms"] = tiny["chunk_latency_decoded_ms"]
        out["ttff_with_tiny_vae_ms"] = tiny["ttff_ms"]
    return out


def decoder_speed(cfg: SpeedRun, stream: ClipStream, vae: DecoderMaker, ctx: Context) -> dict[str, Any]:
    """Times one stream of speed.chunks chunks with a full cache, after warm-up rollouts of one horizon each."""
    mine = stream.student.cfg.student
    for i in range(cfg.speed.warmup_rollouts):
        chunks_of(stream.session(vae, seeded(ctx.seed, "warm-up", i)), cfg.model.chunks)
    ttff, session = first_frame_seconds(stream, vae, seeded(ctx.seed, "speed"))
    chunks_of(session, filled_after(mine) - 1)
    chunks = chunks_of(session, cfg.speed.chunks)
    dit = [c.seconds_dit for c in chunks]
    decoded = [c.seconds_dit + c.seconds_decode for c in chunks]
    frames = mine.chunk * cfg.model.vae.stride_t * len(chunks)
    return {
        "fps": frames / sum(dit),
        "chunk_latency_ms": asdict(latency(dit)),
        "fps_decoded": frames / sum(decoded),
        "chunk_latency_decoded_ms": asdict(latency(decoded)),
        "ttff_ms": ttff * 1000,
    }


SPEED = Stage("eval_speed", version=1, how="once", run=run, resources=Resources(cpus=2, threads=2))
