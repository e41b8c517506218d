"""Timing: synchronised clocks, percentiles, the slope of latency with its interval, and peak memory."""

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
    """Returns seconds on a monotonic clock, after all queued work of the device has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Latency:
    """Latency of a chunk in milliseconds: mean, standard deviation, median and 95th percentile."""

    mean: float
    std: float
    p50: float
    p95: float


def latency(seconds: Sequence[float]) -> Latency:
    """Returns the latency figures of chunks. Raises ValueError if there are fewer than two."""
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
        """Returns whether the interval contains zero."""
        return self.low <= 0 <= self.high


def latency_slope(seconds: Sequence[float]) -> Slope:
    """Returns the Theil-Sen slope of latency over chunk number, with the interval of Kendall's rank test.

    Single slow chunks, which occur on every machine, do not change it. The slope is relative, so `seconds` can have any
    unit. Raises ValueError on fewer than three chunks.
    """
    from scipy.stats import theilslopes

    y = np.asarray(seconds, np.float64)
    if len(y) < 3:
        raise ValueError(f"a slope with an interval needs at least three chunks, got {len(y)}")
    found = theilslopes(y, np.arange(len(y)), alpha=0.95)
    scale = 100 * 100 / float(np.median(y))
    return Slope(float(found.slope) * scale, float(found.low_slope) * scale, float(found.high_slope) * scale)


class Peak:
    """Peak memory, filled in by `peak_memory`. megabytes: 1e6 bytes. what: what was measured."""

    megabytes: float = math.nan
    what: str = ""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures peak memory inside the `with`: CUDA's allocator on a GPU, else the process's resident set.

    The resident set includes Python and weights.
    """
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
    """Resets the process's peak resident set and returns whether that worked.

    Only Linux allows it; elsewhere the peak is that of the whole life of the process.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss_bytes() -> int:
    """Returns the process's peak resident set in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next((x for x in status.read_text().splitlines() if x.startswith("VmHWM")), "")
        if line:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAX_RSS_UNIT
