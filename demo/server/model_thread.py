"""The one thread in which the model runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class ModelThread:
    """Runs jobs one after another, in the order they were given, also those that nobody awaits any more."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="player")

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Returns a future of the job's result. Cancelling the future does not stop a job that has begun."""
        return asyncio.wrap_future(self._pool.submit(job))

    def enqueue(self, job: Callable[[], object]) -> None:
        """Runs a job whose result nobody awaits. Its exception is logged."""
        self._pool.submit(job).add_done_callback(_log_exception)

    def close(self) -> None:
        """Waits for the jobs that were given, and ends the thread."""
        self._pool.shutdown(wait=True)


def _log_exception(done: Future[object]) -> None:
    if not done.cancelled() and (error := done.exception()):
        log.error("a job of the model thread failed", exc_info=error)
