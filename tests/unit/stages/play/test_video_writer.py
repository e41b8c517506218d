"""Videos written while frames come, and tracks drawn over them."""

from __future__ import annotations

import resource
import signal

import numpy as np
import pytest

from stages.data.video import read_container, read_frames, read_timestamps
from stages.play.video_writer import TrailPainter, VideoWriter, enlarged


def noise(frames: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3)).astype(np.uint8)


def grey(frames: int, value: int) -> np.ndarray:
    return np.full((frames, 32, 48, 3), value, np.uint8)


def test_a_film_may_go_on_after_it_was_finished(tmp_path):
    writer = VideoWriter(tmp_path, "clip", 24.0)
    for value in (20, 90):
        writer.push(grey(6, value))
    writer.finish(tmp_path / "a.mp4")
    writer.push(grey(5, 200))
    writer.finish(tmp_path / "b.mp4")
    assert len(read_timestamps(str(tmp_path / "a.mp4"))) == 12
    stamps = read_timestamps(str(tmp_path / "b.mp4"))
    np.testing.assert_allclose(stamps, np.arange(17) / 24, atol=1e-3)
    shown = [f.mean() for f in read_frames(str(tmp_path / "b.mp4"), read_container(str(tmp_path / "b.mp4")), range(17))]
    np.testing.assert_allclose(shown, [20] * 6 + [90] * 6 + [200] * 5, atol=4)
    writer.discard()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_a_full_disk_is_an_error_in_ffmpegs_words_and_leaves_nothing(tmp_path):
    writer = VideoWriter(tmp_path, "clip", 24.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limit[1]))
        with pytest.raises(OSError, match="ffmpeg could not write"):
            push_and_finish(writer, tmp_path / "a.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, previous)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def push_and_finish(writer, path):
    for _ in range(40):
        writer.push(noise(20, 128, 192))
    writer.finish(path)


def test_small_frames_are_enlarged_by_a_whole_number_to_even_sizes():
    frames = noise(2, 21, 33)
    large = enlarged(frames)
    assert large.shape == (2, 314, 494, 3)  # 15 times, less an odd row and column
    np.testing.assert_array_equal(large[0, ::15, ::15], frames[0][:21, :33])
    assert enlarged(noise(1, 480, 832)).shape == (1, 480, 832, 3)


def test_trails_go_on_from_piece_to_piece():
    """A piece drawn after another looks as it does in the whole clip, also where the number of tracks changes."""
    frames, t = grey(12, 0), np.arange(12, dtype=np.float32)
    xy = np.stack([np.stack([4 + 3 * t, 8 + t], -1), np.stack([40 - 2 * t, 20 + 0 * t], -1)], 1)
    visible = np.ones((12, 2), bool)
    visible[:6, 1] = False
    whole = TrailPainter().draw(frames, xy, visible)
    pieces = TrailPainter()
    first = pieces.draw(frames[:6], xy[:6, :1], visible[:6, :1])
    second = pieces.draw(frames[6:], xy[6:], visible[6:])
    assert first.any() and (first != whole[:6]).mean() < 0.01  # one track alone has another colour
    np.testing.assert_array_equal(second, whole[6:])
    np.testing.assert_array_equal(TrailPainter().draw(frames, xy, np.zeros_like(visible)), enlarged(frames))
    alone = TrailPainter().draw(frames[6:], xy[6:], visible[6:])
    assert (alone[0] != second[0]).any()
