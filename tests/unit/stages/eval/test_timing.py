import numpy as np
import pytest
import torch

from stages.eval.timing import latency, latency_slope, peak_memory


def test_a_known_growth_is_found_inside_its_interval():
    seconds = 0.1 * (1 + 0.05 * np.arange(400) / 100) * (1 + 0.02 * np.random.default_rng(0).normal(size=400))
    slope = latency_slope(seconds)
    growth = 100 * 0.005 / np.median(seconds)
    assert slope.low < growth < slope.high and not slope.constant
    assert slope.high - slope.low < 0.5  # percent


def test_jitter_without_growth_covers_zero():
    found = [latency_slope(1 + 0.02 * np.random.default_rng(s).normal(size=200)).constant for s in range(40)]
    assert 0.85 < np.mean(found) <= 1


def test_single_slow_chunks_move_no_slope():
    seconds = 1 + 0.02 * np.random.default_rng(0).normal(size=400)
    seconds[380:] *= 1.5
    slope = latency_slope(seconds)
    assert abs(slope.pct_per_100_chunks) < 0.6
    assert np.polyfit(np.arange(400), seconds, 1)[0] * 1e4 > 1.5  # least squares is taken in


def test_latency_figures():
    figures = latency([0.1, 0.2, 0.3])
    assert (
        figures.mean == pytest.approx(200) and figures.p50 == pytest.approx(200) and figures.std == pytest.approx(100)
    )
    with pytest.raises(ValueError, match="two chunks"):
        latency([0.1])
    with pytest.raises(ValueError, match="three chunks"):
        latency_slope([0.1, 0.1])


def test_peak_memory_sees_an_allocation():
    with peak_memory(torch.device("cpu")) as before:
        pass
    with peak_memory(torch.device("cpu")) as peak:
        block = torch.ones(40_000_000)
        del block
    assert peak.megabytes > before.megabytes + 100 and "resident" in peak.what
