"""Runs per-item stages. Every item has a folder and a marker, item.json, which is written when the item is finished.

kill -9 loses only the items in progress, and no finished item is repeated. The function run_item is the same in this
process and in a Ray Data worker.
"""

from __future__ import annotations

import json
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.codec import Codec
from infra.config import ComputeConfig
from infra.context import ItemContext, free_device
from infra.files import FolderLock, read_json, write_atomic
from infra.ray_session import RaySession, quiet, set_threads
from infra.store import Failure, Step, item_label
from stages.contracts import Reject

WAIT_SECONDS = 0.03  # interval at which Ray Data notices finished tasks; with its default of 0.1 workers are idle
MAX_DEATHS = 3  # an item is given up after its worker has died this often


@dataclass(frozen=True)
class ItemJob:
    """Everything that a worker needs besides the item.

    attempt: identifies one execution of the stage. gpu: whether the worker was assigned a GPU; if not, it runs on the
    CPU even where it can see one. precision: compute.precision.
    """

    run: Callable[[Any, Any, Any], Any]
    config: Any
    codec: Codec
    threads: int
    attempt: str
    gpu: bool
    precision: str


@dataclass(frozen=True)
class ItemTask:
    """One item with the step whose folder holds its results, and the seed."""

    item: Any
    step: Step
    seed: int

    @property
    def label(self) -> str:
        return item_label(self.item)

    @property
    def marker(self) -> Path:
        return self.step.folder / "item.json"


@dataclass(frozen=True)
class ItemResult:
    """The result of one item. records: what the stage returned. failure: why there are none. pictures: paths of
    files."""

    records: Any
    failure: Failure | None
    seconds: float
    metrics: dict[str, float]
    pictures: tuple[str, ...]


def finished(task: ItemTask, codec: Codec) -> ItemResult | None:
    """Returns the item's result from disk, or None if it is not finished. A rejection is a result; an unexpected error
    is not, so that the item is tried again."""
    data = read_json(task.marker)
    if data is None or data["key"] != task.step.key:
        return None
    if not all(path.exists() for path in codec.paths(data["records"])):
        return None
    failure = Failure(**data["failure"]) if data["failure"] else None
    pictures = tuple(codec.decode(data["pictures"]))
    return ItemResult(codec.decode(data["records"]), failure, data["seconds"], data["metrics"], pictures)


def run_item(job: ItemJob, task: ItemTask) -> Failure | None:
    """Runs the stage on one item and writes its marker. Returns the failure if an unexpected error occurred (then
    without a marker), else None."""
    with FolderLock(task.step.folder):  # the worker of a killed driver may still be running
        if finished(task, job.codec) is not None:
            return None
        if _deaths(task, job.attempt) >= MAX_DEATHS:
            return Failure(task.label, f"the worker died {MAX_DEATHS} times on this item", expected=False)
        ctx = ItemContext(
            workdir=task.step.folder,
            seed=task.seed,
            device=free_device() if job.gpu else torch.device("cpu"),
            compute=ComputeConfig(precision=job.precision),
            sources=Path(job.codec.root).parent / "sources",
        )
        started = time.monotonic()
        records: Any = ()
        failure = None
        try:
            records = job.run(job.config, task.item, ctx)
        except Reject as error:
            failure = Failure(task.label, str(error), expected=True)
        except Exception as error:  # one failed item must not stop the rest; it is listed and its traceback saved
            (task.step.folder / "error.txt").write_text(traceback.format_exc())
            return Failure(task.label, f"{type(error).__name__}: {error}", expected=False)
        _mark(job, task, ctx, records, failure, time.monotonic() - started)
    return None


def _mark(
    job: ItemJob, task: ItemTask, ctx: ItemContext, records: Any, failure: Failure | None, seconds: float
) -> None:
    marker = {
        "key": task.step.key,
        "records": job.codec.encode(records),
        "failure": vars(failure) if failure else None,
        "seconds": round(seconds, 3),
        "metrics": ctx.emitted,
        "pictures": job.codec.encode(ctx.pictures),
    }
    write_atomic(task.marker, json.dumps(marker, ensure_ascii=False))


def _deaths(task: ItemTask, attempt: str) -> int:
    """Returns how often this execution of the stage has started the item before, and records the present start."""
    path = task.step.folder / f".begun-{attempt}"
    with open(path, "a") as f:
        f.write("x")
        f.flush()
        os.fsync(f.fileno())
    return path.stat().st_size - 1


def run_row(row: dict[str, Any]) -> dict[str, Any]:
    """Runs one item in a Ray worker. A row holds the job and the task pickled, so that Arrow does not convert them."""
    job, task = pickle.loads(row["work"])  # trusted: pickled by the driver
    set_threads(job.threads)
    failure = run_item(job, task)
    return {"index": row["index"], "reason": failure.reason if failure else ""}


class ItemActor:
    """Calls run_row in an actor that serves one stage: when it ends, the models that the stage cached on a GPU are
    freed."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return run_row(row)


def over_ray(
    job: ItemJob, tasks: list[ItemTask], session: RaySession, workers: int, cpus: float, gpus: float
) -> Iterator[tuple[int, str]]:
    """Runs the items over Ray Data, and yields (index, reason of an unexpected failure or "") as they finish.

    Only references are passed between processes, never frames. cpus, gpus: of one worker. Without GPUs the stages run
    one after the other in Ray's pooled workers, so that torch is imported once.
    """
    session.start()
    import cloudpickle

    data = quiet_data()
    rows = [{"index": i, "work": cloudpickle.dumps((job, t))} for i, t in enumerate(tasks)]
    source = data.from_items(rows, override_num_blocks=min(len(tasks), max(200, 4 * workers)))
    size = max(1, min(workers, len(tasks)))
    if gpus:
        pool = data.ActorPoolStrategy(size=size)
        results = source.map(ItemActor, compute=pool, num_cpus=cpus, num_gpus=gpus)
    else:
        results = source.map(run_row, compute=data.TaskPoolStrategy(size=size), num_cpus=cpus)
    for row in results.iter_rows():
        yield int(row["index"]), str(row["reason"])


def quiet_data() -> Any:
    """Returns `ray.data` with its own progress output turned off, because the console shows progress."""
    import ray.data
    from ray.data._internal.execution import streaming_executor_state

    quiet()
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = WAIT_SECONDS
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray.data


def flat(records: Any) -> Sequence[Any]:
    """Returns a stage's records of one item as a sequence; a single record becomes a tuple of one."""
    return records if isinstance(records, (list, tuple)) else (records,)


def in_process(job: ItemJob, tasks: list[ItemTask]) -> Iterator[tuple[int, str]]:
    """Runs the items one after another in this process, and yields the same pairs as `over_ray`."""
    for index, task in enumerate(tasks):
        failure = run_item(job, task)
        yield index, failure.reason if failure else ""
