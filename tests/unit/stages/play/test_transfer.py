import numpy as np
import pytest

from msmodel.config import ClipConfig
from msmodel.points import uniform_grid
from stages.data.files import write_mp4
from stages.play.live import LiveTracker
from stages.play.transfer import TransferLimits, motion_of_clip
from stages.trackers import TrackerConfig, make_tracker
from tests.unit.stages.trackers.test_lucas_kanade import warped

CLIP = ClipConfig(height=40, width=64, frames=29, fps=24)
GRID = (10, 16)
CFG = TrackerConfig("lucas_kanade")
LIMITS = TransferLimits()


@pytest.fixture(scope="module")
def pan(tmp_path_factory):
    """A textured plane of 160x120 that moves right by 24 px and down by 10 px in 24 steps at 12 fps, as mp4."""
    frames, _ = warped(25, 0.0, 1.0, (12.0, 5.0), 60, 80)
    path = tmp_path_factory.mktemp("clips") / "pan.mp4"
    write_mp4(path, np.repeat(np.repeat(frames, 2, axis=1), 2, axis=2), 12.0)
    return str(path)


def move(path: str, limits: TransferLimits = LIMITS):
    return motion_of_clip(path, CLIP, GRID, make_tracker(CFG), limits)


def test_a_clips_tracks_come_at_our_size_and_rate(pan):
    xy, visible = move(pan)
    assert xy.shape == (50, 160, 2) and visible.shape == (50, 160)  # 25 frames at 12 fps are 2.08 s
    grid = uniform_grid(40, 64, *GRID)
    np.testing.assert_allclose(xy[0], grid, atol=1e-3)
    inner = (grid[:, 0] < 48) & visible[-1]
    assert inner.sum() > 80
    # 160x120 is cut to 160x100, so a clip pixel is 2.5 of its: 24 px are 9.6
    np.testing.assert_allclose(np.median((xy[-2] - xy[0])[inner], axis=0), [9.6, 4.0], atol=0.15)
    np.testing.assert_allclose(np.median((xy[24] - xy[0])[inner], axis=0), [4.8, 2.0], atol=0.15)  # a second in


def test_videos_beyond_the_limits_are_refused_with_their_size(pan, tmp_path):
    with pytest.raises(ValueError, match=r"2\.1 s of video; at most 1 s"):
        move(pan, TransferLimits(seconds=1.0))
    with pytest.raises(ValueError, match="160x120"):
        move(pan, TransferLimits(pixels=10_000))
    (tmp_path / "no.mp4").write_bytes(b"no video at all")
    with pytest.raises(ValueError, match="text, not a video"):
        move(str(tmp_path / "no.mp4"))


def live(frames: np.ndarray) -> list[dict[int, np.ndarray]]:
    tracker = LiveTracker(CLIP, GRID, CFG)
    return [dict(zip(*tracker.add_frame(f), strict=True)) for f in frames]


def test_live_points_follow_a_moving_scene_and_lost_ones_begin_again():
    frames, _ = warped(25, 0.0, 1.0, (24.0, 0.0), 40, 64)
    seen = live(frames)
    grid = uniform_grid(40, 64, *GRID)
    assert sorted(seen[0]) == list(range(160))
    np.testing.assert_allclose([seen[0][i] for i in range(160)], grid, atol=1e-3)
    kept = [i for i in range(160) if i in seen[-1]]
    assert len(kept) > 70
    moved = np.array([seen[-1][i] - seen[0][i] for i in kept])
    assert np.median(np.linalg.norm(moved - [24, 0], axis=-1)) < 0.5
    fresh = np.array([xy for i, xy in seen[-1].items() if i >= 160])
    assert len(fresh) >= 40 and (fresh[:, 0] < 30).mean() > 0.8, "they begin where the picture comes in"
    cells = {(int(x // 4), int(y // 4)) for x, y in seen[-1].values()}
    assert len(cells) > 150 and len(seen[-1]) < 260


def test_a_still_camera_gives_the_same_points_for_ever_and_a_cut_new_ones():
    frames, _ = warped(6, 0.0, 1.0, (0.0, 0.0), 40, 64)
    seen = live(frames)
    assert all(sorted(s) == list(range(160)) for s in seen)
    np.testing.assert_allclose([seen[-1][i] for i in range(160)], uniform_grid(40, 64, *GRID), atol=0.05)
    other = np.random.default_rng(1).integers(0, 256, (1, 40, 64, 3), dtype=np.uint8)
    after = live(np.concatenate([frames, other]))[-1]
    assert len(set(after) & set(range(160))) < 40


def test_live_frames_of_another_size_are_cut_to_the_clips_aspect():
    tracker = LiveTracker(CLIP, GRID, CFG)
    big = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    names, xy = tracker.add_frame(big)
    np.testing.assert_allclose(xy, uniform_grid(40, 64, *GRID), atol=1e-3)
    assert names == list(range(160))


def test_a_live_tracker_that_is_reset_begins_with_the_grid_under_new_names():
    frames, _ = warped(6, 0.0, 1.0, (8.0, 0.0), 40, 64)
    tracker = LiveTracker(CLIP, GRID, CFG)
    assert tracker.reset()[0] == []
    used = {name for f in frames for name in tracker.add_frame(f)[0]}
    names, xy = tracker.reset()
    np.testing.assert_allclose(xy, uniform_grid(40, 64, *GRID), atol=1e-3)
    assert not used & set(names)
