"""Runs a stage as it declares: once in this process, per item over Ray Data, or distributed under Ray Train."""

from __future__ import annotations

import shutil
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra import distributed, items
from infra.config import ComputeConfig
from infra.context import RunContext, about, free_device
from infra.graph import PlacedStage, run_graph
from infra.progress import Console
from infra.ray_session import RaySession, set_threads
from infra.store import Failure, Manifest, Step, Store
from infra.tracking import RunLogger
from stages.contracts import Resources, Stage, StageSpec

PICTURES_LOGGED = 16  # of a per-item stage


@dataclass(frozen=True)
class StageTask:
    """One execution of a stage: its config, its inputs, its step (key and folder) and its seed."""

    stage: Stage[Any, Any, Any]
    config: Any
    inputs: Any
    step: Step
    seed: int


class Executor:
    """Runs the stages of one command, and keeps Ray running between them."""

    def __init__(self, store: Store, compute: ComputeConfig, console: Console) -> None:
        self.store, self.compute, self.console = store, compute, console
        self.session = RaySession(compute, console.log, store.root.parent)
        self.streamed: dict[str, float] = {}  # stage -> seconds in a graph, until the stage's own run follows

    def run(self, task: StageTask, logger: RunLogger | None, provenance: dict[str, Any]) -> Manifest:
        """Runs the unfinished part of the task, and publishes and returns the manifest. Raises ValueError for a mistake
        of the user, else distributed.StageFailed."""
        task.step.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        attempt = uuid.uuid4().hex[:8]
        if task.stage.how == "per_item":
            records, failures, seconds = self._per_item(task, logger, attempt)
        else:
            one = self._distributed if task.stage.how == "distributed" else self._once
            records, failures, seconds = one(task, logger, attempt), (), time.monotonic() - started
        return self.store.publish(task.step, records, seconds, failures, provenance)

    def stream(self, specs: Sequence[StageSpec], given: Sequence[Any], seed: int) -> None:
        """Runs several per-item stages concurrently on the items. It publishes no manifests: each stage's own `run`
        follows, finds its items finished, and publishes. Without Ray it does nothing, and each `run` does the work."""
        if self.compute.executor == "local" or not given:
            return
        attempt = uuid.uuid4().hex[:8]
        _, gpus = self.session.resources()
        sharing = sum(spec.stage.resources.gpus > 0 for spec in specs)
        placed = [self._placed(spec, seed, attempt, gpus / max(sharing, 1)) for spec in specs]
        seconds = run_graph(placed, given, self.store, self.session, self.console)
        self.streamed |= {spec.stage.name: s for spec, s in zip(specs, seconds, strict=True)}

    def _placed(self, spec: StageSpec, seed: int, attempt: str, gpus: float) -> PlacedStage:
        """Returns the stage with its resources in a graph. gpus: number of the cluster's GPUs that this stage may
        use."""
        needs = spec.stage.resources
        workers, each = self._item_workers(needs, gpus)
        actors = each > 0 or self.compute.pool == "actors"
        step = self.store.step(spec.stage.name, spec.stage.version, spec.config, (), seed)
        threads = self.compute.threads or needs.threads
        job = items.ItemJob(
            spec.stage.run, spec.config, self.store.codec, threads, attempt, each > 0, self.compute.precision
        )
        cpus = 0.0 if actors and not each else needs.cpus  # an idle actor must not reserve cores that other stages need
        return PlacedStage(spec, job, step, seed, workers, cpus, each, actors)

    def stop(self) -> None:
        self.session.stop()

    def _threads(self, task: StageTask) -> int:
        return self.compute.threads or task.stage.resources.threads

    def _once(self, task: StageTask, logger: RunLogger | None, attempt: str) -> Any:
        if task.stage.resources.cpus > 1:
            self.session.stop()  # the stage measures times, and needs the machine for itself
        set_threads(self._threads(task))
        ctx = RunContext(
            workdir=task.step.folder,
            seed=task.seed,
            device=free_device(),
            console=self.console,
            logger=logger,
            compute=self.compute,
            sources=self.store.root.parent / "sources",
            about=about(task.step, task.seed),
        )
        try:
            return task.stage.run(task.config, task.inputs, ctx)
        except ValueError as error:
            (task.step.folder / "error.txt").write_text(traceback.format_exc())
            raise ValueError(str(error)) from error
        except Exception as error:
            trace = task.step.folder / "error.txt"
            trace.write_text(traceback.format_exc())
            message = f"stage {task.stage.name} failed: {type(error).__name__}: {error} (traceback: {trace})"
            raise distributed.StageFailed(message) from error

    def _distributed(self, task: StageTask, logger: RunLogger | None, attempt: str) -> Any:
        job = distributed.DistributedJob(
            run=task.stage.run,
            config=task.config,
            inputs=task.inputs,
            step=task.step,
            seed=task.seed,
            codec=self.store.codec,
            compute=self.compute,
            threads=self._threads(task),
            attempt=attempt,
            address=logger.address if logger else None,
        )
        done, records = distributed.read_result(job)
        if done:
            return records  # the job was killed after its last step, before the manifest was written
        if self.compute.executor == "local":
            return self._once(task, logger, attempt)
        cpus, gpus = self.session.resources()
        workers = self.compute.workers or task.stage.resources.workers
        workers = min(workers, task.stage.resources.most or workers)
        want_gpus = min(task.stage.resources.gpus or 1.0, 1.0) if gpus else 0.0
        want_cpus = task.stage.resources.cpus
        if workers * want_cpus > cpus or workers * want_gpus > gpus:
            raise ValueError(
                f"stage {task.stage.name}: {workers} workers of {want_cpus:g} CPUs and {want_gpus:g} GPUs do not fit "
                f"this cluster ({cpus:g} CPUs, {gpus:g} GPUs): lower compute.workers"
            )
        records = distributed.over_ray(job, self.session, workers, want_cpus, want_gpus, self.console)
        shutil.rmtree(task.step.folder / "ray", ignore_errors=True)
        return records

    def _per_item(
        self, task: StageTask, logger: RunLogger | None, attempt: str
    ) -> tuple[Any, tuple[Failure, ...], float]:
        """Returns the records, flattened and in the order of the items; the failures; and the seconds, including those
        of earlier attempts."""
        started = time.monotonic()
        tasks = item_tasks(self.store, task)
        codec = self.store.codec
        before = [items.finished(t, codec) for t in tasks]
        todo = [t for t, r in zip(tasks, before, strict=True) if r is None]
        if len(todo) < len(tasks):
            self.console.log(f"{task.stage.name}: {len(tasks) - len(todo)} of {len(tasks)} items are done already")
        job = items.ItemJob(
            task.stage.run,
            task.config,
            codec,
            self._threads(task),
            attempt,
            task.stage.resources.gpus > 0,
            self.compute.precision,
        )
        unexpected = self._run_items(task, job, todo)
        results = [items.finished(t, codec) for t in tasks]
        failures = [r.failure for r in results if r is not None and r.failure is not None]
        failures += [Failure(t.label, reason, expected=False) for t, reason in unexpected]
        missing = sum(r is None for r in results) - len(unexpected)
        if missing:
            raise distributed.StageFailed(
                f"stage {task.stage.name}: {missing} items are unfinished; run the command again"
            )
        if len(unexpected) > self.compute.max_failed_share * len(tasks):
            raise distributed.StageFailed(_broken(task.stage.name, unexpected, len(tasks)))
        kept = [r for r in results if r is not None]
        _log_items(logger, kept, len(failures))
        records = tuple(record for r in kept if r.failure is None for record in items.flat(r.records))
        earlier = self.streamed.pop(task.stage.name, 0.0)
        if not earlier and any(before):
            earlier = sum(r.seconds for r in before if r is not None) / self._item_workers(task.stage.resources)[0]
        return records, tuple(failures), earlier + time.monotonic() - started

    def _item_workers(self, needs: Resources, most_gpus: float | None = None) -> tuple[int, float]:
        """Returns the number of workers of a per-item stage and the GPUs of each.

        As many workers as fit the cluster, at most compute.item_workers, and at most the number that the stage declares
        where that is above 1. most_gpus: GPUs that the stage may use, where it shares those of the cluster with other
        stages.
        """
        if self.compute.executor == "local":
            return 1, 0.0
        cpus, gpus = self.session.resources()
        gpus = gpus if most_gpus is None else most_gpus
        each = min(needs.gpus * self.compute.item_gpus, gpus)
        fit = int(gpus / each + 1e-6) if each else int(cpus / max(needs.cpus, 0.01))
        limits = [n for n in (self.compute.item_workers, needs.workers if needs.workers > 1 else 0) if n]
        return max(1, min([fit, *limits])), each

    def _run_items(
        self, task: StageTask, job: items.ItemJob, todo: list[items.ItemTask]
    ) -> list[tuple[items.ItemTask, str]]:
        """Runs the items and returns (item, reason) of each one that failed with an unexpected error."""
        if not todo:
            return []
        if self.compute.executor == "local":
            set_threads(job.threads)
            outcome = items.in_process(job, todo)
        else:
            workers, gpus = self._item_workers(task.stage.resources)
            outcome = items.over_ray(job, todo, self.session, workers, task.stage.resources.cpus, gpus)
        unexpected = []
        with self.console.progress(task.stage.name, len(todo)) as progress:
            for index, reason in outcome:
                failed = bool(reason) or _was_rejected(todo[index], job)
                progress.advance(int(not failed), int(failed))
                if reason:
                    unexpected.append((todo[index], reason))
        return unexpected


