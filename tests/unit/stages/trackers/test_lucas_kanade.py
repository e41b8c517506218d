import cv2
import numpy as np
import pytest

from stages.trackers import TrackerConfig, Tracks, make_tracker, uniform_grid
from stages.trackers.base import inside
from stages.trackers.motion_groups import _extrapolated
from stages.trackers.motions import apply_maps

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


def test_points_that_leave_are_invisible_and_guessed_on_their_way():
    frames, maps = warped(29, 0.0, 1.0, (30.0, 0.0))
    queries = np.array([[70.0, 24.0], [20.0, 24.0]], np.float32)
    found = make_tracker(CFG).track(frames, queries)
    assert found.visible[0].all()
    assert found.visible[-1].tolist() == [False, True]
    assert found.confidence[-1, 0] == 0 and found.confidence[-1, 1] > 0.5
    truth = np.stack([queries @ m[:, :2].T + m[:, 2] for m in maps])
    assert not found.visible[truth[..., 0] > 81].any()
    assert np.linalg.norm(found.xy_px - truth, axis=-1).max() < 1.0


def test_a_covered_point_fails_the_check():
    frames, _ = warped(12, 0.0, 1.0, (0.0, 0.0))
    frames[6:, 16:32, 32:48] = np.random.default_rng(1).integers(0, 256, (16, 16, 3))
    _, visible = paths(make_tracker(CFG).track(frames, np.array([[40.0, 24.0], [10.0, 10.0]], np.float32)))
    assert visible[5].all()
    assert visible[-1].tolist() == [False, True]


def test_a_flash_hides_every_point_and_all_are_found_again():
    frames, maps = warped(25, 0.0, 1.0, (12.0, 0.0))
    frames[10] = 255 - frames[10] // 4
    query = np.array([[30.0, 24.0]], np.float32)
    xy, visible = paths(make_tracker(CFG).track(frames, query))
    assert visible[:, 0].tolist() == [t != 10 for t in range(25)]
    truth = np.stack([query @ m[:, :2].T + m[:, 2] for m in maps])
    assert np.linalg.norm(xy - truth, axis=-1)[visible].max() < 0.2


def test_a_point_behind_a_passing_object_comes_back():
    """A textured square crosses a moving plane: behind it the point is invisible and its place still known."""
    frames, maps = warped(29, 0.0, 1.0, (8.0, 0.0))
    square = cv2.resize(np.random.default_rng(1).integers(0, 256, (6, 6, 3)).astype(np.uint8), (16, 16))
    for t in range(29):
        frames[t, 16:32, 2 * t : 2 * t + 16] = square[:, : 80 - 2 * t]
    query = np.array([[40.0, 24.0]], np.float32)
    truth = np.stack([query @ m[:, :2].T + m[:, 2] for m in maps])[:, 0]
    left = 2 * np.arange(29)
    depth = np.minimum(truth[:, 0] - left, left + 16 - truth[:, 0])  # how far within the square, px
    xy, visible = paths(make_tracker(CFG).track(frames, query))
    assert not visible[depth > 1.5].any()
    assert visible[depth < -2].all() and (depth < -2)[-1]
    assert np.linalg.norm(xy[:, 0] - truth, axis=-1).max() < 0.5


def test_a_surface_that_bends_is_followed_where_no_affine_map_could():
    texture = world()[:192]
    y, x = np.mgrid[:192, :320].astype(np.float32)
    wave = np.sin((x + 0.5) / 40 + 1)
    frames = []
    for t in range(15):
        big = cv2.remap(texture, x, y - 4 * 0.1 * t * wave, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        frames.append(cv2.resize(big, (80, 48), interpolation=cv2.INTER_AREA))
    queries = uniform_grid(48, 80, 10, 16)
    bend = 0.1 * np.arange(15)[:, None] * np.sin(queries[:, 0] / 10 + 1)
    truth = queries + np.stack([np.zeros_like(bend), bend], axis=-1)
    xy, visible = paths(make_tracker(CFG).track(np.stack(frames), queries))
    inner = visible & inside(truth - 4, 40, 72)
    assert inner[-1].mean() > 0.4
    assert np.linalg.norm(xy - truth, axis=-1)[-1, inner[-1]].mean() < 0.25  # the bend reaches 1.4 px


def test_after_a_cut_nothing_is_visible():
    frames, _ = warped(20, 0.0, 1.0, (6.0, 0.0))
    other = cv2.resize(np.random.default_rng(5).integers(0, 256, (12, 20, 3)).astype(np.uint8), (80, 48))
    frames[12:] = other
    xy, visible = paths(make_tracker(CFG).track(frames, uniform_grid(48, 80, 10, 16)))
    assert visible[:12].mean() > 0.9
    assert visible[12:].mean() < 0.1
    assert np.isfinite(xy).all()


def test_a_change_of_light_hides_nothing():
    frames, _ = warped(13, 0.0, 1.0, (6.0, 0.0))
    dimmed = np.stack([np.clip(f * 0.8 - 3.0 * t, 0, 255) for t, f in enumerate(frames)]).astype(np.uint8)
    dimmed[0] = np.clip(frames[0] * 0.8, 0, 255)
    _, visible = paths(make_tracker(CFG).track(dimmed, uniform_grid(48, 80, 10, 16)))
    assert visible.mean() > 0.85


def test_the_result_says_how_sure_it_is_and_is_the_same_twice():
    frames, _ = warped(13, 0.1, 1.0, (6.0, 0.0))
    one, two = (make_tracker(CFG).track(frames, uniform_grid(48, 80, 10, 16)) for _ in range(2))
    assert np.array_equal(one.xy_px, two.xy_px) and np.array_equal(one.confidence, two.confidence)
    assert ((one.confidence > 0.5) == one.visible).all() and one.confidence.max() <= 1
    assert 0 < one.back_px < CFG.max_back_px


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


def test_wrong_inputs_are_reported():
    tracker = make_tracker(CFG)
    with pytest.raises(ValueError, match="uint8"):
        tracker.track(np.zeros((2, 8, 8, 3)), np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="query_frame 5"):
        tracker.track(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 2), np.float32), 5)
    with pytest.raises(ValueError, match=r"tracker.name.*tracker.window_px"):
        make_tracker(TrackerConfig("magic", window_px=4))
    with pytest.raises(ValueError, match=r"tracker.max_colour_error: 0 must"):
        make_tracker(TrackerConfig("lucas_kanade", max_colour_error=0))


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


def test_a_motion_that_is_lost_glides_on_without_turning_or_growing():
    """Its shift goes on and slows; else points far from what was measured last would be thrown out of the frame."""
    points = np.array([[10.0, 10.0], [30.0, 10.0], [20.0, 25.0]])
    earlier, now = np.eye(2, 3), np.array([[1.2, 0.1, -3.0], [-0.1, 1.2, 2.0]])
    after = _extrapolated(now, earlier, points)
    moved = (apply_maps(after, points) - apply_maps(now, points)).reshape(-1, 2)
    speed = (apply_maps(now, points) - apply_maps(earlier, points)).mean(axis=0)
    assert moved == pytest.approx(np.tile(0.8 * speed, (3, 1)))
