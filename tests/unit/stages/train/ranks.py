"""The real methods on real shards in one process or in a distributed job of several: python -m
tests.unit.stages.train.ranks TASKS RANK."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from infra import engine
from infra.config import ComputeConfig
from infra.context import RunContext
from infra.files import CHECKOUT
from msmodel.causal import CausalDiT
from msmodel.dit import WanDiT
from stages.data.loader import Loader, LoaderConfig
from stages.records import OdePairs, ShardSet
from stages.train import adapt, dmd, teacher, tiny_vae
from stages.train.frames import CropSize, FrameLoader
from stages.train.ode_pairs import PairLoader, heldout_pairs
from stages.train.publish import publish
from tests.unit.stages.train.fakes import clips, decode, frame_batch
from tests.unit.stages.train.gathers import Gathers
from tests.unit.stages.train.methods import alive, dmd_config, frozen, pairs_in, small, teacher_config, tiny_config
from tests.unit.stages.train.shards import shard_set

WHOLE = small()
MODEL = replace(WHOLE, clip=replace(WHOLE.clip, frames=5))  # 3 chunks
SHARDED_FROM = 2000  # elements: of two narrow layers, ZeRO 3 would else shard nothing
LIVE, AHEAD = 8000, 2000  # elements: a fifth of the model, as at full size; the whole model would else stay gathered
DATA = 6, 2  # shards, clips in each
GLOBAL_BATCH = 4
COMMON = {"batch": 1, "global_batch": GLOBAL_BATCH, "log_steps": 1, "validate_steps": 1000, "picture_clips": 0}


@dataclass(frozen=True)
class Task:
    """One training. start: a save that it takes up."""

    name: str
    method: str
    steps: int
    save_steps: int = 1000
    compute: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Recorded(RunContext):
    """Keeps what is logged, and what ZeRO 3 gathered at each step."""

    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    gathers: Gathers = field(default_factory=Gathers)

    def emit(self, step: int, metrics: Mapping[str, float]) -> None:
        figures = {k: v for k, v in metrics.items() if k.startswith(("loss/", "grad_norm/"))}
        self.logged.append((step, figures))
        if figures:
            self.gathers.mark()

    def sharded(self, module: torch.nn.Module) -> torch.nn.Module:
        """Every weight, however small."""
        engine.KEPT_WHOLE = 0
        try:
            return super().sharded(module)
        finally:
            engine.KEPT_WHOLE = SHARDED_FROM


def perform(
    task: Task, root: Path, rank: int = 0, world: int = 1, gathers: Gathers | None = None
) -> list[tuple[int, dict[str, float]]]:
    """Trains and publishes into root/<task>/NAME; returns the losses and gradient norms of each step."""
    folder = root / task.name
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if task.start:
            shutil.copytree(task.start, folder / "saves" / Path(task.start).name)
    ctx = Recorded(folder, 3, rank, world, compute=ComputeConfig(**task.compute), gathers=gathers or Gathers())
    ctx.barrier()
    trained = TRAIN[task.method](task, root, ctx)
    for name, module in trained.items():
        publish(name, module, task.steps, ctx)
    return [entry for entry in ctx.logged if entry[1]]


def settings(task: Task) -> dict[str, Any]:
    return COMMON | {"steps": task.steps, "save_steps": task.save_steps, "lr": 1e-4} | dict(task.changes)


def train_teacher(task: Task, root: Path, ctx: RunContext) -> dict[str, torch.nn.Module]:
    own = {n: v for n, v in settings(task).items() if n != "steps"}
    cfg = teacher_config(**own | {"group_steps": 1, "phase1_steps": task.steps - 3, "phase2_steps": 2})
    dit = alive(WanDiT, MODEL)
    cfg.set_checkpointing(dit)
    loader = Loader((data(root),), cfg.batch, 3, ctx.rank, ctx.world_size, micro_steps=cfg.micro_steps(ctx.world_size))
    teacher.fit(teacher.TeacherRun(MODEL, cfg), dit, loader, clips(MODEL, 2, seed=99), decode, ctx)
    return {"dit": dit}


def train_dmd(task: Task, root: Path, ctx: RunContext) -> dict[str, torch.nn.Module]:
    """At the paper's learning rates: with its betas (0, 0.999) the first steps are the gradient's signs, and where it is next
    to zero another order of summing turns them round."""
    cfg = dmd_config(**settings(task) | {"lr": 2e-6, "critic_lr": 4e-7} | dict(task.changes))
    generator, critic, real = alive(CausalDiT, MODEL, 1), alive(WanDiT, MODEL, 2), frozen(alive(WanDiT, MODEL, 3))
    cfg.set_checkpointing(generator)
    cfg.set_checkpointing(critic)
    loader = Loader((data(root),), cfg.batch, 3, ctx.rank, ctx.world_size, micro_steps=cfg.micro_steps(ctx.world_size))
    assert isinstance(generator, CausalDiT)
    sizes = [p.numel() for p in real.parameters()]
    dmd.fit(dmd.DmdRun(MODEL, cfg), generator, critic, real, loader, clips(MODEL, 2, seed=99), decode, ctx)
    (root / task.name / f"teacher-{ctx.rank}.json").write_text(json.dumps({"sizes": sizes, "here": here(real)}))
    return {"generator": generator}


def here(module: torch.nn.Module) -> list[int]:
    """How many numbers of each weight lie on this rank: all, or between the calls of a sharded module its piece."""
    return [p.numel() + (p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0) for p in module.parameters()]


def train_adapt(task: Task, root: Path, ctx: RunContext) -> dict[str, torch.nn.Module]:
    cfg = adapt.AdaptConfig(**settings(task) | {"heldout_pairs": 2})
    pairs, student = OdePairs(str(root / "data"), 4, (1.0,), ""), alive(CausalDiT, MODEL)
    assert isinstance(student, CausalDiT)
    loader = PairLoader(pairs, cfg.batch, MODEL, 3, ctx.rank, ctx.world_size)
    adapt.fit(adapt.AdaptRun(MODEL, cfg), student, loader, heldout_pairs(pairs, 2, MODEL), decode, ctx)
    return {"student": student}


def train_tiny_vae(task: Task, root: Path, ctx: RunContext) -> dict[str, torch.nn.Module]:
    cfg = tiny_vae.TinyVAERun(MODEL, tiny_config(**settings(task), adversarial_weight=0.1))
    decoder = tiny_vae.initial_decoder(cfg, frame_batch(MODEL, 2, 0), 3)
    micro = cfg.tiny_vae.micro_steps(ctx.world_size)
    crop, place = CropSize(MODEL.vae, cfg.tiny_vae.latent_frames, cfg.tiny_vae.side_px), (ctx.rank, ctx.world_size)
    alone = LoaderConfig(decode_workers=0)
    loader = FrameLoader((data(root),), cfg.tiny_vae.batch, 3, *place, crop, alone, micro_steps=micro)
    tiny_vae.fit(cfg, decoder, loader, frame_batch(MODEL, 2, 99), ctx)
    return {"decoder": decoder}


TRAIN = {"teacher": train_teacher, "dmd": train_dmd, "adapt": train_adapt, "tiny_vae": train_tiny_vae}


def prepare(root: Path) -> None:
    """Shards and ODE pairs, for all tasks."""
    (root / "data").mkdir(parents=True)
    shards = shard_set(root / "data" / "shards", MODEL, *DATA)
    (root / "shards.json").write_text(json.dumps(asdict(shards)))
    pairs_in(root / "data", MODEL)


def data(root: Path) -> ShardSet:
    given = json.loads((root / "shards.json").read_text())
    return ShardSet(**given | {"shards": tuple(given["shards"])})


def run(tasks: Sequence[Task], root: Path, world: int) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Performs the tasks one after another in one distributed job; every task's losses by name."""
    (root / "tasks.json").write_text(json.dumps([asdict(t) for t in tasks]))
    (root / "store").unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.stages.train.ranks", str(root), str(world)]
    logs = [root / f"rank-{rank}.log" for rank in range(world)]
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=CHECKOUT, stderr=log.open("w")) for rank, log in enumerate(logs)
    ]
    try:
        for process, log in zip(ranks, logs, strict=True):
            assert process.wait(timeout=600) == 0, log.read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()
    return json.loads((root / "losses.json").read_text())


def main(root: Path, world: int, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=world)
    engine.KEPT_WHOLE, engine.LIVE, engine.AHEAD = SHARDED_FROM, LIVE, AHEAD
    engine._deepspeed()
    gathers, losses = Gathers(), {}
    gathers.watch()
    for entry in json.loads((root / "tasks.json").read_text()):
        task = Task(**entry)
        gathers.forget()
        losses[task.name] = perform(task, root, rank, world, gathers)
        if rank == 0:
            (root / task.name / "gathers.json").write_text(json.dumps(gathers.marks))
    if rank == 0:
        (root / "losses.json").write_text(json.dumps(losses))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
