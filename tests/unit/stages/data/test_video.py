"""Containers and pictures of the less common kinds."""

import numpy as np
import pytest

from stages.data.video import Container, _ffmpeg_frames, read_container, read_frames, read_timestamps
from tests.unit.stages.data.fakes import ffmpeg, make_video


def facts_and_frames(path):
    container = read_container(str(path))
    return container, np.stack(list(read_frames(str(path), container, range(len(read_timestamps(str(path)))))))


def test_ten_bits_give_the_colours_of_eight(tmp_path):
    source = ("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=10:duration=1", "-crf", "5")
    ffmpeg(*source, "-pix_fmt", "yuv420p", str(tmp_path / "8.mp4"))
    ffmpeg(*source, "-pix_fmt", "yuv420p10le", str(tmp_path / "10.mp4"))
    (eight, a), (ten, b) = (facts_and_frames(tmp_path / name) for name in ("8.mp4", "10.mp4"))
    assert (eight.bit_depth, ten.bit_depth) == (8, 10)
    assert ten.notes() == ("10 bits a colour: read as 8",)
    assert a.mean((0, 1, 2)) == pytest.approx(b.mean((0, 1, 2)), abs=1.5)


def test_interlaced_pictures_lose_their_combs_one_frame_for_one(tmp_path):
    """A bright bar that moves 4 px a field: woven fields show it as a comb."""
    bar = "color=black:size=160x96:rate=50:duration=1[b];color=white:size=24x96:rate=50:duration=1[w];"
    graph = bar + "[b][w]overlay=x=4*n:y=0,tinterlace=interleave_top"
    ffmpeg(
        "-filter_complex", graph, "-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-q:v", "2", str(tmp_path / "a.mkv")
    )
    container, frames = facts_and_frames(tmp_path / "a.mkv")
    assert container.interlaced
    assert "deinterlaced" in container.notes()[0]
    assert len(frames) == len(read_timestamps(str(tmp_path / "a.mkv"))) == 25
    woven = np.stack(list(read_frames(str(tmp_path / "a.mkv"), Container(160, 96), range(25))))
    comb, smooth = (np.abs(np.diff(f[5].astype(int), axis=0)).mean() for f in (woven, frames))
    assert smooth < comb / 4


@pytest.mark.parametrize(("curve", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_recognised_and_reported(tmp_path, curve, name):
    tags = f"setparams=color_trc={curve}:color_primaries=bt2020:colorspace=bt2020nc"
    make_video(tmp_path / "a.mp4", 0.5, "160x96", 30, "-vf", f"format=yuv420p10le,{tags}", "-color_trc", curve)
    container, frames = facts_and_frames(tmp_path / "a.mp4")
    assert f"HDR ({name}): colours are used as they are" in container.notes()
    assert len(frames) == 15


def test_pixels_that_are_not_square_are_resampled(tmp_path):
    make_video(tmp_path / "a.mp4", 0.5, "160x96", 30, "-vf", "setsar=2/1")
    container, frames = facts_and_frames(tmp_path / "a.mp4")
    assert (container.width, container.height) == (320, 96)
    assert frames.shape[1:3] == (96, 320)
    assert "aspect 2" in container.notes()[0]


def test_odd_sizes_are_kept(tmp_path):
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc=size=161x97:rate=10:duration=1", "-pix_fmt", "yuv444p", str(tmp_path / "a.mp4")
    )
    _, frames = facts_and_frames(tmp_path / "a.mp4")
    assert frames.shape[1:] == (97, 161, 3)


def test_ffmpeg_begins_late_at_the_right_frame(tmp_path):
    """As in a late part of a long rotated video."""
    path = str(make_video(tmp_path / "a.mp4", 20.0, "64x48", 30, "-g", "50"))
    container = read_container(path)
    whole = list(_ffmpeg_frames(path, container, range(600)))
    for first in (200, 450, 599):
        part = list(_ffmpeg_frames(path, container, range(first, 600)))
        assert len(part) == 600 - first
        assert all(np.array_equal(a, b) for a, b in zip(part, whole[first:], strict=True))
