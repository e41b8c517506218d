import numpy as np
import pytest

from msmodel.points import inside, uniform_grid
from msmodel.steering.authored import KINDS, Authored, authored

SIZE, GRID = (40, 64), (10, 16)


def make(kind: str, frames: int = 60, **how):
    return authored(kind, SIZE, frames, 24.0, GRID, 320, Authored(**how))


@pytest.mark.parametrize("kind", KINDS)
def test_begins_with_the_grid_and_stays_inside(kind):
    xy, visible = make(kind)
    assert xy.shape == (60, 320, 2) and xy.dtype == np.float32 and visible.shape == (60, 320)
    begin = xy[0, visible[0]]
    np.testing.assert_allclose(
        np.array(sorted(begin.tolist())), np.array(sorted(uniform_grid(*SIZE, *GRID).tolist())), atol=1e-4
    )
    assert inside(xy[visible], *SIZE).all()
    steps = np.linalg.norm(np.diff(xy, axis=0), axis=-1)[visible[1:] & visible[:-1]]
    assert 0.2 < steps.max() < 1.5


def test_pan_moves_by_its_speed_and_any_length_begins_the_same():
    xy, visible = make("pan", pan=(0.375, 0.0))
    both = visible[1:] & visible[:-1]
    np.testing.assert_allclose(np.diff(xy, axis=0)[both], np.tile([1.0, 0], (both.sum(), 1)), atol=1e-4)
    longer = make("pan", 100, pan=(0.375, 0.0))
    assert np.array_equal(longer[0][:60], xy) and np.array_equal(longer[1][:60], visible)


def test_drag_moves_what_is_under_the_brush_and_nothing_else():
    xy, visible = make("drag", 61, start=(0.25, 0.5), end=(0.75, 0.5), radius=0.1, seconds=1.0)
    reach = np.where(visible, np.linalg.norm(xy - xy[:1], axis=-1), 0).max(axis=0)
    moved = visible[0] & (reach > 1e-3)
    centre = np.array([16, 20])
    assert set(map(tuple, xy[0, moved])) == {
        tuple(p) for p in uniform_grid(*SIZE, *GRID) if np.hypot(*(p - centre)) <= 6.4
    }
    np.testing.assert_allclose(xy[12, moved] - xy[0, moved], [[16, 0]] * moved.sum(), atol=1e-4)  # half the way
    np.testing.assert_allclose(xy[-1, moved] - xy[0, moved], [[32, 0]] * moved.sum(), atol=1e-4)


def test_an_unknown_motion_is_refused():
    with pytest.raises(ValueError, match="'twirl'"):
        make("twirl")
