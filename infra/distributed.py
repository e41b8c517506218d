"""Runs distributed jobs: the same stage call on every rank of a torch.distributed group, under Ray Train.

After a worker has died, the job is restarted with as many workers as before, or with fewer where the cluster has lost
some. The stage writes its own checkpoints in its folder. Rank 0 writes result.json. Errors are passed back in
error.json, so that the user reads one sentence instead of Ray's traceback.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.codec import Codec
from infra.config import ComputeConfig
from infra.context import RunContext, about, free_device
from infra.files import FolderLock, read_json, write_atomic
from infra.progress import Console, EventFile, Replay, SilentConsole
from infra.ray_session import RaySession, set_threads
from infra.store import Step
from infra.tracking import RunAddress, RunLogger

# Errors that a restart may resolve: a peer died, the network failed, the disk was busy.
PASSING = (RuntimeError, OSError)


class StageFailed(RuntimeError):
    """An error of a stage that is not a mistake of the user. The message names the file with the traceback."""


@dataclass(frozen=True)
class DistributedJob:
    """Everything that a rank needs. attempt: identifies one execution of the stage, including its restarts."""

    run: Callable[[Any, Any, Any], Any]
    config: Any
    inputs: Any
    step: Step
    seed: int
    codec: Codec
    compute: ComputeConfig
    threads: int
    attempt: str
    address: RunAddress | None

    @property
    def result_path(self) -> Path:
        return self.step.folder / "result.json"

    @property
    def error_path(self) -> Path:
        return self.step.folder / "error.json"

    @property
    def events_path(self) -> Path:
        return self.step.folder / "events.jsonl"


def read_result(job: DistributedJob) -> tuple[bool, Any]:
    """Returns (whether rank 0 has finished this key, its records or None)."""
    data = read_json(job.result_path)
    if data is None or data["key"] != job.step.key:
        return False, None
    return True, job.codec.decode(data["records"])


def run_rank(job: DistributedJob, rank: int, world_size: int) -> None:
    """Runs one rank, in a process whose process group is initialised.

    With several ranks, errors that a restart may resolve are raised. All others are written to error.json, and with
    several ranks also raised, so that Ray ends the other ranks.
    """
    if _noted(job) is not None:
        return  # a rank has failed permanently, and this is a restart
    set_threads(job.threads)
    log = EventFile(job.events_path) if rank == 0 else SilentConsole()
    logger = RunLogger(job.address, log.log) if rank == 0 and job.address else None
    ctx = RunContext(
        workdir=job.step.folder,
        seed=job.seed,
        rank=rank,
        world_size=world_size,
        device=free_device(),
        console=log,
        logger=logger,
        compute=job.compute,
        about=about(job.step, job.seed),
    )
    try:
        records = job.run(job.config, job.inputs, ctx)
    except Exception as raised:
        error = _for_the_user(raised, ctx)
        if isinstance(error, PASSING) and world_size > 1:
            raise
        _note_error(job, error, rank)
        if world_size > 1:
            raise  # the other ranks wait in a collective: Ray must end them
        return
    finally:
        if logger is not None:
            logger.close()
    if rank == 0:
        write_atomic(job.result_path, json.dumps({"key": job.step.key, "records": job.codec.encode(records)}))


def _for_the_user(error: Exception, ctx: RunContext) -> Exception:
    """Returns the error to report. Insufficient GPU memory becomes a ValueError with advice, as a restart does not
    help."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    savings = "; ".join(ctx.settings_that_save_memory())
    return ValueError(f"the GPU's memory is too small ({error}); these settings take less: {savings}")


def _note_error(job: DistributedJob, error: Exception, rank: int) -> None:
    trace = job.step.folder / "error.txt"
    trace.write_text(traceback.format_exc())
    note = {
        "attempt": job.attempt,
        "rank": rank,
        "user": isinstance(error, ValueError),
        "message": str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}",
        "traceback": str(trace),
    }
    write_atomic(job.error_path, json.dumps(note))


