"""A distributed job that loses a worker: the same weights in the end; on fewer workers where the cluster has lost some."""

from __future__ import annotations

import inspect
import io
import json
import os
import random
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file

from infra import distributed
from infra.config import ComputeConfig
from infra.context import RunContext
from infra.progress import PlainConsole
from infra.ray_session import RaySession
from stages.contracts import Resources, Stage, StageError
from stages.records import Checkpoint
from stages.train.publish import publish
from tests.unit.infra import fakes
from tests.unit.stages.train.ranks import Task, prepare, run, train_teacher

SEED, STEPS, ZERO = 3, 12, {"zero_stage": 2}
TASK = Task("teacher", "teacher", STEPS, save_steps=2, compute=ZERO)
KILLED_AT = random.Random(11).randrange(3, STEPS)


@dataclass(frozen=True)
class Given:
    """root: where the shards lie."""

    root: str


def train(cfg: Given, inputs: object, ctx: RunContext) -> Checkpoint:
    """Rank 1 dies once, after a step, while a save may be under way."""
    emit, seen = ctx.emit, []

    def emit_and_die(step: int, metrics: Mapping[str, float]) -> None:
        seen.append(step)
        if len(seen) > KILLED_AT:
            (ctx.workdir / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        emit(step, metrics)

    if ctx.rank == 1 and not (ctx.workdir / "died").exists():
        ctx.emit = emit_and_die  # type: ignore[method-assign]
    trained = train_teacher(TASK, Path(cfg.root), ctx)
    return publish("dit", trained["dit"], STEPS, ctx)


TRAIN = Stage("teacher", 1, "distributed", train, Resources(workers=2))


@pytest.mark.slow
def test_a_killed_worker_changes_no_weight(tmp_path):
    """Under Ray Train with ZeRO 2, against two processes that nobody disturbs."""
    prepare(tmp_path)
    logged = io.StringIO()
    store, runner = fakes.world(tmp_path / "run", "ray", logged, **ZERO)
    work = fakes.work(store, TRAIN, Given(str(tmp_path)), (), SEED)
    try:
        killed = runner.run(work, None, {}).records
    finally:
        runner.stop()
    assert (work.step.folder / "died").exists()
    assert "resumed after step" in logged.getvalue()
    run([TASK], tmp_path, world=2)
    mine = load_file(Path(killed.folder) / "model.safetensors")
    undisturbed = load_file(tmp_path / "teacher" / "dit" / "model.safetensors")
    assert all(torch.equal(mine[n], w) for n, w in undisturbed.items())


def job_in(tmp_path, run=train) -> distributed.DistributedJob:
    store, _ = fakes.world(tmp_path)
    work = fakes.work(store, TRAIN, Given(""), ())
    work.step.folder.mkdir(parents=True)
    return distributed.DistributedJob(run, work.config, (), work.step, 0, store.codec, ComputeConfig(), 1, "now", None)


def test_what_the_cluster_has_left_goes_on(tmp_path, monkeypatch):
    """Four workers die twice, while the cluster shrinks to three CPUs and then to none."""
    job, began = job_in(tmp_path), []

    class Trainer:
        def __init__(self, job, workers, cpus, gpus, start):
            began.append((workers, start))

        def fit(self):
            if len(began) < 3:
                raise RuntimeError("a worker died")
            job.result_path.write_text(json.dumps({"key": job.step.key, "records": []}))

    class Session(RaySession):
        def start(self):
            return None

        def resources(self):
            return {1: (3.0, 0.0), 2: (0.0, 0.0)}[len(began)]

    monkeypatch.setattr(distributed, "_trainer", Trainer)
    logged = io.StringIO()
    session = Session(job.compute, print, tmp_path)
    assert distributed.over_ray(job, session, 4, 1.0, 0.0, PlainConsole(logged)) == ()
    assert began == [(4, 0), (2, 1), (4, 2)]  # with none left, as many as were asked for are waited for
    assert "2 workers instead of 4 go on" in logged.getvalue()


@pytest.mark.parametrize("world", [1, 2])
def test_users_mistake_arrives_as_it_was_reported_and_is_not_tried_again(tmp_path, monkeypatch, world):
    """Of one rank, which ends quietly; of the second of two, which breaks, so that Ray ends the other."""

    def mistaken(cfg, inputs, ctx):
        raise StageError("your clip is too short")

    job, began = job_in(tmp_path, mistaken), []

    class Trainer:
        def __init__(self, job, workers, cpus, gpus, start):
            began.append(start)

        def fit(self):
            distributed.run_rank(job, world - 1, world)

    class Session(RaySession):
        def start(self):
            return None

    monkeypatch.setattr(distributed, "_trainer", Trainer)
    with pytest.raises(ValueError, match=r"^your clip is too short$"):
        distributed.over_ray(job, Session(job.compute, print, tmp_path), world, 1.0, 0.0, PlainConsole(io.StringIO()))
    assert began == [0]


@pytest.mark.parametrize(("cluster", "left"), [((8, 8), 8), ((16, 7), 4), ((3, 8), 2), ((8, 0.5), 8), ((8, 1), 1)])
def test_what_goes_on_divides_the_step_as_before(cluster, left):
    assert distributed.workers_left(8, 1.0, 1.0, *cluster) == left


def test_too_small_a_gpu_is_no_reason_to_start_again(tmp_path):
    def too_large(cfg, inputs, ctx):
        raise torch.OutOfMemoryError("CUDA out of memory")

    job = job_in(tmp_path, too_large)
    distributed.run_rank(job, 0, 1)
    with pytest.raises(ValueError, match=r"memory is too small.*compute\.zero_stage=2; compute\.zero_stage=3"):
        distributed.raise_noted(job)


def test_ctrl_c_stays_pythons_own_during_and_after_a_job(tmp_path):
    """Ray Train's handler would end a later stage with exit code 0, as if it had finished."""
    before = signal.getsignal(signal.SIGINT)
    distributed._trainer(job_in(tmp_path), 1, 1.0, 0.0, 0)._register_sigint_handler(None)
    assert signal.getsignal(signal.SIGINT) is before
    assert "_register_sigint_handler" in inspect.getsource(TorchTrainer._initialize_and_run_controller)  # what calls it
