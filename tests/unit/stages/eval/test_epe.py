from dataclasses import astuple

import numpy as np
import pytest

from stages.eval.epe import TrackError, average, retrack, track_error
from stages.trackers import TrackerConfig, make_tracker
from tests.unit.stages.eval.world import SIZE, panning


@pytest.fixture
def tracks() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.uniform(0, 300, (9, 7, 2)), generator.random((9, 7)) < 0.7


def test_tracks_against_themselves_have_no_error(tracks):
    xy, visible = tracks
    error = track_error(xy, visible, xy, visible)
    assert (error.epe, error.median, error.within_4px, error.seen) == (0, 0, 1, 1)


def test_a_shift_by_3_and_4_is_an_error_of_5(tracks):
    xy, visible = tracks
    error = track_error(xy, visible, xy + np.array([3, 4]), visible)
    assert error.epe == pytest.approx(5)
    assert (error.within_4px, error.within_8px) == (0, 1)


def test_a_distance_equal_to_the_threshold_is_not_within_it():
    xy, visible = np.zeros((2, 1, 2)), np.ones((2, 1), bool)
    assert track_error(xy, visible, xy + np.array([4, 0]), visible).within_4px == 0


def test_scaling_both_scales_the_error(tracks):
    xy, visible = tracks
    found = xy + np.random.default_rng(1).normal(0, 5, xy.shape)
    assert track_error(2.5 * xy, visible, 2.5 * found, visible).epe == pytest.approx(
        2.5 * track_error(xy, visible, found, visible).epe
    )


def test_permuting_points_changes_nothing(tracks):
    xy, visible = tracks
    found, order = xy + np.random.default_rng(1).normal(0, 5, xy.shape), np.random.default_rng(2).permutation(7)
    a = track_error(xy, visible, found, visible)
    b = track_error(xy[:, order], visible[:, order], found[:, order], visible[:, order])
    assert astuple(a) == pytest.approx(astuple(b))


def test_the_conditioning_frame_is_left_out(tracks):
    xy, visible = tracks
    found = xy.copy()
    found[0] += 1000
    assert track_error(xy, visible, found, visible).epe == 0


def test_nothing_visible_is_nan(tracks):
    xy, visible = tracks
    error = track_error(xy, np.zeros_like(visible), xy + 1, visible)
    assert all(np.isnan(v) for v in astuple(error))


def test_masked_by_input_visibility_not_by_what_the_retracker_lost(tracks):
    xy, _ = tracks
    visible, lost = np.ones((9, 7), bool), np.zeros((9, 7), bool)
    error = track_error(xy, visible, xy + np.array([3, 4]), lost)
    assert error.epe == pytest.approx(5) and error.seen == 0


def test_moving_counts_only_tracks_that_get_far_enough():
    xy = np.zeros((3, 2, 2))
    xy[:, 1, 0] = [0, 5, 10]  # the second track moves 10 px
    found = np.zeros_like(xy)  # nothing moved in the generated clip
    error = track_error(xy, np.ones((3, 2), bool), found, np.ones((3, 2), bool), moving_px=4)
    assert error.epe == pytest.approx((0 + 0 + 5 + 10) / 4) and error.moving == pytest.approx(7.5)
    assert error.frozen == error.epe  # which is what standing still costs


def test_average_is_over_clips_not_pooled_and_skips_what_is_nan():
    nan = float("nan")
    a, b = TrackError(1, nan, 1, 1, 1, 1, 1, 1), TrackError(3, 2, 1, 1, 1, 1, 0, 1)
    mean = average([a, b])
    assert (mean.epe, mean.moving, mean.seen) == (2, 2, 0.5)
    assert np.isnan(average([]).epe)


def test_wrong_shapes_and_lost_numbers_are_errors(tracks):
    xy, visible = tracks
    with pytest.raises(ValueError, match="shape"):
        track_error(xy, visible, xy[:, :3], visible[:, :3])
    with pytest.raises(ValueError, match="not finite"):
        track_error(xy, np.ones_like(visible), np.full_like(xy, np.nan), visible)


def test_retracking_a_known_pan_measures_it_in_raster_pixels():
    frames = panning(3, (1, 0))
    grid = np.stack(np.meshgrid(np.arange(6.0, 30, 6), np.arange(6.0, 28, 6)), -1).reshape(-1, 2)
    moving = (grid + np.arange(len(frames))[:, None, None] * np.array([1.0, 0])).astype(np.float32)
    still = np.broadcast_to(grid, moving.shape).astype(np.float32)
    seen = np.ones(moving.shape[:2], bool)
    tracker = make_tracker(TrackerConfig(name="lucas_kanade", max_back_px=2.0))
    raster = (2 * SIZE[0], 2 * SIZE[1])

    def measure(asked: np.ndarray) -> TrackError:
        return retrack(
            frames, asked, seen, raster, lambda *a: (tracker.track(*a).xy_px, tracker.track(*a).visible), 4.0
        )

    assert measure(moving).epe < 0.5
    assert measure(moving).seen > 0.95
    assert measure(still).epe == pytest.approx(2 * np.arange(1, len(frames)).mean(), rel=0.05)


def test_tracks_not_visible_in_frame_0_are_not_asked_for():
    asked = []

    def tracker(frames: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(queries)
        xy = np.repeat(queries[None], len(frames), 0)
        return xy, np.ones(xy.shape[:2], bool)

    xy, visible = np.full((4, 3, 2), 8, np.float32), np.ones((4, 3), bool)
    visible[0, 1] = False
    error = retrack(panning(1, (0, 0), 4), xy, visible, SIZE, tracker, 4.0)
    assert len(asked[0]) == 2 and error.epe == 0
    assert np.isnan(retrack(panning(1, (0, 0), 4), xy, ~np.ones((4, 3), bool), SIZE, tracker, 4.0).epe)
    assert len(asked) == 1
