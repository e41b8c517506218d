"""Fake stages that leave behind on which node of a cluster they ran."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from stages.contracts import Resources, Stage
from stages.records import Checkpoint
from tests.unit.infra.fakes import FakeConfig, Item, note

STEPS, SAVE_EVERY = 10, 2
LOST_AT = 5  # two ranks get no further than this: one of their nodes must go; step 4 is saved


def node_id() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


def item(cfg: FakeConfig, given: Item, ctx) -> Item:
    time.sleep(cfg.seconds)
    note(ctx.workdir, node_id())
    return Item(given.name, given.number + 1)


def march(cfg: FakeConfig, inputs: object, ctx) -> Checkpoint:
    """Ten steps in which all ranks must take part; rank 0 saves every second one. The end depends on no rank's number.

    Two ranks wait at LOST_AT for ever: how soon a worker notices that its node is gone is Ray's affair.
    """
    state = ctx.workdir / "state.json"
    step, value = json.loads(state.read_text()) if state.exists() else (0, 0.0)
    (ctx.workdir / f"rank-{ctx.rank}-{node_id()}").touch()
    while step < STEPS:
        time.sleep(cfg.seconds)
        while ctx.world_size > 1 and step == LOST_AT:
            time.sleep(0.05)
        share = torch.tensor((step + 1.0) / ctx.world_size)
        if ctx.world_size > 1:
            dist.all_reduce(share)
        step, value = step + 1, value * 0.5 + float(share)
        if ctx.rank == 0:
            note(ctx.workdir, str(step))
            if step % SAVE_EVERY == 0:
                aside = state.with_suffix(".aside")
                aside.write_text(json.dumps([step, value]))
                aside.rename(state)
        ctx.barrier()
    return Checkpoint("fake", str(ctx.workdir), step, "d", metrics={"value": value})


def whole_march() -> float:
    """What `march` must come to."""
    value = 0.0
    for step in range(1, STEPS + 1):
        value = value * 0.5 + step
    return value


def seen_by_a_worker() -> dict[str, object]:
    """On a worker: what it was given."""
    import infra
    import msmodel

    assert msmodel.__file__ is not None
    kept = {p.name for p in Path.cwd().iterdir()}
    return {"cwd": kept, "infra": str(infra.__path__[0]), "user": os.environ.get("MLFLOW_TRACKING_USERNAME", "")}


ITEMS = Stage("spread_items", 1, "per_item", item)
DISTRIBUTED = Stage("spread_job", 1, "distributed", march, Resources(workers=2))
