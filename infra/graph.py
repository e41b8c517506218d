"""Per-item stages joined into one Ray Data graph: the tracker works on the first clips while the next videos are cut.

The graph is an order of work, not of results. Each item of each stage has its own folder and marker (items.py), so killed
anywhere it goes on, and what it leaves is what the stages leave when run one after the other. Only references travel between
operators, never frames: memory does not grow with the number of items. Operators that want the same workers are fused by Ray
Data: one worker then takes an item of the first through all of them. No operator may stand between them only to regroup
rows: of two CPUs Ray Data reserves so much for each operator that with five of them one task runs at a time.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .items import ItemJob, ItemTask, finished, flat, quiet_data, run_item
from .progress import Console, Counts, Tally
from .ray_session import RaySession, set_threads
from .store import Step, Store

ItemsOf = Callable[[Sequence[Any]], Sequence[Any]]
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Operator:
    """One stage of a graph, as a worker needs it. step: names the stage and holds its config; the place of an item under it
    is the one that the stage run by itself gives the same item. items_of: records of one item of the stage before -> items
    of this one. cpus, gpus: of a worker; workers: at most so many; actors: whether they keep what they have loaded."""

    job: ItemJob
    step: Step
    version: int
    seed: int
    items_of: ItemsOf
    workers: int
    cpus: float
    gpus: float
    actors: bool


def advance(
    row: dict[str, Any], number: int, operator: Operator, store: Store, following: ItemsOf | None, tally: Any
) -> list[dict[str, Any]]:
    """One item through one stage -> rows, one an item of the next stage. An item that broke or was rejected gives none: the
    stage's own pass over its markers says so."""
    item = pickle.loads(row["item"])  # our own, from the driver or the operator before
    set_threads(operator.job.threads)
    task = ItemTask(item, store.item(operator.step, operator.version, item, operator.seed), operator.seed)
    failure = run_item(operator.job, task)
    result = finished(task, store.codec)
    good = failure is None and result is not None and result.failure is None
    items = following(flat(result.records)) if good and result is not None and following else []
    tally.add.remote(number, not good, len(items), result.seconds if result else 0.0)
    return [{"item": pickle.dumps(i)} for i in items]


class Worker:
    """`advance` in an actor: with it stay the models that the stage has loaded."""

    def __init__(self, *fixed: Any) -> None:
        self.fixed = fixed

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        return advance(row, *self.fixed)


def run_graph(
    operators: Sequence[Operator], items: Sequence[Any], store: Store, session: RaySession, console: Console
) -> list[float]:
    """Takes every item through all operators. Raises nothing for items that break: they leave no marker.

    Returns the seconds that it took, shared out among the operators by the work in each.
    """
    started = time.monotonic()
    ray = session.start()
    data = quiet_data()
    data.DataContext.get_current().target_max_block_size = (
        1  # a block a row: what one operator made is taken up at once
    )
    tally = ray.remote(num_cpus=0, max_restarts=-1)(Tally).remote(len(operators))
    blocks = min(len(items), max(200, 4 * max(o.workers for o in operators)))
    source = data.from_items([{"item": pickle.dumps(i)} for i in items], override_num_blocks=blocks)
    for number, operator in enumerate(operators):
        following = operators[number + 1].items_of if number + 1 < len(operators) else None
        fixed = (number, operator, store, following, tally)
        source = _joined(data, source, operator, fixed)
    with _shown(ray, tally, operators, len(items), console):
        for _ in source.iter_rows():
            raise AssertionError("the last operator gives no rows")
    try:
        work = [c.seconds for c in ray.get(tally.read.remote(), timeout=10)]
    except ray.exceptions.RayError:  # lost with its counts
        work = [0.0 for _ in operators]
    whole = time.monotonic() - started
    return [whole * w / sum(work) if sum(work) else whole / len(work) for w in work]


def _joined(data: Any, source: Any, operator: Operator, fixed: tuple[Any, ...]) -> Any:
    """The data set after one more operator. Ray Data replaces workers it loses without end; run_item gives up on an item that
    kills them."""
    needs = {"num_cpus": operator.cpus, "num_gpus": operator.gpus}
    if operator.actors:
        pool = data.ActorPoolStrategy(min_size=1, max_size=operator.workers)
        return source.flat_map(Worker, fn_constructor_args=fixed, compute=pool, **needs)
    pool = data.TaskPoolStrategy(size=operator.workers)
    return source.flat_map(advance, fn_args=fixed, compute=pool, **needs)


@contextlib.contextmanager
def _shown(ray: Any, tally: Any, operators: Sequence[Operator], total: int, console: Console) -> Iterator[None]:
    """Progress of all operators in one line: of the first against the total, of the others against what they have met."""
    names = [o.step.stage for o in operators]
    over = threading.Event()

    def follow() -> None:
        shown = Counts()
        while True:
            last = over.wait(POLL_SECONDS)
            try:
                first, *rest = ray.get(tally.read.remote(), timeout=10)
            except ray.exceptions.RayError:
                if last:
                    return  # the tally or Ray is gone: the work itself says how it ended
                continue
            note = ", ".join(
                f"{name} {c.done + c.failed} of {c.met}" + (f" ({c.failed} failed)" if c.failed else "")
                for name, c in zip(names[1:], rest, strict=True)
            )
            new = max(first.done - shown.done, 0), max(first.failed - shown.failed, 0)
            progress.advance(*new, note=note)
            shown = first
            if last:
                return

    with console.progress(names[0], total) as progress:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
