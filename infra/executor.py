"""Runs a stage the way it asks to be run: once here, per item over Ray Data, or as a distributed job under Ray Train."""

from __future__ import annotations

import shutil
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from . import distributed, items
from .config import ComputeConfig
from .context import RunContext, about, free_device
from .graph import ItemsOf, Operator, run_graph
from .progress import Console
from .ray_session import RaySession, set_threads
from .store import Failure, Manifest, Step, Store
from .tracking import RunLogger

PICTURES_LOGGED = 16  # of a per-item stage


class Needs(Protocol):
    """stages.contracts.Resources. gpus and cpus are of one worker; workers of a per-item stage: at most so many, 1 = as fit.
    most: of a distributed job, 0 = as many as it is offered."""

    @property
    def workers(self) -> int: ...
    @property
    def most(self) -> int: ...
    @property
    def cpus(self) -> float: ...
    @property
    def gpus(self) -> float: ...
    @property
    def threads(self) -> int: ...


class Runnable(Protocol):
    """stages.contracts.Stage, as far as execution goes."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def how(self) -> str: ...
    @property
    def run(self) -> Callable[..., Any]: ...
    @property
    def resources(self) -> Needs: ...


@dataclass(frozen=True)
class Work:
    """One stage with its config, inputs, and place."""

    stage: Runnable
    config: Any
    inputs: Any
    step: Step
    seed: int


@dataclass(frozen=True)
class Link:
    """A per-item stage of a chain. items_of: records -> its items; of records a + b it gives the items of a, then of b."""

    stage: Runnable
    config: Any
    items_of: ItemsOf


class Executor:
    """One for a command: it keeps Ray running between stages."""

    def __init__(self, store: Store, compute: ComputeConfig, console: Console, reject: type[Exception]) -> None:
        self.store, self.compute, self.console, self.reject = store, compute, console, reject
        self.session = RaySession(compute, console.log, store.root.parent)
        self.streamed: dict[
            str, float
        ] = {}  # seconds of stages that a graph has been through and whose own run is to come

    def run(self, work: Work, logger: RunLogger | None, provenance: dict[str, Any]) -> Manifest:
        """Does the work, or the rest of it, and publishes. Raises ValueError (user) or distributed.StageFailed."""
        work.step.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        attempt = uuid.uuid4().hex[:8]
        if work.stage.how == "per_item":
            records, failures, seconds = self._per_item(work, logger, attempt)
        else:
            one = self._distributed if work.stage.how == "distributed" else self._once
            records, failures, seconds = one(work, logger, attempt), (), time.monotonic() - started
        return self.store.publish(work.step, records, seconds, failures, provenance)

    def stream(self, links: Sequence[Link], given: Sequence[Any], seed: int) -> None:
        """Takes items through several per-item stages at once. Publishes nothing: each stage's own `run` does, and finds its
        items done. Without Ray it does nothing, and they are done there."""
        if self.compute.executor == "local" or not given:
            return
        attempt = uuid.uuid4().hex[:8]
        _, gpus = self.session.resources()
        sharing = sum(link.stage.resources.gpus > 0 for link in links)
        operators = [self._operator(link, seed, attempt, gpus / max(sharing, 1)) for link in links]
        seconds = run_graph(operators, given, self.store, self.session, self.console)
        self.streamed |= {link.stage.name: s for link, s in zip(links, seconds, strict=True)}

    def _operator(self, link: Link, seed: int, attempt: str, gpus: float) -> Operator:
        """gpus: the cluster's, as far as this stage may take them."""
        stage, needs = link.stage, link.stage.resources
        workers, each = self._item_workers(needs, gpus)
        actors = each > 0 or self.compute.pool == "actors"
        step = self.store.step(stage.name, stage.version, link.config, (), seed)
        job = items.ItemJob(
            stage.run,
            link.config,
            self.store.codec,
            self.reject,
            self.compute.threads or needs.threads,
            attempt,
            each > 0,
        )
        cpus = 0.0 if actors and not each else needs.cpus  # an idle actor must not keep the cores from the others
        return Operator(job, step, stage.version, seed, link.items_of, workers, cpus, each, actors)

    def stop(self) -> None:
        self.session.stop()

    def _threads(self, work: Work) -> int:
        return self.compute.threads or work.stage.resources.threads

    def _once(self, work: Work, logger: RunLogger | None, attempt: str) -> Any:
        if work.stage.resources.cpus > 1:
            self.session.stop()  # it wants the machine to itself, to time things
        set_threads(self._threads(work))
        ctx = RunContext(
            workdir=work.step.folder,
            seed=work.seed,
            device=free_device(),
            console=self.console,
            logger=logger,
            compute=self.compute,
            sources=self.store.root.parent / "sources",
            about=about(work.step, work.seed),
        )
        try:
            return work.stage.run(work.config, work.inputs, ctx)
        except ValueError as error:
            (work.step.folder / "error.txt").write_text(traceback.format_exc())
            raise ValueError(str(error)) from error
        except Exception as error:
            trace = work.step.folder / "error.txt"
            trace.write_text(traceback.format_exc())
            message = f"stage {work.stage.name} failed: {type(error).__name__}: {error} (traceback: {trace})"
            raise distributed.StageFailed(message) from error

    def _distributed(self, work: Work, logger: RunLogger | None, attempt: str) -> Any:
        job = distributed.DistributedJob(
            run=work.stage.run,
            config=work.config,
            inputs=work.inputs,
            step=work.step,
            seed=work.seed,
            codec=self.store.codec,
            compute=self.compute,
            threads=self._threads(work),
            attempt=attempt,
            address=logger.address if logger else None,
        )
        done, records = distributed.read_result(job)
        if done:
            return records  # killed between the last step and the commit
        if self.compute.executor == "local":
            return self._once(work, logger, attempt)
        cpus, gpus = self.session.resources()
        workers = self.compute.workers or work.stage.resources.workers
        workers = min(workers, work.stage.resources.most or workers)
        want_gpus = min(work.stage.resources.gpus or 1.0, 1.0) if gpus else 0.0
        want_cpus = work.stage.resources.cpus
        if workers * want_cpus > cpus or workers * want_gpus > gpus:
            raise ValueError(
                f"stage {work.stage.name}: {workers} workers of {want_cpus:g} CPUs and {want_gpus:g} GPUs do not fit "
                f"this cluster ({cpus:g} CPUs, {gpus:g} GPUs): lower compute.workers"
            )
        records = distributed.over_ray(job, self.session, workers, want_cpus, want_gpus, self.console)
        shutil.rmtree(work.step.folder / "ray", ignore_errors=True)
        return records

    def _per_item(self, work: Work, logger: RunLogger | None, attempt: str) -> tuple[Any, tuple[Failure, ...], float]:
        """(records in the order of the items, flattened; failures; seconds, those of earlier attempts included)."""
        started = time.monotonic()
        tasks = item_tasks(self.store, work)
        codec = self.store.codec
        before = [items.finished(t, codec) for t in tasks]
        todo = [t for t, r in zip(tasks, before, strict=True) if r is None]
        if len(todo) < len(tasks):
            self.console.log(f"{work.stage.name}: {len(tasks) - len(todo)} of {len(tasks)} items are done already")
        job = items.ItemJob(
            work.stage.run, work.config, codec, self.reject, self._threads(work), attempt, work.stage.resources.gpus > 0
        )
        unexpected = self._run_items(work, job, todo)
        results = [items.finished(t, codec) for t in tasks]
        failures = [r.failure for r in results if r is not None and r.failure is not None]
        failures += [Failure(t.label, reason, expected=False) for t, reason in unexpected]
        missing = sum(r is None for r in results) - len(unexpected)
        if missing:
            raise distributed.StageFailed(
                f"stage {work.stage.name}: {missing} items are unfinished; run the command again"
            )
        if len(unexpected) > self.compute.max_failed_share * len(tasks):
            raise distributed.StageFailed(_broken(work.stage.name, unexpected, len(tasks)))
        kept = [r for r in results if r is not None]
        _log_items(logger, kept, len(failures))
        records = tuple(record for r in kept if r.failure is None for record in items.flat(r.records))
        earlier = self.streamed.pop(work.stage.name, 0.0)
        if not earlier and any(before):
            earlier = sum(r.seconds for r in before if r is not None) / self._item_workers(work.stage.resources)[0]
        return records, tuple(failures), earlier + time.monotonic() - started

    def _item_workers(self, needs: Needs, most_gpus: float | None = None) -> tuple[int, float]:
        """(workers, GPUs of each): as many as fit the cluster; a stage that names more than one wants at most those.
        most_gpus: what it may take, where it shares the cluster's with others."""
        if self.compute.executor == "local":
            return 1, 0.0
        cpus, gpus = self.session.resources()
        gpus = gpus if most_gpus is None else most_gpus
        each = min(needs.gpus * self.compute.item_gpus, gpus)
        fit = int(gpus / each + 1e-6) if each else int(cpus / max(needs.cpus, 0.01))
        limits = [n for n in (self.compute.item_workers, needs.workers if needs.workers > 1 else 0) if n]
        return max(1, min([fit, *limits])), each

    def _run_items(
        self, work: Work, job: items.ItemJob, todo: list[items.ItemTask]
    ) -> list[tuple[items.ItemTask, str]]:
        """Items that failed unexpectedly, with the reason."""
        if not todo:
            return []
        if self.compute.executor == "local":
            set_threads(job.threads)
            outcome = items.in_process(job, todo)
        else:
            workers, gpus = self._item_workers(work.stage.resources)
            outcome = items.over_ray(job, todo, self.session, workers, work.stage.resources.cpus, gpus)
        unexpected = []
        with self.console.progress(work.stage.name, len(todo)) as progress:
            for index, reason in outcome:
                failed = bool(reason) or _was_rejected(todo[index], job)
                progress.advance(int(not failed), int(failed))
                if reason:
                    unexpected.append((todo[index], reason))
        return unexpected


def item_tasks(store: Store, work: Work) -> list[items.ItemTask]:
    """One task an item, in order; equal items once. All get the run's seed: what is drawn for an item must depend on it and
    the item's name, so that models are compared on the same noise."""
    tasks: dict[str, items.ItemTask] = {}
    for item in work.inputs:
        step = store.item(work.step, work.stage.version, item, work.seed)
        tasks.setdefault(step.key, items.ItemTask(item, step, work.seed))
    return list(tasks.values())


def _broken(stage: str, unexpected: list[tuple[items.ItemTask, str]], total: int) -> str:
    """What to tell of items that broke for a reason that may pass (disk, memory, network) or is a bug."""
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
    """Means over the items, and the first pictures."""
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
