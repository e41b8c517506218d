"""make plan-check: compares the memory that `make plan` predicts with that of real training steps on this machine's
CPU.

Each case trains two steps in a separate process, with random weights and random clips, through the stage's own code and
DeepSpeed. "tensors" is the peak of the bytes of all live tensors, counted operation by operation. "process" is the
increase of the peak resident memory (the kernel's VmHWM) over the resident memory after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from configs.settings import Config, load
from infra.context import RunContext
from infra.files import CHECKOUT
from msmodel.batch import Batch
from msmodel.causal import CausalDiT
from msmodel.config import CLIP_TOKENS, ModelConfig
from msmodel.dit import WanDiT
from pipelines.commands.options import OK
from pipelines.commands.plan.memory import layout, training_memory
from pipelines.commands.plan.pieces import parameters
from pipelines.commands.plan.trace import Counter
from stages.train import dmd, teacher
from stages.train.publish import fresh, frozen_decoder

TOLERANCE = 0.15
SHORT = (
    "teacher.phase1_steps=2",
    "teacher.phase2_steps=0",
    "teacher.context_share=0",
    "teacher.picture_steps=2",
    "dmd.steps=2",
    "dmd.ratio=1",
)
ADAMW = ("teacher.optimizer=adamw", "dmd.optimizer=adamw")
SIZE = ("dit.dim=768", "dit.ffn_dim=3072", "dit.heads=12", "dit.layers=10", "clip.frames=17")
FEW = ("batch=1", "picture_clips=1")
MIDDLE = (
    *ADAMW,
    *SIZE,
    *(f"{name}.{setting}" for name in ("teacher", "dmd") for setting in FEW),
    "teacher.probe_clips=1",
    "dmd.heldout_clips=1",
)
CASES: dict[str, tuple[str, Sequence[str]]] = {
    "nano teacher": ("nano", ()),
    "nano dmd": ("nano", ()),
    "nano teacher, AdamW, recomputed": ("nano", (*ADAMW, "teacher.checkpoint_layers=true")),
    "middle teacher": ("nano", MIDDLE),
    "middle teacher, recomputed": ("nano", (*MIDDLE, "teacher.checkpoint_layers=true")),
    "middle dmd": ("nano", MIDDLE),
    "middle dmd, recomputed": ("nano", (*MIDDLE, "dmd.checkpoint_layers=true")),
}
# Makes malloc return freed tensors to the system at once, so that resident memory equals live memory.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


class RandomClips:
    """A loader (stages.train.method.Loader) that repeats the same random clips without end."""

    def __init__(self, model: ModelConfig, count: int, tracks: int) -> None:
        generator = torch.Generator().manual_seed(0)
        size = (count, model.vae.z_channels, model.latent_frames, model.latent_height, model.latent_width)
        corner = torch.tensor([model.clip.width, model.clip.height])
        self.batch = Batch(
            latents=torch.randn(size, generator=generator),
            image=torch.randn(size, generator=generator),
            text=torch.randn(count, model.text.length, model.text.dim, generator=generator),
            xy_px=torch.rand(count, model.clip.frames, tracks, 2, generator=generator) * corner,
            visible=torch.ones(count, model.clip.frames, tracks, dtype=torch.bool),
            real=torch.ones(count, dtype=torch.bool),
            clip_ids=tuple(f"random{i}" for i in range(count)),
            image_tokens=torch.randn(count, CLIP_TOKENS, model.dit.clip_dim, generator=generator)
            if model.dit.clip_dim
            else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch.to("cpu")

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Does nothing: this loader has no position."""


def configured(case: str) -> tuple[str, Config]:
    """Returns (training, configuration) of a case."""
    preset, overrides = CASES[case]
    return ("dmd" if " dmd" in case else "teacher"), load(preset, [*SHORT, *overrides])


def train(cfg: Config, name: str, workdir: Path) -> None:
    """Runs the steps of one training, with all models and tensors that its stage holds. name: "teacher" or "dmd"."""
    model, tracks = cfg.model, cfg.data.grid_rows * cfg.data.grid_cols
    ctx = RunContext(workdir, seed=0, compute=cfg.compute)
    if cfg.compute.engine == "deepspeed" and not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    decode = frozen_decoder(model.vae, ctx.device)
    if name == "teacher":
        dit = fresh(WanDiT, model, 0)
        cfg.teacher.set_checkpointing(dit)
        heldout, loader = (RandomClips(model, n, tracks) for n in (cfg.teacher.probe_clips, cfg.teacher.batch))
        teacher.fit(teacher.TeacherRun(model, cfg.teacher), dit, loader, heldout.batch, decode, ctx)
        return
    generator, critic = fresh(CausalDiT, model, 0), fresh(WanDiT, model, 1)
    assert isinstance(generator, CausalDiT)
    cfg.dmd.set_checkpointing(generator)
    cfg.dmd.set_checkpointing(critic)
    frozen = fresh(WanDiT, model, 2).eval().requires_grad_(False)
    heldout, loader = (RandomClips(model, n, tracks) for n in (cfg.dmd.heldout_clips, cfg.dmd.batch))
    run = dmd.DmdRun(model, cfg.dmd, cfg.guidance)
    dmd.fit(run, generator, critic, frozen, loader, heldout.batch, decode, ctx)


def measured(case: str) -> dict[str, float]:
    """Returns the peak bytes of a case: of tensors, and of the process. May be called only once per process."""
    name, cfg = configured(case)
    warm_up()
    before, counter = resident(), Counter()
    with tempfile.TemporaryDirectory() as folder, counter:
        train(cfg, name, Path(folder))
    return {"tensors": counter.peak, "process": resident("VmHWM") - before}


def warm_up() -> None:
    """Imports and starts everything that a training needs besides its tensors, and resets the kernel's peak (VmHWM)."""
    with tempfile.TemporaryDirectory() as folder:
        train(load("debug", ["teacher.phase1_steps=1", "teacher.phase2_steps=0"]), "teacher", Path(folder))
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str = "VmRSS") -> int:
    """Returns the resident bytes of this process. field: "VmRSS" for the present value, "VmHWM" for the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "case",
        nargs="?",
        choices=sorted(CASES),
        help="measure this one in this process (default: all, each in its own)",
    )


def execute(options: argparse.Namespace) -> int:
    """Measures the cases and prints the comparison. Returns 1 where the error of a prediction exceeds TOLERANCE, else
    0."""
    if options.case:
        print(json.dumps(measured(options.case)))
        return OK
    worst = 0.0
    print(f"{'':34}parameters  predicted     tensors        process")
    for case in CASES:
        name, cfg = configured(case)
        predicted = training_memory(cfg, name, layout(cfg, 1, gpu=False)).peak
        found = json.loads(_alone(case))
        off = {kind: predicted / found[kind] - 1 for kind in ("tensors", "process")}
        worst = max(worst, *map(abs, off.values()))
        columns = "".join(f"{found[kind] / 2**20:8.0f} ({off[kind]:+4.0%})" for kind in off)
        print(f"{case:34}{parameters(cfg.model)[0] / 1e6:8.1f} M{predicted / 2**20:11.0f}{columns}", flush=True)
    print(f"in MiB; in brackets how far the prediction lies from it. Worst: {worst:.1%} (at most {TOLERANCE:.0%})")
    return int(worst > TOLERANCE)


def _alone(case: str) -> str:
    """Measures a case in a new process and returns the last line of its output. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "pipelines", "plan-check", case]
    done = subprocess.run(command, cwd=CHECKOUT, env=os.environ | ALLOCATOR, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]
