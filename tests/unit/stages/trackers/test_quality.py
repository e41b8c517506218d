import numpy as np
import pytest

from stages.trackers.quality import tapvid

XY = np.random.default_rng(0).uniform(0, 256, (5, 7, 2))
ALL = np.ones((5, 7), bool)


def test_the_truth_scores_one():
    assert tapvid(XY, ALL, XY, ALL, 256, 256) == {"delta_avg": 1.0, "oa": 1.0, "aj": 1.0}


def test_thresholds_are_strict_and_on_the_raster():
    off = tapvid(XY, ALL, XY + np.array([3.0, 0.0]), ALL, 256, 256)
    assert off["delta_avg"] == pytest.approx(3 / 5)  # within 4, 8, 16
    assert off["aj"] == pytest.approx(3 / 5)  # a threshold with no hit gives 0 / (GT + FP)
    assert tapvid(XY, ALL, XY + np.array([4.0, 0.0]), ALL, 256, 256)["delta_avg"] == pytest.approx(2 / 5)
    assert tapvid(XY / 2, ALL, XY / 2 + [1.5, 0.0], ALL, 128, 128)["delta_avg"] == pytest.approx(3 / 5)


def test_wrong_visibility_costs_accuracy_and_jaccard():
    half = ALL.copy()
    half[1:3] = False
    unseen = tapvid(XY, ALL, XY, half, 256, 256)
    assert (unseen["delta_avg"], unseen["oa"], unseen["aj"]) == pytest.approx((1.0, 0.5, 0.5))
    ghosts = tapvid(XY, half, XY, ALL, 256, 256)
    assert (ghosts["oa"], ghosts["aj"]) == pytest.approx((0.5, 0.5))


def test_nothing_visible_is_nan():
    assert np.isnan(tapvid(XY, ~ALL, XY, ALL, 256, 256)["aj"])
