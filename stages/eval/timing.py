"""Clocks and figures of speed: synchronised seconds, percentiles, the slope of latency with its interval, peak memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

MAX_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in one unit of ru_maxrss


def now(device: torch.device) -> float:
    """Seconds on a steady clock, after all queued work of the device has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Latency:
    """Milliseconds a chunk."""

    mean: float
    std: float
    p50: float
    p95: float


def latency(seconds: Sequence[float]) -> Latency:
    """Raises ValueError when there is nothing to summarise."""
    if len(seconds) < 2:
        raise ValueError(f"latency needs at least two chunks, got {len(seconds)}")
    ms = np.asarray(seconds) * 1000
    return Latency(float(ms.mean()), float(ms.std(ddof=1)), float(np.percentile(ms, 50)), float(np.percentile(ms, 95)))


@dataclass(frozen=True)
class Slope:
    """Growth of latency in percent of its median per 100 chunks, with a 95% confidence interval."""

    pct_per_100_chunks: float
    low: float
    high: float

    @property
    def constant(self) -> bool:
        """Whether the interval covers zero."""
        return self.low <= 0 <= self.high


def latency_slope(seconds: Sequence[float]) -> Slope:
    """Theil-Sen slope of latency over chunk number, with the interval of Kendall's rank test: single slow chunks, of which
    every machine has some, do not move it. Any unit will do, as the slope is relative."""
    from scipy.stats import theilslopes

    y = np.asarray(seconds, np.float64)
    if len(y) < 3:
        raise ValueError(f"a slope with an interval needs at least three chunks, got {len(y)}")
    found = theilslopes(y, np.arange(len(y)), alpha=0.95)
    scale = 100 * 100 / float(np.median(y))
    return Slope(float(found.slope) * scale, float(found.low_slope) * scale, float(found.high_slope) * scale)


class Peak:
    """Filled by `peak_memory`: megabytes (1e6), and what was measured."""

    megabytes: float = math.nan
    what: str = ""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Peak memory inside the `with`: CUDA's allocator on a GPU, else the process's resident set (Python and weights too)."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.megabytes, peak.what = torch.cuda.max_memory_allocated(device) / 1e6, "CUDA allocator"
        return
    reset = _reset_peak_rss()
    yield peak
    peak.megabytes = _peak_rss_bytes() / 1e6
    peak.what = "resident set of the process" + ("" if reset else ", since the process started")


def _reset_peak_rss() -> bool:
    """Linux lets a process reset its own high-water mark; elsewhere the mark covers the whole process life."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next((x for x in status.read_text().splitlines() if x.startswith("VmHWM")), "")
        if line:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAX_RSS_UNIT
