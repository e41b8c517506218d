import numpy as np
import pytest

from msmodel.steering.controls import Controls, InputSmoothing
from msmodel.steering.smoothing import Steady


def snapshot(*rows: tuple[int, float, float], pinned: tuple[int, ...] = (), revision: int = 0) -> Controls:
    return Controls(
        revision=revision,
        ids=np.array([r[0] for r in rows], np.int64),
        xy=np.array([r[1:] for r in rows], np.float32).reshape(-1, 2),
        pinned=np.array([r[0] in pinned for r in rows], bool),
    )


def test_a_step_is_followed_exponentially_in_real_time():
    steady = Steady(InputSmoothing(smooth_seconds=0.1), 9)
    steady.hear(snapshot((1, 0.2, 0.5)), 0.0)
    steady.hear(snapshot((1, 0.6, 0.5)), 1.0)
    assert steady.read(1.1).xy[0, 0] == pytest.approx(0.6 - 0.4 * np.exp(-1), abs=1e-6)
    assert steady.read(9.0).xy[0].tolist() == pytest.approx([0.6, 0.5], abs=1e-6), "no snapshot came, yet it arrives"


def test_tremor_of_ten_hertz_is_a_fifth_of_what_it_was():
    steady = Steady(InputSmoothing(smooth_seconds=0.08), 9)
    seen = []
    for i in range(240):
        steady.hear(snapshot((1, 0.5 + 0.01 * np.sin(2 * np.pi * 10 * i / 60), 0.5)), i / 60)
        seen.append(steady.read(i / 60 + 1e-9).xy[0, 0])
    gain = np.ptp(seen[120:]) / 0.02
    assert gain == pytest.approx(1 / np.hypot(1, 2 * np.pi * 10 * 0.08), rel=0.1)


def test_origin_is_where_a_point_was_first_heard_of_until_a_chunk_saw_it():
    steady = Steady(InputSmoothing(smooth_seconds=0), 9)
    steady.hear(snapshot((1, 0.2, 0.5)), 0.0)
    steady.hear(snapshot((1, 0.3, 0.5), revision=7), 0.1)
    read = steady.read(0.2)
    assert read.revision == 7 and read.origin is not None
    np.testing.assert_allclose([read.origin[0], read.xy[0]], [[0.2, 0.5], [0.3, 0.5]], atol=1e-6)
    steady.hear(snapshot((1, 0.4, 0.5)), 0.3)
    np.testing.assert_allclose(steady.read(0.4).origin, [[0.4, 0.5]], atol=1e-6)


def test_a_point_let_go_between_chunks_is_seen_once_more_where_it_was_let_go():
    steady = Steady(InputSmoothing(), 9)
    steady.hear(snapshot((1, 0.2, 0.5), (2, 0.8, 0.8), pinned=(2,)), 0.0)
    steady.read(0.1)
    steady.hear(snapshot((1, 0.5, 0.5), (2, 0.8, 0.8), pinned=(2,)), 0.2)
    steady.hear(snapshot(), 0.21)
    read = steady.read(0.3)
    assert read.ids.tolist() == [1], "a pin that is taken away is gone"
    np.testing.assert_allclose(read.xy, [[0.5, 0.5]], atol=1e-6)
    assert not len(steady.read(0.4).ids)
    steady.hear(snapshot((1, 0.5, 0.5)), 0.5)
    steady.read(9.0)
    steady.hear(snapshot(), 10.0)
    assert not len(steady.read(10.1).ids), "the last chunk had it there already"


def test_a_drag_between_two_chunks_is_not_lost():
    steady = Steady(InputSmoothing(), 9)
    steady.read(0.0)
    steady.hear(snapshot((1, 0.2, 0.5)), 0.1)
    steady.hear(snapshot((1, 0.6, 0.5)), 0.15)
    steady.hear(snapshot(), 0.2)
    read = steady.read(0.25)
    assert read.origin is not None
    np.testing.assert_allclose([read.origin[0], read.xy[0]], [[0.2, 0.5], [0.6, 0.5]], atol=1e-6)


def test_pins_are_not_smoothed():
    steady = Steady(InputSmoothing(smooth_seconds=1.0), 9)
    steady.hear(snapshot((1, 0.2, 0.5)), 0.0)
    steady.hear(snapshot((1, 0.6, 0.5), pinned=(1,)), 0.1)
    read = steady.read(0.1)
    assert read.pinned.tolist() == [True] and read.xy[0, 0] == pytest.approx(0.6)


def test_points_let_go_are_left_out_where_there_is_no_room():
    steady = Steady(InputSmoothing(), 3)
    for i in range(9):
        steady.hear(snapshot((i, 0.1, 0.5)), 0.02 * i)
        steady.hear(snapshot((i, 0.2, 0.5)), 0.02 * i + 0.01)
    assert steady.read(0.3).ids.tolist() == [6, 7, 8], "the newest of them are kept"
