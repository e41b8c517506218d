import numpy as np
import pytest

from msmodel.steering.controls import Controls, DrawnPath, InputSmoothing
from msmodel.steering.steering import Steering, along

SIZE, FPS, GRID = (40, 64), 24.0, (10, 16)
STIFF = InputSmoothing(smooth_seconds=0, max_speed=0)


def steering(hand: InputSmoothing = STIFF, slots: int = 8) -> Steering:
    return Steering(SIZE, FPS, hand, slots, GRID)


def points(*rows: tuple[int, float, float, bool], **more) -> Controls:
    """Rows of id, x px, y px, pinned."""
    xy = np.array([[r[1] / 64, r[2] / 40] for r in rows], np.float32).reshape(-1, 2)
    return Controls(
        ids=np.array([r[0] for r in rows], np.int64), xy=xy, pinned=np.array([r[3] for r in rows], bool), **more
    )


def line(id_: int, members, line, seconds: float) -> DrawnPath:
    size = np.array([64, 40])
    return DrawnPath(id_, np.array(members, float).reshape(-1, 2) / size, np.array(line, float) / size, seconds)


def test_a_new_point_is_at_its_place_at_once_and_a_dragged_one_arrives_as_the_chunk_ends():
    s = steering()
    xy, seen = s.tracks(points((7, 10, 20, False)), 0, 5)
    assert xy.shape == (5, 8, 2) and xy.dtype == np.float32 and seen.dtype == bool
    assert seen[:, 0].all() and not seen[:, 1:].any()
    np.testing.assert_allclose(xy[:, 0], [[10, 20]] * 5, atol=1e-5)
    xy, seen = s.tracks(points((7, 16, 26, False)), 5, 6)
    np.testing.assert_allclose(xy[:, 0], [[10 + i, 20 + i] for i in range(1, 7)], atol=1e-5)
    assert seen[:, 0].all()


def test_a_point_grabbed_between_chunks_starts_where_it_was_grabbed():
    s = steering()
    grabbed = points((1, 20, 20, False), origin=np.array([[10 / 64, 0.5]], np.float32))
    np.testing.assert_allclose(s.tracks(grabbed, 0, 5)[0][:, 0, 0], [10, 12.5, 15, 17.5, 20], atol=1e-5)


def test_smoothing_lags_by_its_time_constant_less_half_a_frame():
    s = steering(InputSmoothing(smooth_seconds=0.1, max_speed=0))
    for chunk in range(12):
        xy, _ = s.tracks(points((1, 4 + 3 * chunk, 20, False)), 6 * chunk, 6)
    speed = 3 / 6  # px a frame; frame k of the last chunk is led to 34 + (k + 1) / 2
    gain = 1 - np.exp(-1 / 2.4)
    np.testing.assert_allclose(xy[:, 0, 0], 34 + speed * np.arange(1, 7) - speed * (1 - gain) / gain, atol=1e-3)
    assert (1 - gain) / gain == pytest.approx(0.1 * FPS - 0.5, abs=0.04)


def test_speed_is_limited_and_the_rest_made_up_for_later():
    s = steering(InputSmoothing(smooth_seconds=0, max_speed=0.75))  # 2 px a frame
    s.tracks(points((1, 4, 20, False)), 0, 5)
    xy, _ = s.tracks(points((1, 34, 20, False)), 5, 6)
    np.testing.assert_allclose(xy[:, 0, 0], [6, 8, 10, 12, 14, 16], atol=1e-5)
    xy, _ = s.tracks(points((1, 34, 20, False)), 11, 12)
    np.testing.assert_allclose(xy[:, 0, 0], [*range(18, 35, 2), 34, 34, 34], atol=1e-5)


def test_a_released_point_is_free_or_stays_where_it_was_let_go():
    for release in ("free", "pin"):
        s = steering(InputSmoothing(0, 0, release))
        s.tracks(points((1, 10, 20, False), (2, 50, 20, True)), 0, 5)
        s.tracks(points((1, 22, 20, False), (2, 50, 20, True)), 5, 6)
        xy, seen = s.tracks(points(), 11, 6)
        assert not seen[:, 1].any(), "a pin that is taken away is gone"
        assert seen[:, 0].all() == (release == "pin") == seen.any()
        if release == "pin":
            np.testing.assert_allclose(xy[:, 0], [[22, 20]] * 6, atol=1e-5)
            xy, seen = s.tracks(points((1, 28, 20, False)), 17, 6)
            np.testing.assert_allclose(xy[:, 0, 0], range(23, 29), atol=1e-5)
            assert seen.sum() == 6, "dragged again it is one point, in its slot"


def test_a_point_outside_the_frame_is_invisible_and_the_same_when_it_returns():
    s = steering()
    s.tracks(points((1, 60, 20, False), (2, 10, 10, True)), 0, 5)
    _, seen = s.tracks(points((1, 66, 20, False), (2, 10, 10, True)), 5, 6)
    assert seen[:, 0].tolist() == [True, True, True, False, False, False]
    xy, seen = s.tracks(points((1, 60, 20, False), (2, 10, 10, True)), 11, 6)
    assert seen[:, 0].tolist() == [False, False, True, True, True, True]
    np.testing.assert_allclose(xy[-1, 0], [60, 20], atol=1e-5)


