"""Runs several per-item stages as one Ray Data graph: the tracker works on the first clips while the next videos are
cut.

The graph affects the order of the work, not its results. Each item of each stage has its own folder and marker
(items.py). A killed graph therefore resumes, and it leaves the same files as the stages run one after the other. Only
references are passed between stages, never frames, so memory does not grow with the number of items. Each stage is one
operator of Ray Data. Ray Data fuses operators with the same resources; one worker then takes an item through all of
them. No operator only regroups rows, because Ray Data reserves resources per operator: with five operators on two CPUs
only one task runs at a time.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infra.items import ItemJob, ItemTask, finished, flat, quiet_data, run_item
from infra.progress import Console, Counts, Tally
from infra.ray_session import RaySession, set_threads
from infra.store import Step, Store
from stages.contracts import ItemsOf, StageSpec

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class PlacedStage:
    """One stage of a graph, that is one operator of Ray Data, with everything that its workers need.

    step: names the stage and holds its config; an item has the same folder under it as when the stage runs alone.
    workers: the largest number of workers. cpus, gpus: of one worker. actors: whether the workers are actors, which
    keep loaded models.
    """

    spec: StageSpec
    job: ItemJob
    step: Step
    seed: int
    workers: int
    cpus: float
    gpus: float
    actors: bool


def advance(
    row: dict[str, Any], number: int, placed: PlacedStage, store: Store, following: ItemsOf | None, tally: Any
) -> list[dict[str, Any]]:
    """Runs one stage on one item, and returns one row per item of the next stage.

    A failed or rejected item gives no rows; the stage's own run reports it later from the marker. number: the stage's
    index in the graph. tally: handle of the actor that counts (progress.Tally).
    """
    item = pickle.loads(row["item"])  # trusted: pickled by the driver or by the previous stage
    set_threads(placed.job.threads)
    task = ItemTask(item, store.item(placed.step, placed.spec.stage.version, item, placed.seed), placed.seed)
    failure = run_item(placed.job, task)
    result = finished(task, store.codec)
    good = failure is None and result is not None and result.failure is None
    items = following(flat(result.records)) if good and result is not None and following else []
    tally.add.remote(number, not good, len(items), result.seconds if result else 0.0)
    return [{"item": pickle.dumps(i)} for i in items]


class StageActor:
    """Calls `advance` in an actor, which keeps the models that the stage has loaded."""

    def __init__(self, *fixed: Any) -> None:
        self.fixed = fixed

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        return advance(row, *self.fixed)


def run_graph(
    stages: Sequence[PlacedStage], items: Sequence[Any], store: Store, session: RaySession, console: Console
) -> list[float]:
    """Runs all stages on every item. A failed item raises no error; it leaves no marker.

    Returns the elapsed seconds, divided among the stages in proportion to the work in each.
    """
    started = time.monotonic()
    ray = session.start()
    data = quiet_data()
    data.DataContext.get_current().target_max_block_size = 1  # one block per row, so that the next stage starts at once
    tally = ray.remote(num_cpus=0, max_restarts=-1)(Tally).remote(len(stages))
    blocks = min(len(items), max(200, 4 * max(s.workers for s in stages)))
    source = data.from_items([{"item": pickle.dumps(i)} for i in items], override_num_blocks=blocks)
    for number, placed in enumerate(stages):
        following = stages[number + 1].spec.items_of if number + 1 < len(stages) else None
        fixed = (number, placed, store, following, tally)
        source = _joined(data, source, placed, fixed)
    with _shown(ray, tally, stages, len(items), console):
        for _ in source.iter_rows():
            raise AssertionError("the last stage gives no rows")
    try:
        work = [c.seconds for c in ray.get(tally.read.remote(), timeout=10)]
    except ray.exceptions.RayError:  # the actor died, and its counts are lost
        work = [0.0 for _ in stages]
    whole = time.monotonic() - started
    return [whole * w / sum(work) if sum(work) else whole / len(work) for w in work]


def _joined(data: Any, source: Any, placed: PlacedStage, fixed: tuple[Any, ...]) -> Any:
    """Returns the data set after one more stage. Ray Data replaces dead workers without limit; run_item gives up on an
    item that kills them repeatedly."""
    needs = {"num_cpus": placed.cpus, "num_gpus": placed.gpus}
    if placed.actors:
        pool = data.ActorPoolStrategy(min_size=1, max_size=placed.workers)
        return source.flat_map(StageActor, fn_constructor_args=fixed, compute=pool, **needs)
    pool = data.TaskPoolStrategy(size=placed.workers)
    return source.flat_map(advance, fn_args=fixed, compute=pool, **needs)


@contextlib.contextmanager
def _shown(ray: Any, tally: Any, stages: Sequence[PlacedStage], total: int, console: Console) -> Iterator[None]:
    """Shows the progress of all stages in one line: the first stage's against the total number of items, each later
    one's against the number of items that have reached it."""
    names = [s.step.stage for s in stages]
    over = threading.Event()

    def follow() -> None:
        shown = Counts()
        while True:
            last = over.wait(POLL_SECONDS)
            try:
                first, *rest = ray.get(tally.read.remote(), timeout=10)
            except ray.exceptions.RayError:
                if last:
                    return  # the tally or Ray has died; the iteration over the rows raises the error
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
