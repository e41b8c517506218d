import numpy as np

from msmodel.points import inside, uniform_grid
from msmodel.steering.controls import Camera, Controls, DrawnPath, InputSmoothing
from msmodel.steering.ground import Ground
from msmodel.steering.steering import Steering

SIZE, FPS, GRID = (40, 64), 24.0, (10, 16)
CENTRES = uniform_grid(*SIZE, *GRID)


def filled(xy: np.ndarray, visible: np.ndarray) -> float:
    """Share of the grid's cells that hold a visible point."""
    cells = {(int(x // 4), int(y // 4)) for x, y in xy[visible]}
    return len(cells) / 160


def test_a_still_camera_is_the_training_grid_for_ever():
    ground = Ground(SIZE, FPS, GRID)
    for count in (5, 6, 6):
        names, xy, visible = ground.frames(Camera(), count)
        assert names == list(range(160)) and visible.all()
        np.testing.assert_allclose(xy, np.broadcast_to(CENTRES, (count, 160, 2)), atol=1e-9)


def test_a_pan_moves_all_points_and_fills_what_comes_in():
    ground = Ground(SIZE, FPS, GRID)
    names, xy, _ = ground.frames(Camera(pan_x=0.375), 5)  # a pixel a frame
    at = {name: xy[:, i] for i, name in enumerate(names)}
    np.testing.assert_allclose(at[0], CENTRES[0] + [[i, 0] for i in range(5)], atol=1e-9)
    before, shares = None, []
    for _ in range(40):  # 240 px: almost four frames' widths
        names, xy, visible = ground.frames(Camera(pan_x=0.375), 6)
        np.testing.assert_allclose(np.diff(xy, axis=0), np.broadcast_to([1, 0], (5, len(names), 2)), atol=1e-9)
        shares.append(filled(xy[-1], visible[-1]))
        assert visible[-1].sum() <= 180
        assert len(set(names)) == len(names)
        if before:
            shared = [n for n in names if n in before]
            assert len(shared) > 120
            steps = [xy[0, names.index(n)] - before[n] for n in shared]
            np.testing.assert_allclose(steps, [[1, 0]] * len(shared), atol=1e-9)
        before = {n: xy[-1, i] for i, n in enumerate(names)}
    assert min(shares) > 0.8 and np.mean(shares) > 0.9
    assert len(ground._names) < 260, "those that left are forgotten"
    assert min(before) > 160, "the first points have long left"


def test_every_camera_keeps_the_frame_covered_and_the_points_few():
    slope = np.tile(np.linspace(0, 255, 64), (40, 1))
    for depth in (None, slope):
        for speeds in (
            Camera(zoom=0.7),
            Camera(zoom=-0.7),
            Camera(rotate=40),
            Camera(orbit=12),
            Camera(0.2, -0.1, 0.2, 20),
        ):
            ground = Ground(SIZE, FPS, GRID, depth)
            for count in (5, *[6] * 16):  # four seconds
                _, xy, visible = ground.frames(speeds, count)
                assert np.isfinite(xy).all() and not (visible & ~inside(xy, *SIZE)).any()
                assert visible.sum(axis=1).max() < 300
            assert filled(xy[-1], visible[-1]) > 0.6, (speeds, depth is None)


def test_near_points_move_more_than_far_ones_under_a_pan():
    depth = np.zeros((40, 64))
    depth[:, :32] = 1  # the left half is near: depth 1 beside 4, the middle at 2.5
    ground = Ground(SIZE, FPS, GRID, depth)
    names, xy, _ = ground.frames(Camera(pan_x=0.1), 13)
    first = [i for i, name in enumerate(names) if name < 160]
    start = CENTRES[[names[i] for i in first]]
    moved, left = xy[-1, first, 0] - start[:, 0], start[:, 0] < 32
    np.testing.assert_allclose(moved[left], 64 * 0.1 * 0.5 * 2.5, atol=1e-6)
    np.testing.assert_allclose(moved[~left], 64 * 0.1 * 0.5 * 2.5 / 4, atol=1e-6)


def test_far_points_are_hidden_where_near_ones_pass_over_them():
    depth = np.zeros((40, 64))
    depth[:, :32] = 1
    ground = Ground(SIZE, FPS, GRID, depth)
    names, xy, visible = ground.frames(Camera(pan_x=0.1), 25)
    edge, before = names.index(8), names.index(7)  # first far column, last near one, in the first row
    # the near edge is at 30 + 0.667 t, what it hides at 34 + 0.167 t: over it from t = 0 on less than a step apart, to t = 15
    assert visible[:, before].all()
    gap = xy[:, edge, 0] - xy[:, before, 0]
    np.testing.assert_allclose(gap, 4 - 0.5 * np.arange(25) * 64 * 0.1 / 24 * 2.5 * 1.5, atol=1e-6)
    assert (visible[:, edge] == (gap > 3.996)).all()


def steering() -> Steering:
    return Steering(SIZE, FPS, InputSmoothing(0, 0), 320, GRID)


def drag(x: float, y: float, camera: Camera | None = None, **more) -> Controls:
    xy = np.array([[x / 64, y / 40]], np.float32)
    return Controls(ids=np.array([1]), xy=xy, pinned=np.array([False]), camera=camera or Camera(), **more)


def test_dragged_points_take_what_they_lay_on_and_pass_over_the_rest():
    s = steering()
    xy, seen = s.tracks(drag(22, 18), 0, 5)
    assert seen.sum(axis=1).tolist() == [160] * 5, "the ground's point under it is the user's now"
    under = CENTRES.tolist().index([22, 18])
    for first in (5, 11, 17):
        xy, seen = s.tracks(drag(22 + 2 * (first + 1) / 3, 18), first, 6)
    xy, seen = s.tracks(drag(38, 18), 23, 6)
    xy, seen = s.tracks(drag(38, 18), 29, 6)
    ground = xy[-1, seen[-1]].tolist()
    assert [38, 18] in ground and len(ground) == 159, "its place stays free, what it stands on is hidden"
    assert CENTRES[under].tolist() not in ground and [26, 18] in ground
    xy, seen = s.tracks(Controls(camera=Camera()), 35, 6)
    left = xy[-1, seen[-1]].tolist()
    assert len(left) == 158 and [38, 18] not in left, "where it was let go stays free as well"


def test_a_camera_that_ends_and_begins_again_starts_from_the_picture_as_it_is():
    s = steering()
    s.tracks(Controls(camera=Camera(pan_x=0.2)), 0, 5)
    assert not s.tracks(Controls(), 5, 6)[1].any()
    xy, seen = s.tracks(Controls(camera=Camera(pan_x=0.2)), 11, 6)
    assert sorted(xy[0, seen[0]].tolist()) == sorted(CENTRES.tolist())
    first = set(np.flatnonzero(s.tracks(Controls(camera=Camera()), 17, 6)[1].any(axis=0)))
    assert len(first & set(range(160))) < 20, "other slots than those just left"


def test_a_path_stands_above_the_ground():
    s = steering()
    path = DrawnPath(1, np.array([[0.5, 0.45]]), np.array([[0.0, 0.0], [0.25, 0.0]]), 1.0)
    xy, seen = s.tracks(Controls(paths=(path,), camera=Camera()), 0, 5)
    ground = xy[4, 1:][seen[4, 1:]]
    away = np.abs(ground - xy[4, 0]).max(axis=-1)
    assert away.min() >= 3.9


def test_a_transfer_rests_the_camera():
    s = steering()
    s.add_motion("one", np.full((2, 1, 2), 9.0), np.ones((2, 1), bool))
    _, seen = s.tracks(Controls(camera=Camera(), transfer="one"), 0, 5)
    assert seen.sum() == 5
