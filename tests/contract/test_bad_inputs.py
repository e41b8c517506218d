"""A folder of every bad input seen in the wild: each file is processed or listed with its reason, and the rest goes on."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest

from stages.contracts import Reject, StageError
from stages.data import cut, ingest
from stages.data.config import DataConfig
from stages.data.cut import CutRun
from stages.data.ingest import IngestRun
from stages.data.sources import drop_duplicates, find_candidates, listed, require_usable
from stages.records import Clip, Rejected
from tests.fakes import FakeContext
from tests.unit.stages.data.fakes import CLIP, ffmpeg, make_video

REASONS = {
    "empty.mp4": "empty file",
    "truncated.mp4": "truncated file: its index (moov atom) is missing",
    "audio.mp4": "audio only, no video stream",
    "text.mp4": "text, not a video",
    "one.mp4": "one frame only: a picture, not a video",
    "picture.png": "one frame only: a picture, not a video",
    "tiny.mp4": "2 x 2 px: the shorter side is below 16",
    "short.mp4": "too short: 0.20 s, a clip needs 0.38 s",
    "noise.mp4": "not a video that ffmpeg can open",
    "broken.mp4": "damaged",
    "zero.mp4": "not a video that ffmpeg can open",
    "huge.mp4": "8704 x 64 px: the longer side is above 8192",
    "ribbon.mp4": "640 x 96 px: the aspect 6.67 is not between 0.2 and 5",
}
USABLE = {"good.mp4", "phone.mp4", "vfr.mp4", "deep/a video.v1.öä.mkv", "anim.gif", "again.mp4", "liar.mp4"}
INGEST = IngestRun(CLIP, 16, 8192, 0.2, 5.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("src")
    (root / "deep").mkdir()
    good = make_video(root / "good.mp4")
    (root / "empty.mp4").touch()
    data = good.read_bytes()
    (root / "truncated.mp4").write_bytes(data[: len(data) // 2])
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", str(root / "audio.mp4"))
    (root / "text.mp4").write_text("This is a text. " * 400)
    make_video(root / "one.mp4", 1.0, "160x96", 30, "-frames:v", "1")
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=160x96", "-frames:v", "1", str(root / "picture.png"))
    make_video(root / "tiny.mp4", 1.0, "2x2")
    make_video(root / "short.mp4", 0.2)
    (root / "noise.mp4").write_bytes(bytes(range(256)) * 64)
    ffmpeg("-display_rotation", "90", "-i", str(good), "-c", "copy", str(root / "phone.mp4"))
    drop = "select='lt(t,0.5)+not(mod(n,3))'"
    make_video(root / "vfr.mp4", 1.5, "160x96", 30, "-vf", drop, "-fps_mode", "vfr")
    make_video(root / "deep" / "a video.v1.öä.mkv", 1.2)
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=20:duration=1", str(root / "anim.gif"))
    whole = make_video(root / "whole.mp4", 1.0, "160x96", 30, "-movflags", "+faststart")
    data = bytearray(whole.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)  # a sound index, then nothing but zeros
    (root / "broken.mp4").write_bytes(data)
    whole.unlink()
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=160x96", "-frames:v", "0", str(root / "zero.mp4"))
    make_video(root / "huge.mp4", 0.5, "8704x64", 10)
    make_video(root / "ribbon.mp4", 0.5, "640x96")
    (root / "again.mp4").write_bytes(good.read_bytes())
    whole = make_video(root / "liar.mp4", 10.0, "160x96", 30, "-g", "10", "-movflags", "+faststart")
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) * 2 // 5])
    return root


def through(root: Path, work: Path):
    """What became of each file: clips made, or the reason."""
    candidates, rejected = find_candidates(str(root))
    made, videos = {}, []
    for candidate in candidates:
        ctx = FakeContext(work)
        try:
            video = ingest.run(INGEST, candidate, ctx)
            for part in cut.segments([video], DataConfig()):
                records = cut.run(CutRun(CLIP, 0.0, (), 3.0, 15.0, 0.2), part, ctx)
                made.setdefault(candidate.name, []).extend(r for r in records if isinstance(r, Clip))
                rejected += [r for r in records if isinstance(r, Rejected)]
            videos.append(video)
        except Reject as e:
            rejected.append(listed("ingest", str(e)))
    return made, {r.name: r.reason for r in rejected}, videos, rejected


@pytest.fixture(scope="module")
def outcome(folder, tmp_path_factory):
    return through(folder, tmp_path_factory.mktemp("work"))


@pytest.mark.slow
def test_every_input_is_used_or_listed_with_its_reason(outcome):
    made, found, _, _ = outcome
    reasons = dict(found)
    assert set(made) == USABLE
    assert all(made.values())
    late = {name: reasons.pop(name) for name in list(reasons) if name.startswith("liar.mp4 at")}
    assert any("its header says 10.0 s, there are pictures for" in reason for reason in late.values())
    assert set(reasons) == set(REASONS)
    for name, start in REASONS.items():
        assert start in reasons[name], name
    ids = [c.clip_id for group in made.values() for c in group]
    assert len(set(ids)) == len(ids)
    assert all(i.isascii() and "." not in i and " " not in i for i in ids)


@pytest.mark.slow
def test_a_folder_with_nothing_usable_fails_and_says_why(folder, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("empty.mp4", "text.mp4", "audio.mp4"):
        (bad / name).write_bytes((folder / name).read_bytes())
    _, _, videos, rejected = through(bad, tmp_path)
    with pytest.raises(StageError, match=r"(?s)no usable video among 3.*audio.mp4: audio only.*empty.mp4: empty file"):
        require_usable(videos, rejected, str(bad))


@pytest.mark.slow
def test_a_file_with_the_content_of_another_is_listed(outcome):
    _, _, videos, _ = outcome
    kept, repeated = drop_duplicates(videos)
    assert [(r.name, r.reason) for r in repeated] == [("good.mp4", "same content as again.mp4")]
    assert "good.mp4" not in {v.source for v in kept}


def test_damage_in_mid_video_keeps_what_is_before_and_says_from_where(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    path = make_video(source / "hurt.mp4", 4.0, "160x96", 30, "-g", "30")
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov")
    data[start + (end - start) // 2 : end - (end - start) // 4] = bytes(
        end - (end - start) // 4 - start - (end - start) // 2
    )
    path.write_bytes(data)
    made, reasons, _, _ = through(source, tmp_path)
    last = max(c.start_seconds for c in made["hurt.mp4"])
    (where,) = reasons
    at = float(where.removeprefix("hurt.mp4 at ").removesuffix(" s"))
    assert 1.0 < at < 3.0
    assert last <= at - 8 / 24
    assert reasons[where].startswith(f"damaged from {at:.1f} s: nothing is used from there to 4.0 s")


@pytest.mark.slow
def test_a_ten_hour_video_is_probed_and_split_into_parts(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    encode = ("-c:v", "mpeg4", "-g", "600", "-q:v", "31")
    make_video(source / "day.mp4", 36000.0, "32x32", 1, *encode)
    (candidate,), _ = find_candidates(str(source))
    long_clips = replace(CLIP, fps=1.0)
    video = ingest.run(replace(INGEST, clip=long_clips), candidate, FakeContext(tmp_path))
    assert video.frames == 36000
    parts = cut.segments([video], DataConfig())
    assert len(parts) == 120
    assert [p.first for p in parts[1:]] == [p.end for p in parts[:-1]]
    run = CutRun(long_clips, 0.0, (), 3.0, 15.0, 0.2)
    clips = [c for c in cut.run(run, parts[100], FakeContext(tmp_path)) if isinstance(c, Clip)]
    assert clips[0].start_seconds == pytest.approx(30000)
    assert {c.segment for c in clips} == {100}


@pytest.mark.slow
def test_an_8k_frame_is_decoded_small(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    make_video(source / "large.mp4", 0.4, "7680x4320", 24, "-preset", "ultrafast")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made, reasons, _, _ = through(source, tmp_path)
    assert len(made["large.mp4"]) == 1
    assert not reasons
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 800, f"{grown:.0f} MB"  # ten frames in RGB are 1000 MB
