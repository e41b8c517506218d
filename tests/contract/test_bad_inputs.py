"""A folder of every bad input seen in the wild: each file is processed or listed with its reason, and the rest goes on."""

from pathlib import Path

import pytest

from stages.data import clips, ingest, split
from stages.data.clips import ClipsRun
from stages.data.ingest import IngestRun
from stages.data.sources import find_candidates, listed, require_usable
from stages.data.split import SplitRun
from stages.records import Clip
from stages.spec import Reject, StageError
from tests.unit.stages.data.fakes import CLIP, FakeContext, ffmpeg, make_video

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
}
USABLE = {"good.mp4", "phone.mp4", "vfr.mp4", "deep/a film.v1.öä.mkv", "anim.gif"}


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
    make_video(root / "deep" / "a film.v1.öä.mkv", 1.2)
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=20:duration=1", str(root / "anim.gif"))
    whole = make_video(root / "whole.mp4", 1.0, "160x96", 30, "-movflags", "+faststart")
    data = bytearray(whole.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)  # a sound index, then nothing but zeros
    (root / "broken.mp4").write_bytes(data)
    whole.unlink()
    return root


def through(root: Path, work: Path):
    """What became of each file: clips made, or the reason."""
    candidates, rejected = find_candidates(str(root))
    made, videos = {}, []
    for candidate in candidates:
        ctx = FakeContext(work)
        try:
            video = ingest.run(IngestRun(CLIP, 16), candidate, ctx)
            shots = split.run(SplitRun(3.0, 15.0, 0.2), video, ctx)
            records = clips.run(ClipsRun(CLIP, 0.0, ()), shots, ctx)
            videos.append(video)
            made[candidate.name] = [r for r in records if isinstance(r, Clip)]
        except Reject as e:
            rejected.append(listed("ingest", str(e)))
    return made, {r.name: r.reason for r in rejected}, videos, rejected


def test_every_input_is_used_or_listed_with_its_reason(folder, tmp_path):
    made, reasons, _, _ = through(folder, tmp_path)
    assert set(made) == USABLE
    assert all(made.values())
    assert set(reasons) == set(REASONS)
    for name, start in REASONS.items():
        assert start in reasons[name], name
    ids = [c.clip_id for group in made.values() for c in group]
    assert len(set(ids)) == len(ids)
    assert all(i.isascii() and "." not in i and " " not in i for i in ids)


def test_a_folder_with_nothing_usable_fails_and_says_why(folder, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("empty.mp4", "text.mp4", "audio.mp4"):
        (bad / name).write_bytes((folder / name).read_bytes())
    _, _, videos, rejected = through(bad, tmp_path)
    with pytest.raises(StageError, match=r"(?s)no usable video among 3.*audio.mp4: audio only.*empty.mp4: empty file"):
        require_usable(videos, rejected, str(bad))
