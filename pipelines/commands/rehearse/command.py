"""motionstream rehearse: runs a full preset end to end at a small size, on two CPU processes, as a user runs it.

The same commands run with the preset's own classes, file layouts and options: Ray, DeepSpeed's bfloat16 engine under the
preset's ZeRO stage, saves and resuming (the first run is killed in the teacher's training), evaluation and export. Models
have random weights, so that no figure means anything. It ends with what it could not exercise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from configs.settings import Config, ConfigError, load
from pipelines.commands.options import FAILED, OK, UsageError, add_settings, configured
from pipelines.commands.rehearse import cotracker_hub, sizes, weights
from stages.data.files import write_mp4
from stages.trackers import TRACKERS

TARGETS = ("data", "teacher", "distill", "eval")
VIDEOS, SYNTHETIC, SECONDS, SIDE_PX = 6, 3, 6.0, (120, 180)  # of the clips that it makes
ALWAYS_MISSING = (
    "CUDA: its kernels, memory limits, streams, torch.compile, flash-attn in place of SDPA",
    "NCCL, and more than one machine: the two processes talk through gloo",
    "downloads from the hub: models are read from folders of the same layout",
)


@dataclass(frozen=True)
class Rehearsal:
    """One rehearsal. folder: of everything that it makes. settings: of the small preset, by dotted key."""

    preset: str
    folder: Path
    settings: Mapping[str, Any]
    given: Sequence[str]

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def command(self, *words: str) -> list[str]:
        """Returns a command line of motionstream with the rehearsal's preset and settings."""
        common = ["--preset", self.preset, "--runs", str(self.runs)]
        return [sys.executable, "-m", "pipelines", *words, *common, *sizes.as_words(self.settings), *self.given]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)


def execute(options: argparse.Namespace) -> int:
    """Runs the rehearsal. Returns 1 where a command fails, else 0."""
    cfg = configured(options)
    rehearsal = prepare(cfg, options.settings, Path(options.runs).expanduser().resolve() / "rehearsal" / options.preset)
    started = time.monotonic()
    print(f"rehearsal of {cfg.preset} in {rehearsal.folder}", flush=True)
    whole = rehearsal.command("run", *TARGETS, "--src", str(rehearsal.folder / "videos"))
    kill_in_training(whole, rehearsal.runs / cfg.preset)
    print("rehearsal: killed in the teacher's training; the same command again", flush=True)
    for command in (whole, rehearsal.command("export")):
        done = subprocess.run(command, check=False)
        if done.returncode:
            print(f"rehearsal of {cfg.preset}: failed", file=sys.stderr)
            return FAILED
    report = json.loads((rehearsal.runs / cfg.preset / "report" / "report.json").read_text())
    print(
        f"rehearsal of {cfg.preset}: passed in {time.monotonic() - started:.0f} s ({report['dataset']['clips']} clips)"
    )
    for line in missing(cfg, rehearsal):
        print(line)
    return OK


def prepare(cfg: Config, given: Sequence[str], folder: Path) -> Rehearsal:
    """Writes models and videos into folder, which is emptied first, and returns the rehearsal.

    Raises UsageError for a preset that runs on a CPU as it is, or that names a class of model that is not known here.
    """
    if cfg.vae.source.startswith("embedded:"):
        raise UsageError(
            f"rehearse: the preset {cfg.preset} runs on a CPU as it is (`make data teacher distill eval "
            f"PRESET={cfg.preset}`); a rehearsal is for the presets of full size"
        )
    small = small_preset(cfg, given)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        stand_ins = write_models(small, folder / "models")
    except ValueError as error:
        raise UsageError(f"rehearse: {error}") from None
    hub = write_tracker(cfg, folder / "tracker")
    write_videos(folder / "videos", VIDEOS, 0, small)
    write_videos(folder / "synthetic", SYNTHETIC, VIDEOS, small)
    named = {word.partition("=")[0] for word in given}
    changes = sizes.shrunk(cfg) | sizes.replaced(cfg, stand_ins, hub, folder / "synthetic")
    return Rehearsal(cfg.preset, folder, {k: v for k, v in changes.items() if k not in named}, given)


def small_preset(cfg: Config, given: Sequence[str]) -> Config:
    """Returns the shrunk preset. Raises UsageError with every inconsistency."""
    words = sizes.as_words(sizes.shrunk(cfg) | {"compute.workers": sizes.RANKS})
    try:
        return load(cfg.preset, [*words, *given])
    except ConfigError as error:
        raise UsageError(f"rehearse: {error}") from None


def write_models(cfg: Config, folder: Path) -> dict[str, Path]:
    """Writes every model that the preset names, with random weights, and returns {setting: folder}."""
    out = {
        "vae.source": weights.write_vae(folder / "vae", cfg.vae),
        "text.source": weights.write_umt5(folder / "text", cfg.text.dim),
        "teacher.init": weights.write_transformer(folder / "transformer", cfg.teacher.init, cfg.model),
    }
    if cfg.dit.clip_dim:
        out["image_encoder.source"] = weights.write_clip(folder / "clip", cfg.dit.clip_dim)
    return out


def write_tracker(cfg: Config, folder: Path) -> Path:
    """Returns the tracker's hub folder: the preset's if it is a folder, else a stand-in with CoTracker's interface."""
    if Path(cfg.data.tracker.hub).is_dir() or not TRACKERS[cfg.data.tracker.name].network:
        return Path(cfg.data.tracker.hub)
    folder.mkdir()
    cotracker_hub.write_hub(folder)
    torch.save(cotracker_hub.weights(cfg.data.tracker.name, speed=(0.5, 0.2)), folder / "weights.pth")
    return folder


def write_videos(folder: Path, count: int, first: int, cfg: Config) -> None:
    """Writes videos of panning textures at the clip's frame rate, each with a texture of its own."""
    folder.mkdir()
    height, width = SIDE_PX
    frames = round(SECONDS * cfg.clip.fps)
    for number in range(first, first + count):
        noise = np.random.default_rng(number).integers(0, 256, (16, 48, 3)).astype(np.uint8)
        texture = cv2.resize(noise, (width + frames, height), interpolation=cv2.INTER_CUBIC)
        pan = np.stack([texture[:, shift : shift + width] for shift in range(frames)])
        write_mp4(folder / f"video-{number:02d}.mp4", pan, cfg.clip.fps)


def kill_in_training(command: Sequence[str], root: Path) -> None:
    """Runs the command and kills it with all its processes once the teacher's training has saved a state."""
    driver = subprocess.Popen(command, start_new_session=True)
    try:
        while driver.poll() is None and not list(root.glob("teacher/*/saves/step-*")):
            time.sleep(0.1)
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
    except BaseException:
        os.killpg(driver.pid, signal.SIGTERM)
        raise
    finally:
        driver.wait()


def missing(cfg: Config, rehearsal: Rehearsal) -> list[str]:
    """Returns what of the preset the rehearsal did not exercise, as lines of text."""
    full = {key: _value(cfg, key) for key in rehearsal.settings}
    smaller = sorted(key for key in sizes.shrunk(cfg) if key in full)
    others = [f"{key} {full[key] or '(none)'}" for key in full if key not in smaller]
    lines = ["not exercised:", *(f"  {what}" for what in ALWAYS_MISSING)]
    lines += [f"  the preset's own {what}" for what in others]
    return [*lines, f"  full sizes and numbers of steps: {', '.join(smaller)}"]


def _value(cfg: Config, key: str) -> Any:
    value: Any = cfg
    for part in key.split("."):
        value = vars(value)[part]
    return value
