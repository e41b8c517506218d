import numpy as np
import pytest

from msmodel.points import ping_pong, too_close


def test_ping_pong_never_jumps():
    at = ping_pong(5, 20)
    assert at[:10].tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1]
    assert set(np.abs(np.diff(at))) == {1}
    with pytest.raises(ValueError, match="one frame"):
        ping_pong(1, 3)


def test_a_piece_of_ping_pong_is_the_slice_of_the_whole():
    assert ping_pong(5, 17, 11).tolist() == ping_pong(5, 17)[11:].tolist()


def test_of_two_points_that_crowd_the_lower_rank_stays_and_who_has_gone_crowds_nobody():
    places = np.array([[0.0, 0], [0.4, 0], [0.8, 0], [5, 5]])
    assert too_close(places, np.array([0, 1, 2, 3]), 0.5).tolist() == [False, True, False, False]
    assert too_close(places, np.array([2, 0, 1, 3]), 0.5).tolist() == [True, False, True, False]
    assert too_close(places[:1], np.zeros(1), 0.5).tolist() == [False]
