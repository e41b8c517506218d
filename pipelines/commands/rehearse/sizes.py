"""Shrinks a full preset for the rehearsal: what is made smaller, and what is replaced.

Everything that these tables do not name is as the preset has it: classes, layouts, guidance, losses, schedules, ZeRO
stage, offload, placement of models, batches per GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.settings import Config

RANKS = 2  # processes of a training
MICRO_STEPS = 2  # of a training step, so that gradients are accumulated
CHUNKS = 3  # of a clip: the third one no longer sees the second's cache slot as it was
STEPS = {  # of each training; DMD's generator is updated in every dmd.ratio-th step
    "teacher.phase1_steps": 6,
    "teacher.phase2_steps": 1,
    "adapt.steps": 2,
    "tiny_vae.steps": 2,
}
SIZES: dict[str, Any] = {
    "dit.dim": 64,
    "dit.ffn_dim": 128,
    "dit.heads": 2,
    "dit.layers": 2,
    "text.dim": 24,
    "text.length": 16,
    "data.train_scenes": 2,
    "data.heldout_scenes": 1,
    "data.motions": 2,
    "data.objects": 2,
    "data.object_points": 4,
    "data.grid_rows": 8,
    "data.grid_cols": 8,
    "data.clips_per_shard": 2,
    "data.heldout_share": 0.3,
    "ode.pairs": 8,
    "ode.heldout_pairs": 4,
    "ode.batch": 2,
    "eval.select.clips": 2,
    "eval.select.counterfactual_clips": 1,
    "eval.select.counterfactuals": "[swap,pan]",
    "eval.select.tracks": 16,
    "eval.select.batch": 2,
    "eval.select.motions.grid_rows": 8,
    "eval.select.motions.grid_cols": 8,
    "eval.generate.steps": 2,
    "eval.measure.raster_height": 64,
    "eval.measure.raster_width": 96,
    "eval.measure.fvd_frames": 9,
    "eval.measure.perceptual_every": 8,
    "eval.speed.teacher_steps": 2,
    "eval.speed.chunks": 4,
    "eval.speed.warmup_rollouts": 1,
    "eval.long_run.clips": 1,
    "eval.long_run.horizons": 2,
    "eval.long_run.chunks": 8,
    "eval.long_run.warmup_chunks": 2,
    "eval.report.show_clips": 1,
    "eval.report.video_height": 64,
    "teacher.picture_steps": 2,
    "tiny_vae.width": 4,
    "tiny_vae.side_px": 48,
    "tiny_vae.latent_frames": 3,
    "tiny_vae.fit_clips": 2,
    "loader.decode_workers": 1,
}
EACH = {"log_steps": 1, "save_steps": 1}  # of every training
TRACKS = {"tracks_low": 8, "tracks_high": 32}  # of every training's augment
HELDOUT = ("teacher.probe_clips", "adapt.heldout_pairs", "dmd.heldout_clips", "tiny_vae.heldout_clips")
PICTURES = ("teacher.picture_clips", "adapt.picture_clips", "dmd.picture_clips", "tiny_vae.picture_clips")


def shrunk(cfg: Config) -> dict[str, Any]:
    """Returns the settings that make a preset small, by dotted key."""
    prefix = int(cfg.model.image_alone)
    latent_frames = prefix + CHUNKS * cfg.student.chunk
    out = dict(SIZES) | STEPS | {"dmd.steps": cfg.dmd.ratio, "ode.solver_steps": cfg.student.steps}
    out |= {"clip.height": 4 * cfg.vae.stride_s, "clip.width": 6 * cfg.vae.stride_s}
    out |= {"clip.frames": 1 + (latent_frames - 1) * cfg.vae.stride_t}
    for name in ("teacher", "adapt", "dmd", "tiny_vae"):
        out[f"{name}.global_batch"] = vars(cfg)[name].batch * RANKS * MICRO_STEPS
        out |= {f"{name}.{key}": value for key, value in EACH.items()}
    for name in ("teacher", "ode", "dmd"):
        out |= {f"{name}.augment.{key}": value for key, value in TRACKS.items()}
    return out | dict.fromkeys(HELDOUT, 2) | dict.fromkeys(PICTURES, 1)


def replaced(cfg: Config, weights: Mapping[str, Path], hub: Path, synthetic: Path) -> dict[str, Any]:
    """Returns the settings that put models with random weights and a stand-in for CoTracker in place of downloads.

    weights: setting that names a source -> folder of its stand-in. hub: of the tracker. synthetic: clips that stand for
    those of a larger video model.
    """
    out: dict[str, Any] = {setting: str(folder) for setting, folder in weights.items()}
    for group in ("data", "eval.measure"):
        out[f"{group}.tracker.hub"] = str(hub)
        out[f"{group}.tracker.checkpoint"] = str(hub / "weights.pth")
    if not cfg.data.synthetic:
        out["data.synthetic"] = str(synthetic)
    return out | {"compute.workers": RANKS, "compute.precision": "bf16"}


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Returns settings as they are written on the command line."""
    return [f"{key}={value}" for key, value in settings.items()]
