"""A gang that loses a worker: the same weights in the end, also on fewer workers."""

from __future__ import annotations

import io
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infra import gang
from infra.config import ComputeConfig
from infra.context import RunContext
from stages.records import Checkpoint
from stages.spec import Resources, Stage
from stages.train.publish import publish
from tests.unit.infra import fakes
from tests.unit.stages.train.gang import Task, prepare, train_teacher

STEPS = 12
KILLED_AT = random.Random(11).randrange(3, STEPS)


@dataclass(frozen=True)
class Dying:
    """kill: a rank to kill once, before its step KILLED_AT."""

    root: str
    kill: int


def train(cfg: Dying, inputs: object, ctx: RunContext) -> Checkpoint:
    task = Task("teacher", "teacher", STEPS, save_steps=2)
    wait = ctx.barrier
    if ctx.rank == cfg.kill and not (ctx.workdir / "died").exists():
        seen = []

        def barrier() -> None:
            """Called a few times a save: the worker dies in the middle of one."""
            seen.append(1)
            if len(seen) > KILLED_AT:
                (ctx.workdir / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            wait()

        ctx.barrier = barrier  # type: ignore[method-assign]
    trained = train_teacher(task, Path(cfg.root), ctx)
    ctx.say(f"ranks {ctx.world_size}")
    return publish("dit", trained["dit"], STEPS, ctx)


TRAIN = Stage("teacher", 1, "gang", train, Resources(workers=2))


@pytest.mark.slow
def test_a_killed_worker_changes_no_weight(tmp_path, monkeypatch):
    """Under Ray Train with ZeRO 2, once with the cluster as it was, once shrunk to one CPU after the death."""
    prepare(tmp_path)
    said = io.StringIO()
    store, runner = fakes.world(tmp_path / "run", "ray", said, zero_stage=2)
    try:
        work = fakes.work(store, TRAIN, Dying(str(tmp_path), 1), ())
        killed = runner.run(work, None, {}).records
        assert (work.step.folder / "died").exists()
        assert "resumed after step" in said.getvalue()
        whole = runner.run(fakes.work(store, TRAIN, Dying(str(tmp_path), -1), ()), None, {}).records
        mine, expected = (load_file(Path(c.folder) / "model.safetensors") for c in (killed, whole))
        assert all(torch.equal(mine[n], w) for n, w in expected.items())

        shrunk = fakes.work(store, TRAIN, Dying(str(tmp_path), 0), ())
        monkeypatch.setattr(runner.session, "resources", lambda: (1.0 if died(shrunk) else 2.0, 0.0))
        fewer = runner.run(shrunk, None, {}).records
        assert "1 workers instead of 2 go on" in said.getvalue()
        mine = load_file(Path(fewer.folder) / "model.safetensors")
        for name, weight in expected.items():
            torch.testing.assert_close(mine[name], weight, atol=1e-4, rtol=0)
    finally:
        runner.stop()


def died(work) -> bool:
    return (work.step.folder / "died").exists()


@pytest.mark.parametrize(("cluster", "left"), [((8, 8), 8), ((16, 7), 4), ((3, 8), 2), ((8, 0.5), 8), ((8, 1), 1)])
def test_what_goes_on_divides_the_step_as_before(cluster, left):
    assert gang.workers_left(8, 1.0, 1.0, *cluster) == left


def test_too_small_a_gpu_is_no_reason_to_start_again(tmp_path):
    def too_large(cfg, inputs, ctx):
        raise torch.OutOfMemoryError("CUDA out of memory")

    store, _ = fakes.world(tmp_path)
    work = fakes.work(store, TRAIN, Dying("", -1), ())
    work.step.folder.mkdir(parents=True)
    job = gang.GangJob(too_large, work.config, (), work.step, 0, store.codec, ComputeConfig(), 1, "now", None)
    gang.run_rank(job, 0, 1)
    with pytest.raises(ValueError, match=r"memory is too small.*compute\.zero_stage=2; compute\.zero_stage=3"):
        gang.raise_noted(job)
