"""Fake stages that count what they do in files, and a driver to kill: python fakes.py RUNS MODE."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from infra.codec import Codec
from infra.config import ComputeConfig
from infra.executor import Executor, StageTask
from infra.progress import PlainConsole
from infra.store import Store
from stages.contracts import Reject, Resources, Stage, StageError
from stages.records import Checkpoint, Clip


@dataclass(frozen=True)
class FakeConfig:
    seconds: float = 0.0
    scale: float = 1.0
    fatal: str = ""


@dataclass(frozen=True)
class Item:
    name: str
    number: int


TYPES = (Checkpoint, Clip, Item)


def note(folder: Path, line: str) -> None:
    """Appends a line in one write, so that a kill leaves whole lines."""
    with open(folder / "done.txt", "a") as f:
        f.write(line + "\n")


def square(cfg: FakeConfig, item: Item, ctx) -> Item:
    """Even numbers only. "die" kills its worker the first time, "bug" breaks, "empty" is rejected."""
    time.sleep(cfg.seconds)
    if item.name == "empty":
        raise Reject("holds nothing")
    if item.name == "bug":
        raise TypeError("planted bug")
    if item.name == "poison" or (item.name == "die" and not (ctx.workdir / "died").exists()):
        (ctx.workdir / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    ctx.emit(0, {"number": item.number})
    note(ctx.workdir, item.name)
    return Item(item.name + "2", item.number**2)


def steps(cfg: FakeConfig, inputs: object, ctx) -> Checkpoint:
    """Ten "training" steps, each saved; a step done twice would show in done.txt. On a distributed job it dies once at
    step 5."""
    if cfg.fatal:
        raise StageError(cfg.fatal)
    state = ctx.workdir / "state.json"
    step, value = json.loads(state.read_text()) if state.exists() else (0, 0.0)
    with ctx.progress("steps", 10) as progress:
        while step < 10:
            time.sleep(cfg.seconds)
            step, value = step + 1, value * 0.5 + cfg.scale * step
            if cfg.scale == 2.0 and step == 5 and not (ctx.workdir / "died").exists():
                (ctx.workdir / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            aside = state.with_suffix(".aside")
            aside.write_text(json.dumps([step, value]))
            aside.rename(state)
            note(ctx.workdir, str(step))
            ctx.emit(step, {"value": value})
            progress.advance(1)
    module = torch.nn.Linear(2, 1)
    engine = ctx.engine(module, torch.optim.AdamW(module.parameters()), 1.0)
    engine.backward(engine.module(torch.ones(1, 2)).sum())
    engine.step()
    ctx.log(f"engine {type(engine).__name__}, threads {torch.get_num_threads()}")
    return Checkpoint("fake", str(ctx.workdir), step, "d", metrics={"value": value})


def halves(cfg: FakeConfig, item: Item, ctx) -> tuple[Item, ...]:
    """Two records an item, so that the next stage has twice as many."""
    out = square(cfg, item, ctx)
    return tuple(Item(f"{out.name}-{i}", out.number + i) for i in range(2))


def each(records) -> list[Item]:
    return list(records)


SLOW = FakeConfig(seconds=0.15)  # long enough to be killed in the middle on a busy machine
HALVES = Stage("halves", 1, "per_item", halves)
SQUARE = Stage("square", 1, "per_item", square)
ONCE = Stage("once", 1, "once", steps)
TIMED = Stage("timed", 1, "once", steps, Resources(cpus=2))
DISTRIBUTED = Stage("distributed", 1, "distributed", steps, Resources(threads=2))


def items(count: int) -> list[Item]:
    return [Item(f"i{n}", n) for n in range(count)]


def world(root: Path, executor: str = "local", stream=None, **compute) -> tuple[Store, Executor]:
    store = Store(root, Codec(TYPES, root))
    return store, Executor(store, ComputeConfig(executor=executor, **compute), PlainConsole(stream))


def work(store: Store, stage: Stage, cfg: FakeConfig, inputs: object, seed: int = 0) -> StageTask:
    return StageTask(stage, cfg, inputs, store.step(stage.name, stage.version, cfg, inputs, seed), seed)


def drive(root: Path, stage: Stage, cfg: FakeConfig, inputs: object, executor: str = "local", **compute):
    store, runner = world(root, executor, **compute)
    job = work(store, stage, cfg, inputs)
    with store.lock(job.step, print):
        found = store.load(job.step)
        return found if found is not None else runner.run(job, None, {})


if __name__ == "__main__":
    chosen = {"square": SQUARE, "once": ONCE, "distributed": DISTRIBUTED}[sys.argv[2]]
    given = items(30) if chosen is SQUARE else ()
    print(drive(Path(sys.argv[1]), chosen, SLOW, given, sys.argv[3]).records)
