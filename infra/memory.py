"""Measures the memory of a command and all its child processes."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence

import psutil

from infra.files import CHECKOUT

EVERY_SECONDS = 0.25


def peak_mb(command: Sequence[str]) -> float:
    """Runs a command and returns its peak memory in MiB, rounded to a tenth.

    The memory is the sum of the PSS of the process and its children (PSS divides shared pages among the processes that
    share them), sampled every EVERY_SECONDS. Raises RuntimeError with the end of the output where the command fails.
    """
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak, over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(EVERY_SECONDS):
            peak = max(peak, _family_mb(process.pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    words, _ = process.communicate()
    over.set()
    thread.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {words[-2000:]}")
    return round(peak, 1)


def _family_mb(pid: int) -> float:
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(map(_mb, family))


def _mb(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 2**20
    except psutil.Error:  # the process has just ended
        return 0.0
