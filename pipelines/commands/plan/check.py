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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.settings import Config, load
from infra.context import RunContext
from infra.files import CHECKOUT
from msmodel.causal import CausalDiT
from msmodel.dit import WanDiT
from msmodel.tiny_vae import TinyDecoder
from pipelines.commands.options import OK
from pipelines.commands.plan import steps
from pipelines.commands.plan.loads import TRAININGS, case, tracks
from pipelines.commands.plan.memory import inference_memory, layout, training_memory
from pipelines.commands.plan.steps import parameters
from pipelines.commands.plan.trace import Counter
from stages import eval as ev
from stages.eval import generate
from stages.train import adapt, dmd, teacher, tiny_vae
from stages.train.publish import fresh, frozen_decoder, publish

CPU = torch.device("cpu")
TOLERANCE = 0.15
SHORT = (
    "teacher.phase1_steps=2",
    "teacher.phase2_steps=0",
    "teacher.context_share=0",
    "teacher.picture_steps=2",
    "dmd.steps=2",
    "dmd.ratio=1",
    "adapt.steps=2",
    "adapt.own_share=1",
    "tiny_vae.steps=2",
    "eval.generate.steps=2",
)
ADAMW = ("teacher.optimizer=adamw", "dmd.optimizer=adamw", "adapt.optimizer=adamw", "tiny_vae.optimizer=adamw")
SIZE = ("dit.dim=768", "dit.ffn_dim=3072", "dit.heads=12", "dit.layers=10", "clip.frames=17")
FEW = ("batch=1", "picture_clips=1")
MIDDLE = (
    *ADAMW,
    *SIZE,
    *(f"{name}.{setting}" for name in ("teacher", "adapt", "dmd") for setting in FEW),
    "teacher.probe_clips=1",
    "adapt.heldout_pairs=1",
    "dmd.heldout_clips=1",
    "tiny_vae.width=32",
)
CASES: dict[str, tuple[str, Sequence[str]]] = {
    "nano teacher": ("nano", ()),
    "nano dmd": ("nano", ()),
    "nano teacher, AdamW, recomputed": ("nano", (*ADAMW, "teacher.checkpoint_layers=true")),
    "middle teacher": ("nano", MIDDLE),
    "middle teacher, recomputed": ("nano", (*MIDDLE, "teacher.checkpoint_layers=true")),
    "middle dmd": ("nano", MIDDLE),
    "middle dmd, recomputed": ("nano", (*MIDDLE, "dmd.checkpoint_layers=true")),
    "nano adapt": ("nano", ()),
    "middle adapt": ("nano", MIDDLE),
    "middle adapt, recomputed": ("nano", (*MIDDLE, "adapt.checkpoint_layers=true")),
    "nano tiny_vae": ("nano", ()),
    "middle tiny_vae": ("nano", MIDDLE),
    "middle eval_generate": ("nano", MIDDLE),
}
# Makes malloc return freed tensors to the system at once, so that resident memory equals live memory.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


class Repeated:
    """A loader (stages.train.method.Loader) that repeats the same batch without end."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batch.to("cpu")

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Does nothing: this loader has no position."""


def configured(named: str) -> tuple[str, Config]:
    """Returns (stage, configuration) of a case."""
    preset, overrides = CASES[named]
    return named.split(",")[0].split()[1], load(preset, [*SHORT, *overrides])


def predicted(named: str) -> float:
    """Returns the bytes that the plan gives for a case."""
    (name, cfg) = configured(named)
    where = layout(cfg, 1, gpu=False)
    if name in TRAININGS:
        return training_memory(cfg, name, where).peak
    return next(m.peak for m in inference_memory(cfg, where) if m.name == name)


def train(cfg: Config, name: str, workdir: Path) -> None:
    """Runs the steps of one training with all models and tensors that its stage holds, or the generation of a clip. name:
    of the stage."""
    ctx = RunContext(workdir, seed=0, compute=cfg.compute)
    if name not in TRAININGS:
        return generate_clips(cfg, ctx)
    model, given = cfg.model, case(cfg, name, gpu=False)
    own, size = given.own, vars(given.own)[steps.HELDOUT[name]]
    if cfg.compute.engine == "deepspeed" and not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    loader = Repeated(steps.make_batch(given, own.batch, CPU))
    if name == "tiny_vae":
        decoder, whole = TinyDecoder(model.vae, own.width), replace(own, latent_frames=0, side_px=0)
        heldout = steps.crops(model, whole, size, CPU)
        tiny_vae.fit(tiny_vae.TinyVAERun(model, own), decoder, loader, heldout, ctx)
        return None
    heldout, decode = steps.make_batch(given, size, CPU), frozen_decoder(model.vae, ctx.device)
    net: Any = fresh(WanDiT if name == "teacher" else CausalDiT, model, 0)
    own.set_checkpointing(net)
    if name == "teacher":
        teacher.fit(teacher.TeacherRun(model, own), net, loader, heldout, decode, ctx)
    elif name == "adapt":
        adapt.fit(adapt.AdaptRun(model, own), net, loader, heldout, decode, ctx)
    else:
        critic, frozen = fresh(WanDiT, model, 1), fresh(WanDiT, model, 2).eval().requires_grad_(False)
        own.set_checkpointing(critic)
        dmd.fit(dmd.DmdRun(model, own, cfg.guidance), net, critic, frozen, loader, heldout, decode, ctx)
    return None


def generate_clips(cfg: Config, ctx: RunContext) -> None:
    """Generates a random clip with the teacher, then with the student, from files as the evaluation has them."""
    model, given = cfg.model, steps.clips(cfg.model, 1, tracks(cfg), CPU)
    file, paths = ctx.workdir / "clip.npz", ctx.workdir / "tracks.npz"
    frames = np.zeros((model.clip.frames, model.clip.height, model.clip.width, 3), np.uint8)
    arrays = {name: vars(given)[name][0].numpy() for name in ("latents", "image", "text")}
    np.savez(file, frames=frames, **arrays)  # type: ignore[arg-type]
    np.savez(paths, xy_px=given.xy_px[0].numpy(), visible=given.visible[0].numpy())
    clip = ev.EvalClip("random", "real", str(file), (("tracks", str(paths)),))
    for name, kind in (("teacher", WanDiT), ("student", CausalDiT)):
        checkpoint = publish(name, fresh(kind, model, 0), 0, ctx)
        item = ev.EvalItem(name, "real", name, "tracks", (clip,), checkpoint)
        generate.run(ev.GenerateRun(model, cfg.eval.generate), item, ctx)


def measured(named: str) -> dict[str, float]:
    """Returns the peak bytes of a case: of tensors, and of the process. May be called only once per process."""
    name, cfg = configured(named)
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
    for named in CASES:
        foretold, cfg = predicted(named), configured(named)[1]
        found = json.loads(_alone(named))
        off = {kind: foretold / found[kind] - 1 for kind in ("tensors", "process")}
        worst = max(worst, *map(abs, off.values()))
        columns = "".join(f"{found[kind] / 2**20:8.0f} ({off[kind]:+4.0%})" for kind in off)
        print(f"{named:34}{parameters(cfg.model)[0] / 1e6:8.1f} M{foretold / 2**20:11.0f}{columns}", flush=True)
    print(f"in MiB; in brackets how far the prediction lies from it. Worst: {worst:.1%} (at most {TOLERANCE:.0%})")
    return int(worst > TOLERANCE)


def _alone(case: str) -> str:
    """Measures a case in a new process and returns the last line of its output. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "pipelines", "plan-check", case]
    done = subprocess.run(command, cwd=CHECKOUT, env=os.environ | ALLOCATOR, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]
