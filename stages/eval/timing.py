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
    """Growth of latency in percent of its mean per 100 chunks, with a 95% confidence interval."""

    pct_per_100_chunks: float
    low: float
    high: float

    @property
    def constant(self) -> bool:
        """Whether the interval covers zero."""
        return self.low <= 0 <= self.high


def latency_slope(seconds: Sequence[float]) -> Slope:
    """Least squares of latency over chunk number; the interval is Student's t with n - 2 degrees of freedom."""
    from scipy.stats import t as student

    y = np.asarray(seconds, np.float64)
    if len(y) < 3:
        raise ValueError(f"a slope with an interval needs at least three chunks, got {len(y)}")
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float((x * y).sum() / np.square(x).sum())
    rest = y - y.mean() - slope * x
    error = math.sqrt(np.square(rest).sum() / (len(y) - 2) / np.square(x).sum())
    half = float(student.ppf(0.975, len(y) - 2)) * error
    scale = 100 * 100 / float(y.mean())
    return Slope(slope * scale, (slope - half) * scale, (slope + half) * scale)


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
