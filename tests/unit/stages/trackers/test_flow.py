import cv2
import numpy as np

from stages.trackers import TrackerConfig, make_tracker, uniform_grid
from stages.trackers.base import inside
from tests.unit.stages.trackers.test_lucas_kanade import warped

CFG = TrackerConfig("dis")


def test_known_motion_is_followed_both_ways():
    frames, maps = warped(13, 0.1, 1.05, (10.0, -4.0))
    grid = uniform_grid(48, 80, 6, 10)
    truth = np.stack([grid @ m[:, :2].T + m[:, 2] for m in maps])
    found = make_tracker(CFG).track(frames, truth[6].astype(np.float32), 6)
    clear = found.visible & inside(truth - 4, 40, 72)
    assert clear[[0, -1]].mean() > 0.5
    assert np.linalg.norm(found.xy_px - truth, axis=-1)[clear].mean() < 0.3
    assert 0 < found.back_px < CFG.max_back_px
    assert ((found.confidence >= 0.5) == found.visible).all()


def test_after_a_cut_points_are_invisible_and_all_is_finite():
    frames, _ = warped(12, 0.0, 1.0, (3.0, 0.0))
    frames[6:] = cv2.resize(np.random.default_rng(5).integers(0, 256, (12, 20, 3)).astype(np.uint8), (80, 48))
    found = make_tracker(CFG).track(frames, uniform_grid(48, 80, 6, 10))
    assert found.visible[5].mean() > 0.9
    assert found.visible[6:].mean() < 0.2
    assert np.isfinite(found.xy_px).all()


def test_no_points_and_flat_frames_are_no_error():
    flat = np.full((4, 32, 48, 3), 128, np.uint8)
    none = make_tracker(CFG).track(flat, np.zeros((0, 2), np.float32))
    assert none.xy_px.shape == (4, 0, 2) and np.isnan(none.back_px)
    assert np.isfinite(make_tracker(CFG).track(flat, np.array([[20.0, 20.0]], np.float32)).xy_px).all()
