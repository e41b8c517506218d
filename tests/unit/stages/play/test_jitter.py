import numpy as np
import pytest

from msmodel.steering.controls import InputSmoothing
from msmodel.steering.steering import Steering
from msmodel.tracks import shares_to_px
from stages.play.jitter import INTENDED, RAW, SMOOTHED, Jitter, Script, figures, intended, jittered, streamed, target

SIZE, FPS, GRID = (40, 64), 24.0, (10, 16)
HELD = INTENDED[:1, 1:]


def drag(hand: InputSmoothing, steadied: bool, jitter: Jitter, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    script = Script(hand, steadied, HELD, jitter, SIZE[0] / SIZE[1], seed)
    return streamed(Steering(SIZE, FPS, hand, 320, GRID), script, FPS, (5, 6))


def mean_figures(hand: InputSmoothing, steadied: bool, jitter: Jitter) -> dict[str, float]:
    each = [figures(drag(hand, steadied, jitter, seed)[0][:, 0], SIZE, FPS) for seed in range(6)]
    return {key: float(np.mean([f[key] for f in each])) for key in each[0]}


def test_what_was_meant_goes_through_its_places_and_tremor_has_its_size():
    np.testing.assert_allclose(intended(INTENDED[:, 0]), INTENDED[:, 1:], atol=1e-9)
    assert intended(np.array([1.25]))[0].tolist() == pytest.approx(
        [0.25, 0.425]
    )  # half of minimum jerk's way at half its time
    times = np.arange(0, 6, 1 / 60)
    away = jittered(times, Jitter(tremor=0.02), 0.5, np.random.default_rng(0)) - intended(times)
    assert away[:, 0].std() == pytest.approx(0.02, rel=0.1) and away[:, 1].std() == pytest.approx(0.04, rel=0.1)


def test_figures_of_a_known_track():
    times = np.arange(0, 6, 1 / FPS)
    late = figures(shares_to_px(intended(np.maximum(times - 0.25, 0)), SIZE), SIZE, FPS)
    assert late["lag_ms"] == pytest.approx(250, abs=10)
    assert late["timed"] < 0.05 and late["path"] < 0.05
    beside = figures(shares_to_px(np.full((144, 2), [0.30, 0.60]), SIZE), SIZE, FPS)
    assert beside["jerk"] == 0 == beside["fastest"]
    ramp = np.stack([np.arange(10.0) ** 3, np.zeros(10)], axis=1)  # third difference 6 px
    assert figures(ramp, SIZE, FPS)["jerk"] == pytest.approx(6 / 64 * FPS**3)


@pytest.mark.slow
def test_treatment_brings_a_shaken_drag_nearer_to_what_was_meant():
    raw, treated = mean_figures(RAW, False, Jitter()), mean_figures(SMOOTHED, True, Jitter())
    assert treated["path"] < 0.5 * raw["path"]
    assert treated["jerk"] < 0.5 * raw["jerk"]
    assert raw["fastest"] > 1.7 and treated["fastest"] < 1.501
    assert 0 < treated["lag_ms"] - raw["lag_ms"] < 200
    chunks_only = mean_figures(SMOOTHED, False, Jitter())
    assert treated["path"] < 0.5 * chunks_only["path"], "what a chunk samples is aliased already"


def test_the_hand_leaves_the_frame_and_the_same_point_comes_back():
    xy, visible = drag(SMOOTHED, True, Jitter())
    seen = visible[:, 0].astype(int)
    assert np.diff(seen).tolist().count(-1) == 1 == np.diff(seen).tolist().count(1)
    assert seen[0] == seen[-1] == 1
    assert np.linalg.norm(np.diff(xy[:, 0], axis=0), axis=-1).max() < 1.501 * 64 / FPS


def test_where_held_points_were_meant_to_be():
    at = target(np.array([[0.3, 0.5], [0.4, 0.5]]), 12, 10.0, 0.1)
    assert at.shape == (12, 2, 2)
    np.testing.assert_allclose(at[:, 1] - at[:, 0], np.tile([0.1, 0], (12, 1)), atol=1e-9)
    np.testing.assert_allclose(at[11, 0], intended(np.array([1.0]))[0], atol=1e-9)