def _train_worker(config: dict[str, Any]) -> None:
    """Runs one rank; Ray Train calls it in each worker."""
    import ray.train
    import torch.distributed as dist

    job: DistributedJob = config["job"]
    world = ray.train.get_context()
    rank, size = world.get_world_rank(), world.get_world_size()
    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", world.get_local_rank())):
        os.environ[name] = str(value)
    if rank == 0:
        with FolderLock(job.step.folder / "rank0"):  # the worker of a killed driver may still be running
            run_rank(job, rank, size)
    else:
        run_rank(job, rank, size)
    if size > 1:
        dist.barrier()


def over_ray(job: DistributedJob, session: RaySession, workers: int, cpus: float, gpus: float, console: Console) -> Any:
    """Runs the distributed job and returns rank 0's records. Raises ValueError for a user's mistake, else
    StageFailed."""
    session.start()
    failed: Exception | None = None
    now = workers
    with Replay(job.events_path, console):
        for start in range(job.compute.max_failures + 1):
            try:
                _trainer(job, now, cpus, gpus, start).fit()
                failed = None
            except Exception as error:  # Ray raises several kinds; the outcome is in error.json or result.json
                (job.step.folder / "ray-error.txt").write_text(f"{type(error).__name__}: {error}")
                failed = error
            if failed is None or _noted(job) is not None:
                break
            before, now = now, workers_left(workers, cpus, gpus, *session.resources())
            if now != before:
                console.log(f"{job.step.stage}: the cluster changed; {now} workers instead of {before} go on")
    done, records = read_result(job)
    if done:
        return records
    raise_noted(job)
    reason = f"{type(failed).__name__}" if failed else "no result"
    raise StageFailed(
        f"stage {job.step.stage}: its workers died {job.compute.max_failures + 1} times or could not start ({reason}); "
        f"see {job.step.folder / 'ray-error.txt'}. Run the same command to resume from the last checkpoint"
    ) from failed


def workers_left(wanted: int, cpus: float, gpus: float, all_cpus: float, all_gpus: float) -> int:
    """Returns how many workers a restarted job uses: the largest divisor of `wanted` that fits the cluster, so that a
    step's batch still divides among them, or `wanted` where not even one worker fits yet.

    cpus, gpus: of one worker. all_cpus, all_gpus: of the cluster.
    """
    fit = int(min(all_cpus / cpus if cpus else wanted, all_gpus / gpus if gpus else wanted) + 1e-6)
    return max((n for n in range(1, wanted + 1) if wanted % n == 0 and n <= fit), default=wanted)


def _trainer(job: DistributedJob, workers: int, cpus: float, gpus: float, start: int) -> Any:
    """Returns Ray Train's trainer of the distributed job. start: number of earlier starts in this execution."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        """Ray Train's trainer without its Ctrl-C handler, which would outlive the job and end a later stage with exit
        code 0."""

        def _register_sigint_handler(self, controller: Any) -> None:
            """Registers no handler: KeyboardInterrupt ends the command, which shuts down Ray with all workers."""

    return Trainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name=f"{job.step.stage}-{job.attempt}-{start}",
            storage_path=str(job.step.folder / "ray"),
            # over_ray does the restarts, possibly with fewer workers. The second argument exists only in the class that
            # Ray Train substitutes at run time for the typed one.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        ),
    )


def _noted(job: DistributedJob) -> Any:
    """Returns the error that a rank has written in this execution, or None."""
    note = read_json(job.error_path)
    return note if note is not None and note["attempt"] == job.attempt else None


def raise_noted(job: DistributedJob) -> None:
    """Raises the error that a rank has written in this execution, if any: ValueError for a user's mistake, else
    StageFailed."""
    note = _noted(job)
    if note is None:
        return
    if note["user"]:
        raise ValueError(note["message"])
    raise StageFailed(f"stage {job.step.stage} failed: {note['message']} (traceback: {note['traceback']})")