def test_a_free_slot_is_used_last():
    s = steering(slots=3)
    s.tracks(points((1, 10, 20, False), (2, 40, 20, False)), 0, 5)
    _, seen = s.tracks(points((2, 40, 20, False), (3, 30, 5, False)), 5, 6)
    assert seen[0].tolist() == [False, True, True], "slot 2, which nobody had, before slot 0"
    _, seen = s.tracks(points((2, 40, 20, False), (3, 10, 20, False), (4, 20, 20, False)), 11, 6)
    assert seen.all()
    with pytest.raises(ValueError, match="4 points are more than the 3"):
        s.tracks(points(*((i, 10, 10, True) for i in range(4))), 17, 6)


def test_a_path_moves_its_members_at_constant_speed_and_then_holds_them():
    s = steering()
    s.tracks(points(), 0, 5)
    corner = line(3, [(10, 10), (20, 30)], [(0, 0), (6, 0), (6, 6)], 0.5)  # 12 px in 12 frames
    xy, seen = s.tracks(points(paths=(corner,)), 5, 6)
    np.testing.assert_allclose(xy[:, 0], [[10 + i, 10] for i in range(6)], atol=1e-5)
    np.testing.assert_allclose(xy[:, 1], [[20 + i, 30] for i in range(6)], atol=1e-5)
    xy, seen = s.tracks(points(paths=(corner,)), 11, 12)
    np.testing.assert_allclose(xy[:, 0], [[16, 10 + min(i, 6)] for i in range(12)], atol=1e-5)
    assert seen[:, :2].all()
    assert not s.tracks(points(), 23, 6)[1].any()


def test_along_is_parametrised_by_arc_length():
    np.testing.assert_allclose(
        along(np.array([[1, 1], [4, 5], [4, 15]]), np.array([0, 1 / 6, 1 / 3, 2 / 3, 1])),
        [[0, 0], [1.5, 2], [3, 4], [3, 9], [3, 14]],
    )
    assert along(np.array([[3, 3]]), np.array([0.0, 1.0])).tolist() == [[0, 0], [0, 0]]


def test_pinned_points_are_hidden_while_something_is_dragged_over_them():
    s = steering()
    s.tracks(points((1, 10, 20, False), (2, 16, 20, True)), 0, 5)
    _, seen = s.tracks(points((1, 22, 20, False), (2, 16, 20, True)), 5, 6)
    assert seen[:, 0].all() and seen[:, 1].tolist() == [True, False, False, False, True, True]


def test_a_motion_plays_back_and_forth_from_the_chunk_that_names_it():
    s = steering(slots=4)
    xy = np.array([[[x, 20], [x, 30], [x, 4]] for x in (10.0, 12, 14, 16)])
    seen = np.ones((4, 3), bool)
    seen[2, 1], xy[2, 1] = False, np.nan
    s.add_motion("walk", xy, seen)
    s.tracks(points(), 0, 5)
    out, visible = s.tracks(points(transfer="walk"), 5, 6)
    assert out[:, 0, 0].tolist() == [10, 12, 14, 16, 14, 12]
    assert visible[:, 1].tolist() == [True, True, False, True, False, True]
    assert s.tracks(points(transfer="walk"), 11, 6)[0][:, 0, 0].tolist() == [10, 12, 14, 16, 14, 12]
    assert not s.tracks(points(), 17, 6)[1].any()
    with pytest.raises(ValueError, match="no motion 'run'"):
        s.tracks(points(transfer="run"), 23, 6)
    with pytest.raises(ValueError, match="T n 2"):
        s.add_motion("flat", xy[0], seen[0])


def test_the_users_points_stand_above_a_motion_and_take_its_slots():
    s = steering(slots=2)
    s.add_motion("still", np.tile([[[10.0, 10], [30, 10]]], (2, 1, 1)), np.ones((2, 2), bool))
    xy, seen = s.tracks(points((1, 11, 11, False), transfer="still"), 0, 5)
    assert seen.sum(axis=1).tolist() == [1] * 5
    np.testing.assert_allclose(xy[0, 0], [11, 11])


def test_live_points_follow_the_newest_picture_and_lost_ones_go():
    s = steering()
    s.see([4, 5], np.array([[10.0, 10], [30, 30]]))
    s.tracks(points(transfer="webcam"), 0, 5)
    s.see([5, 6], np.array([[36.0, 30], [50, 10]]))
    xy, seen = s.tracks(points(transfer="webcam"), 5, 6)
    assert seen.all(axis=0).tolist() == [False, True, True] + [False] * 5
    np.testing.assert_allclose(xy[:, 1, 0], range(31, 37))
    s.see([4], np.array([[50.0, 30]]))
    xy, seen = s.tracks(points(transfer="webcam"), 11, 6)
    np.testing.assert_allclose(xy[seen], [[50, 30]] * 6)  # it was lost: it does not come from where it was
    assert not s.tracks(points(), 17, 6)[1].any()


def test_reset_and_fork():
    s = steering(InputSmoothing())
    s.tracks(points((1, 10, 20, False)), 0, 5)
    other = s.fork()
    want = [a.tolist() for a in s.tracks(points((1, 30, 20, False)), 5, 6)]
    assert [a.tolist() for a in other.tracks(points((1, 30, 20, False)), 5, 6)] == want
    s.reset()
    np.testing.assert_allclose(s.tracks(points((1, 30, 20, False)), 0, 5)[0][:, 0], [[30, 20]] * 5, atol=1e-5)


def test_bad_input_is_stopped():
    with pytest.raises(ValueError, match="release: 'drop'"):
        steering(InputSmoothing(release="drop"))
    with pytest.raises(AssertionError):
        steering().tracks(points((1, float("nan"), 2, False)), 0, 5)
    with pytest.raises(AssertionError, match="in order"):
        steering().tracks(points(), 6, 6)
