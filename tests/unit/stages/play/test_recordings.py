"""recording.json and what lies beside it: written, read again, and refused where it is damaged."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from stages.play import recordings
from stages.play.recordings import FORMAT, Recording, digest_of

FRAME = np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)
RECORDING = Recording(
    format=FORMAT,
    id="a",
    title="A",
    saved="2026-01-01T00:00:00.000+00:00",
    preset="debug",
    git_sha="abc",
    student="/there",
    digest="d" * 64,
    decoder="vae",
    decoder_digest="",
    seed=3,
    picture=digest_of(FRAME),
    prompts=((0, "a hall"), (2, "a door")),
    refreshes=(2,),
    hand={"smooth_seconds": 0.1},
    points=5,
    threads=1,
    device="cpu",
    torch="2",
    height=32,
    width=48,
    fps=12.0,
    lengths=(1, 2, 2),
    frames_sha256=("x", "y", "z"),
)


def written(folder, recording=RECORDING, frames=5, tracks=5):
    folder.mkdir(parents=True)
    xy = np.random.default_rng(0).uniform(0, 30, (frames, tracks, 2)).astype(np.float32)
    recordings.write_first(folder, FRAME)
    recordings.write_tracks(folder, xy, xy[..., 0] > 9, recording.fps, (32, 48))
    recordings.write_about(folder, recording)
    return xy


def test_what_is_written_is_read_again(tmp_path):
    xy = written(tmp_path / "a")
    assert recordings.read_recording(tmp_path / "a") == RECORDING
    np.testing.assert_array_equal(recordings.read_first(tmp_path / "a", RECORDING), FRAME)
    found, visible = recordings.read_asked(tmp_path / "a", RECORDING)
    np.testing.assert_array_equal(found, xy)
    np.testing.assert_array_equal(visible, xy[..., 0] > 9)
    shown = RECORDING.summary()
    assert (shown["prompt"], shown["frames"], shown["seconds"]) == ("a hall", 5, 5 / 12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: "{", "damaged"),
        (lambda v: "[]", "no recording's description"),
        (lambda v: json.dumps(v | {"format": 9}), "format 9; this version reads 1"),
        (lambda v: json.dumps(v | {"surprise": 1}), "unknown surprise"),
        (lambda v: json.dumps({k: x for k, x in v.items() if k != "seed"}), "damaged"),
        (lambda v: json.dumps(v | {"lengths": [1, 2]}), "2 lengths and 3 digests"),
        (lambda v: json.dumps(v | {"seed": "x"}), "damaged"),
        (lambda v: json.dumps(v | {"prompts": [[1, "late"]]}), "no prompt for its first chunk"),
        (lambda v: json.dumps(v | {"prompts": [0]}), "damaged"),
        (lambda v: json.dumps(v | {"points": 0}), "out of range"),
        (lambda v: json.dumps(v | {"digest": None}), "digest is no text"),
    ],
)
def test_a_damaged_description_is_an_error_that_names_it(tmp_path, change, words):
    written(tmp_path / "a")
    file = tmp_path / "a" / "recording.json"
    file.write_text(change(json.loads(file.read_text())))
    with pytest.raises(ValueError, match=words) as error:
        recordings.read_recording(tmp_path / "a")
    assert str(file) in str(error.value)


def test_missing_and_foreign_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"holds no recording\.json"):
        recordings.read_recording(tmp_path)
    written(tmp_path / "a")
    with pytest.raises(ValueError, match="another digest"):
        recordings.read_first(tmp_path / "a", replace(RECORDING, picture="0" * 64))
    with pytest.raises(ValueError, match=r"5 frames, but recording\.json lists 3"):
        recordings.read_asked(tmp_path / "a", replace(RECORDING, lengths=(1, 2), frames_sha256=("x", "y")))
    with pytest.raises(ValueError, match="holds tracks"):
        recordings.read_asked(tmp_path / "a", replace(RECORDING, points=4))
    tracks = tmp_path / "a" / "tracks.npz"
    tracks.write_bytes(tracks.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"tracks\.npz is missing or damaged"):
        recordings.read_asked(tmp_path / "a", RECORDING)
    (tmp_path / "a" / "first.png").unlink()
    with pytest.raises(ValueError, match=r"first\.png is missing or damaged"):
        recordings.read_first(tmp_path / "a", RECORDING)


def test_the_newest_comes_first_and_damaged_or_unfinished_ones_are_left_out(tmp_path):
    written(tmp_path / "a")
    written(tmp_path / "b", replace(RECORDING, id="b", saved="2026-02-01T00:00:00.000+00:00"))
    written(tmp_path / "c", replace(RECORDING, id="c"))
    (tmp_path / "c" / "recording.json").write_text("{")
    written(tmp_path / ".1-ab.saving", replace(RECORDING, id="d"))
    logged: list[str] = []
    assert [r.id for r in recordings.found(tmp_path, logged.append)] == ["b", "a"]
    (line,) = logged
    assert line.startswith(f"left out of the recordings: {tmp_path / 'c' / 'recording.json'} is damaged")


def test_the_digest_of_a_replay_is_that_of_what_it_depends_on(tmp_path):
    written(tmp_path / "a")
    before = recordings.replay_digest(tmp_path / "a")
    (tmp_path / "a" / "video.mp4").write_bytes(b"x")
    assert recordings.replay_digest(tmp_path / "a") == before
    recordings.write_about(tmp_path / "a", replace(RECORDING, seed=4))
    assert recordings.replay_digest(tmp_path / "a") != before