def item_tasks(store: Store, task: StageTask) -> list[items.ItemTask]:
    """Returns one task per distinct item, in the order of the inputs.

    All tasks have the run's seed. Random numbers for an item must depend on that seed and the item's name only, so that
    models are compared on the same noise.
    """
    tasks: dict[str, items.ItemTask] = {}
    for item in task.inputs:
        step = store.item(task.step, task.stage.version, item, task.seed)
        tasks.setdefault(step.key, items.ItemTask(item, step, task.seed))
    return list(tasks.values())


def _broken(stage: str, unexpected: list[tuple[items.ItemTask, str]], total: int) -> str:
    """Returns the error message for items that failed unexpectedly, be it temporarily (disk, memory, network) or by a
    bug."""
    shown = "".join(
        f"\n  {task.label}: {reason} (traceback: {task.step.folder}/error.txt)" for task, reason in unexpected[:5]
    )
    more = f"\n  and {len(unexpected) - 5} more" if len(unexpected) > 5 else ""
    return (
        f"stage {stage}: {len(unexpected)} of {total} items broke:{shown}{more}\nWhat is done is kept: the same command tries "
        f"these again; compute.max_failed_share=0.1 goes on without up to a tenth of them"
    )


def _was_rejected(task: items.ItemTask, job: items.ItemJob) -> bool:
    result = items.finished(task, job.codec)
    return result is not None and result.failure is not None


def _log_items(logger: RunLogger | None, results: list[items.ItemResult], failed: int) -> None:
    """Logs the means of the items' metrics, and the first PICTURES_LOGGED pictures."""
    if logger is None:
        return
    from PIL import Image

    sums: dict[str, list[float]] = {}
    for result in results:
        for key, value in result.metrics.items():
            sums.setdefault(key, []).append(value)
    means = {key: sum(values) / len(values) for key, values in sums.items()}
    logger.metrics(0, means | {"items": len(results), "items_failed": failed})
    pictures = [p for r in results for p in r.pictures][:PICTURES_LOGGED]
    for step, path in enumerate(pictures):
        import numpy as np

        logger.image("items", np.asarray(Image.open(path)), step)
