import numpy as np
import pytest

from msmodel.steering import camera
from msmodel.steering.camera import Pose, fit_inverse_depth, in_front, intrinsics, moved, project, read_llff, reproject
from msmodel.steering.controls import Camera

SIZE = (40, 64)
K = intrinsics(SIZE, 64.0)
RANDOM = np.random.default_rng(0)
XY, Z = RANDOM.uniform(0, 40, (9, 2)), RANDOM.uniform(1, 5, 9)


def turned(x: float, y: float, z: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", [x, y, z]).as_matrix()


def test_the_same_camera_moves_nothing():
    pose = Pose(turned(0.3, -0.2, 0.5), np.array([1.0, 2, 3]))
    xy, z = reproject(XY, Z, K, pose, [pose, pose])
    np.testing.assert_allclose(xy, [XY, XY], atol=1e-9)
    np.testing.assert_allclose(z, [Z, Z])


def test_a_sideways_step_moves_by_focal_length_times_step_over_depth():
    xy, _ = reproject(
        np.array([[30.0, 12.0]] * 2), np.array([2.0, 4.0]), K, Pose(), [Pose(position=np.array([0.1, 0, 0]))]
    )
    np.testing.assert_allclose(xy[0], [[30 - 3.2, 12], [30 - 1.6, 12]])  # 64 * 0.1 / 2 and / 4


def test_a_turn_does_not_depend_on_depth():
    for depth in (Z, 7 * Z):
        xy, _ = reproject(XY, depth, K, Pose(), [Pose(turned(0.1, 0.2, -0.3))])
        np.testing.assert_allclose(xy, reproject(XY, np.ones(9), K, Pose(), [Pose(turned(0.1, 0.2, -0.3))])[0])


def test_depth_and_step_scaled_together_change_nothing():
    step, turn = np.array([0.3, -0.1, 0.2]), turned(0.1, 0.05, 0)
    a, _ = reproject(XY, Z, K, Pose(), [Pose(turn, step)])
    b, _ = reproject(XY, 3 * Z, K, Pose(), [Pose(turn, 3 * step)])
    np.testing.assert_allclose(a, b)
    assert np.abs(a - XY).max() > 1


def after(speeds: Camera, xy, frames: int = 24, z: float = 1.5) -> np.ndarray:
    """Where points of a plane at the middle's depth are after `frames` steps of 1/24 s."""
    pose = Pose()
    for _ in range(frames):
        pose = moved(pose, speeds, 1 / 24, SIZE, K, 1.5)
    xy = np.array(xy, float)
    return reproject(xy, np.full(len(xy), z), K, Pose(), [pose])[0][0]


def test_speeds_are_reached_in_a_second():
    points = [[32.0, 20.0], [42.0, 20.0], [32.0, 25.0]]
    np.testing.assert_allclose(after(Camera(pan_x=0.25, pan_y=-0.1), points), np.add(points, [16, -4]))
    np.testing.assert_allclose(after(Camera(zoom=1), points), [[32, 20], [52, 20], [32, 30]])
    np.testing.assert_allclose(after(Camera(rotate=90), points), [[32, 20], [32, 30], [27, 20]], atol=1e-9)
    np.testing.assert_allclose(after(Camera(orbit=60), points)[0], [32, 20], atol=1e-9)
    zoomed_in = moved(Pose(), Camera(zoom=1), 1, SIZE, K, 1.5)
    still_16 = moved(zoomed_in, Camera(pan_x=0.25), 1, SIZE, K, 1.5)
    np.testing.assert_allclose(
        reproject(np.array([[32.0, 20]]), np.array([1.5]), K, Pose(), [still_16])[0], [[[48, 20]]]
    )


def test_an_orbit_turns_about_the_middle_and_the_camera_goes_right():
    # a quarter turn: what lay right of the middle at its depth (0.3 px-depths) is now behind it, on the axis
    pose = Pose()
    for _ in range(90):
        pose = moved(pose, Camera(orbit=1), 1, SIZE, K, 1.5)
    np.testing.assert_allclose(pose.position, [1.5, 0, 1.5], atol=1e-9)
    xy, z = project(np.array([[0.3, 0, 1.5], [0, 0, 2.0]]), K, pose)
    np.testing.assert_allclose(z, [1.2, 1.5], atol=1e-9)
    np.testing.assert_allclose(xy, [[32, 20], [32 + 64 * 0.5 / 1.5, 20]], atol=1e-9)


def test_nearer_points_hide_those_behind_them():
    xy = np.array([[10.0, 10], [12, 11], [13, 10], [40, 10], [20, 20]])
    z = np.array([1.0, 2.0, 1.05, 3.0, -1.0])
    assert in_front(xy, z, np.array([4.0, 4.0])).tolist() == [True, False, True, True, False]


def test_relative_inverse_depth_spans_the_range_and_is_finite():
    z = camera.depth_of(np.array([[0.0, 100.0], [200.0, 100.0]]))
    np.testing.assert_allclose(z, [[4, 1.6], [1, 1.6]])  # 1/z = 1/4, 5/8, 1
    assert (camera.depth_of(np.zeros((2, 2))) == 1).all()
    with pytest.raises(ValueError, match="not finite"):
        camera.depth_of(np.array([[np.nan, 1.0]]))


def test_scale_and_shift_are_found_from_sparse_points():
    relative = np.array([0.1, 0.5, 0.9, 0.3])
    scale, shift = fit_inverse_depth(relative, 1 / (0.8 * relative + 0.05))
    assert (scale, shift) == (pytest.approx(0.8), pytest.approx(0.05))
    with pytest.raises(ValueError, match="different relative depth"):
        fit_inverse_depth(np.array([0.5, 0.5]), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="positive depths"):
        fit_inverse_depth(np.array([0.5, 0.6]), np.array([1.0, 0.0]))


def test_llff_poses_are_read(tmp_path):
    # the camera looks along the world's -z with x right and y up: R's columns down, right, back
    matrix = np.array([[0, 1, 0, 5, 3024], [-1, 0, 0, 6, 4032], [0, 0, 1, 7, 3000]], float)
    path = tmp_path / "poses_bounds.npy"
    np.save(path, np.concatenate([matrix.ravel(), [1.5, 9.0]])[None])
    found = read_llff(path, (40, 64))
    np.testing.assert_allclose(found.poses[0].rotation, np.diag([1.0, -1, -1]))
    np.testing.assert_allclose(found.poses[0].position, [5, 6, 7])
    np.testing.assert_allclose(found.intrinsics[0], [[3000 * 64 / 4032, 0, 32], [0, 3000 * 40 / 3024, 20], [0, 0, 1]])
    assert (found.near[0], found.far[0]) == (1.5, 9)
    xy, z = project(np.array([[5.0, 6, 5]]), found.intrinsics[0], found.poses[0])  # two before it
    np.testing.assert_allclose(np.append(xy, z), [32, 20, 2])


@pytest.mark.parametrize("bad", [np.zeros((3, 16)), np.full((3, 17), np.nan), np.array([{}], object)])
def test_other_files_are_no_llff_poses(tmp_path, bad):
    np.save(tmp_path / "poses_bounds.npy", bad, allow_pickle=True)
    with pytest.raises(ValueError, match=r"poses_bounds\.npy"):
        read_llff(tmp_path / "poses_bounds.npy", SIZE)
