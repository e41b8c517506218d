import cv2
import numpy as np
import pytest

from stages.trackers import TrackerConfig, Tracks, make_tracker, uniform_grid
from stages.trackers.base import inside

CFG = TrackerConfig("lucas_kanade")


def paths(found: Tracks) -> tuple[np.ndarray, np.ndarray]:
    return found.xy_px, found.visible


def world() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    return cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)


def warped(frames: int, angle: float, zoom: float, shift: tuple[float, float], height: int = 48, width: int = 80):
    """A textured plane under a growing affine map, drawn at 4 times the size; and the map of each frame."""
    texture, out, maps = world(), [], []
    for t in range(frames):
        s = t / max(frames - 1, 1)
        a, z = angle * s, 1 + (zoom - 1) * s
        c, n = z * np.cos(a), z * np.sin(a)
        middle = np.array([width / 2, height / 2])
        linear = np.array([[c, -n], [n, c]])
        matrix = np.column_stack([linear, middle + np.array(shift) * s - linear @ middle])
        maps.append(matrix)
        offset = np.array([(320 - 4 * width) / 2, (240 - 4 * height) / 2])
        # canvas pixel = 4 * frame position - 0.5; texture pixel of a frame-0 position = 4 * position + offset - 0.5
        shifted = 4 * matrix[:, 2] + linear @ (0.5 - offset) - 0.5
        big = cv2.warpAffine(texture, np.column_stack([linear, shifted]), (4 * width, 4 * height), borderMode=4)
        out.append(cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA))
    return np.stack(out), maps


@pytest.mark.parametrize(
    ("angle", "zoom", "shift", "limit"),
    [(0.0, 1.0, (0.0, 0.0), 0.01), (0.0, 1.0, (18.0, -7.0), 0.15), (0.3, 1.15, (6.0, 4.0), 0.2)],
)
def test_known_affine_motion_is_followed_to_a_fraction_of_a_pixel(angle, zoom, shift, limit):
    frames, maps = warped(29, angle, zoom, shift)
    queries = uniform_grid(48, 80, 6, 10)
    xy, visible = paths(make_tracker(CFG).track(frames, queries))
    truth = np.stack([queries @ m[:, :2].T + m[:, 2] for m in maps])
    clear = visible & inside(truth - 4, 40, 72)
    error = np.linalg.norm(xy - truth, axis=-1)[clear]
    assert clear[-1].mean() > 0.3
    assert error.mean() < limit < 0.5


def test_points_that_leave_are_invisible_and_keep_their_last_position():
    frames, _ = warped(29, 0.0, 1.0, (30.0, 0.0))
    xy, visible = paths(make_tracker(CFG).track(frames, np.array([[70.0, 24.0], [20.0, 24.0]], np.float32)))
    assert visible[0].all()
    assert not visible[-1, 0]
    assert visible[-1, 1]
    gone = int(np.argmin(visible[:, 0]))
    assert 75 < xy[gone, 0, 0] <= 80
    assert (xy[gone:, 0] == xy[gone, 0]).all()


def test_a_covered_point_fails_the_check():
    frames, _ = warped(12, 0.0, 1.0, (0.0, 0.0))
    frames[6:, 16:32, 32:48] = np.random.default_rng(1).integers(0, 256, (16, 16, 3))
    _, visible = paths(make_tracker(CFG).track(frames, np.array([[40.0, 24.0], [10.0, 10.0]], np.float32)))
    assert visible[5].all()
    assert visible[-1].tolist() == [False, True]


def test_a_lost_point_is_followed_further_but_stays_invisible():
    """A flash hides everything for one frame: the point is no label any more, but where it ends is still known."""
    frames, maps = warped(25, 0.0, 1.0, (12.0, 0.0))
    frames[10] = 255 - frames[10] // 4
    query = np.array([[30.0, 24.0]], np.float32)
    xy, visible = paths(make_tracker(CFG).track(frames, query))
    assert visible[:9].all() and not visible[11:].any()
    end = query @ maps[-1][:, :2].T + maps[-1][:, 2]
    assert np.linalg.norm(xy[-1] - end) < np.linalg.norm(xy[9] - end) / 2


def test_tracking_from_a_later_frame_goes_both_ways():
    frames, maps = warped(13, 0.0, 1.0, (12.0, 0.0))
    middle = maps[6][:, 2]
    xy, visible = paths(
        make_tracker(CFG).track(frames, np.array([[40.0, 24.0]], np.float32) + middle.astype(np.float32), 6)
    )
    assert visible.all()
    assert xy[0, 0] == pytest.approx([40.0, 24.0], abs=0.2)
    assert xy[-1, 0] == pytest.approx([52.0, 24.0], abs=0.2)


def test_the_size_of_the_frames_hardly_matters():
    frames, _ = warped(13, 0.1, 1.0, (10.0, 3.0))
    large = np.stack([cv2.resize(f, (320, 192), interpolation=cv2.INTER_CUBIC) for f in frames])
    queries = uniform_grid(48, 80, 4, 6)
    xy, visible = paths(make_tracker(CFG).track(frames, queries))
    big, also = paths(make_tracker(CFG).track(large, queries * 4))
    both = visible & also
    assert both.mean() > 0.7
    assert np.linalg.norm(big / 4 - xy, axis=-1)[both].mean() < 0.15


def test_wrong_inputs_are_told():
    tracker = make_tracker(CFG)
    with pytest.raises(ValueError, match="uint8"):
        tracker.track(np.zeros((2, 8, 8, 3)), np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="query_frame 5"):
        tracker.track(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 2), np.float32), 5)
    with pytest.raises(ValueError, match=r"tracker.name.*tracker.window_px"):
        make_tracker(TrackerConfig("magic", window_px=4))


def test_no_points_and_flat_frames_are_no_error():
    flat = np.full((4, 32, 48, 3), 128, np.uint8)
    xy, visible = paths(make_tracker(CFG).track(flat, np.zeros((0, 2), np.float32)))
    assert xy.shape == (4, 0, 2)
    xy, visible = paths(make_tracker(CFG).track(flat, np.array([[20.0, 20.0]], np.float32)))
    assert np.isfinite(xy).all()
    assert not visible[1:].any()


def test_the_grid_covers_the_frame_evenly():
    grid = uniform_grid(48, 80, 2, 4)
    assert grid.tolist() == [[x, y] for y in (12.0, 36.0) for x in (10.0, 30.0, 50.0, 70.0)]
