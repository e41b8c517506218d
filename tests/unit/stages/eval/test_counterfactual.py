import numpy as np
import pytest

from stages.eval.counterfactual import KINDS, Motions, authored, stays_inside, swapped

SIZE, FRAMES = (48, 80), 29
HOW = Motions(pan=0.2, zoom=1.5, drag=0.25, grid_rows=6, grid_cols=10)


def make(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return authored(kind, SIZE, FRAMES, HOW, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_starts_inside_and_visible_and_moves_steadily(kind):
    xy, visible = make(kind)
    assert xy.dtype == np.float32 and xy.shape == (FRAMES, visible.shape[1], 2)
    assert visible[0].all()
    steps = np.diff(xy, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-4)


def test_pan_moves_everything_alike_by_its_share_of_the_width():
    xy, _ = make("pan")
    moved = xy[-1] - xy[0]
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:1], moved.shape), atol=1e-4)
    assert np.linalg.norm(moved[0]) == pytest.approx(0.2 * 80, rel=1e-5)


def test_zoom_scales_about_the_centre():
    xy, visible = make("zoom")
    centre = np.array([40, 24])
    np.testing.assert_allclose(xy[-1] - centre, 1.5 * (xy[0] - centre), rtol=1e-4)
    assert not visible[-1].all()  # corners leave


def test_drag_dense_moves_a_region_and_pins_the_rest():
    xy, _ = make("drag_dense")
    far = np.linalg.norm(xy[-1] - xy[0], axis=-1)
    moving = far > 0
    assert 0 < moving.sum() < len(far) / 2
    np.testing.assert_allclose(far[moving], 0.25 * 80, rtol=1e-5)


def test_what_a_dragged_region_covers_is_not_asked_for():
    """In training a covered point is invisible too; two points in one place cannot both be followed."""
    xy, visible = make("drag_dense")
    pinned = np.linalg.norm(xy[-1] - xy[0], axis=-1) == 0
    assert not pinned[-1] and pinned[0]  # the dragged ones come last, so that they win a shared cell
    middle = xy[:, ~pinned].mean(axis=1)
    near = np.linalg.norm(xy - middle[:, None], axis=-1) < 0.15 * 80
    assert (near & pinned)[-1].any()
    assert not (visible & near & pinned).any()
    assert visible[0].all()


def test_drag_sparse_has_few_points_dragged_first():
    xy, _ = make("drag_sparse")
    far = np.linalg.norm(xy[-1] - xy[0], axis=-1)
    assert (far > 0).tolist() == [True] * 4 + [False] * 8


def test_the_generator_decides():
    assert (make("pan", 1)[0] == make("pan", 1)[0]).all()
    assert not np.allclose(make("pan", 1)[0], make("pan", 2)[0])


def test_unknown_kind():
    with pytest.raises(ValueError, match="drag_dense"):
        make("spin")


def test_a_point_that_left_does_not_come_back():
    xy = np.array([[[5.0, 5]], [[-1, 5]], [[5, 5]]])
    assert stays_inside(xy, SIZE)[:, 0].tolist() == [True, False, False]


def test_swap_keeps_what_frame_0_shows():
    visible = np.array([[True, False], [True, True]])
    xy, seen = swapped(np.zeros((2, 2, 2)), visible)
    assert xy.shape == (2, 1, 2) and seen.all()
