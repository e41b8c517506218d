import numpy as np
import pytest

from stages.eval.drift import laplacian_variance, picture_drift, saturation, trend, windows
from tests.unit.stages.eval.world import panning


def test_a_static_clip_does_not_drift():
    video = np.repeat(panning(1, (0, 0), 1), 60, 0)
    for figure in picture_drift(video, 20).values():
        assert figure.slope_per_100_frames == pytest.approx(0, abs=1e-6)


def test_a_gain_ramp_has_its_known_slope():
    """Grey that brightens: L of each window is known, so is the slope."""
    levels = np.repeat([50, 80, 110, 140], 10).astype(np.uint8)
    video = np.broadcast_to(levels[:, None, None, None], (40, 8, 8, 3)).astype(np.uint8)

    def lightness(level: float) -> float:
        linear = ((level / 255 + 0.055) / 1.055) ** 2.4
        return 116 * np.cbrt(linear) - 16

    shifts = [lightness(v) - lightness(50) for v in (50, 80, 110, 140)]
    figure = picture_drift(video, 10)["lab_shift"]
    np.testing.assert_allclose(figure.values, shifts, atol=0.1)
    expected = np.polyfit(np.arange(4) * 10 / 100, shifts, 1)[0]
    assert figure.slope_per_100_frames == pytest.approx(expected, rel=0.01)


def test_slope_and_ratio():
    t = trend([1.0, 2.0, 3.0], 50)
    assert t.slope_per_100_frames == pytest.approx(2) and t.last_over_first == 3
    assert trend([1.0, float("nan"), 3.0], 50).slope_per_100_frames == pytest.approx(2)
    assert np.isnan(trend([0.0, 1.0], 10).last_over_first) and np.isnan(trend([1.0], 10).slope_per_100_frames)


def test_windows_leave_a_rest_out():
    assert [len(w) for w in windows(np.zeros((25, 1)), 10)] == [10, 10]
    with pytest.raises(ValueError, match="no window"):
        picture_drift(np.zeros((5, 8, 8, 3), np.uint8), 10)


def test_figures_by_hand():
    red, grey = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 90, np.uint8)
    red[..., 0] = 200
    assert saturation(red) == 1 and saturation(grey) == 0 and laplacian_variance(grey) == 0
    assert laplacian_variance(panning(1, (0, 0), 1)) > 0
