"""Recording while it plays: nothing half-written, a full disk ends the recording and not the stream, names are safe."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from demo.playing.player import PlayedChunk
from demo.playing.recorder import Recorder, clear_abandoned, recording_file
from stages.data.video import read_timestamps
from stages.play.recordings import digest_of, read_asked, read_first, read_recording
from tests.unit.stages.play.test_recordings import FRAME, RECORDING

BEGUN = replace(
    RECORDING, id="", title="", saved="", prompts=((0, "a hall"),), refreshes=(), lengths=(), frames_sha256=()
)


def played(index: int, tracks: int = 3, frames: int = 4, size: tuple[int, int] = (32, 48)) -> PlayedChunk:
    random = np.random.default_rng(index)
    xy = random.uniform(0, 30, (frames, tracks, 2)).astype(np.float32)
    return PlayedChunk(
        index, 0, random.integers(0, 256, (frames, *size, 3)).astype(np.uint8), xy, xy[..., 0] > 9, 0.0, 0.0
    )


def recorder(root, minutes: float = 1.0) -> Recorder:
    return Recorder(root, BEGUN, FRAME, minutes)


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, in this process and those it starts."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, previous)


def test_a_recording_is_whole_and_may_be_saved_again(tmp_path):
    made, chunks = recorder(tmp_path), [played(0), played(1), played(2, tracks=5)]
    for chunk in chunks[:2]:
        made.add(chunk)
    made.prompt(2, "a door")
    made.refreshed(2)
    first = made.save("one")
    made.add(chunks[2])
    second = made.save("two")
    assert len(list(tmp_path.glob(".*.playing"))) == 1
    made.close()
    assert sorted(tmp_path.iterdir()) == sorted([first, second])
    early, late = read_recording(first), read_recording(second)
    assert (early.title, early.id, early.lengths, early.prompts, early.refreshes) == (
        "one", first.name, (4, 4), ((0, "a hall"),), (),
    )  # fmt: skip
    assert (late.lengths, late.prompts, late.refreshes) == ((4, 4, 4), ((0, "a hall"), (2, "a door")), (2,))
    assert late.frames_sha256 == tuple(digest_of(c.frames) for c in chunks)
    xy, visible = read_asked(second, late)
    assert xy.shape == (12, 5, 2)
    np.testing.assert_array_equal(xy[:4, :3], chunks[0].xy_px)
    np.testing.assert_array_equal(visible[8:], chunks[2].visible)
    assert not visible[:8, 3:].any()
    np.testing.assert_array_equal(read_first(second, late), FRAME)
    for name in ("video.mp4", "drawn.mp4"):
        assert len(read_timestamps(str(second / name))) == 12


def test_nothing_played_is_nothing_to_save(tmp_path):
    made = recorder(tmp_path)
    with pytest.raises(ValueError, match="nothing was played"):
        made.save("x")
    made.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("title", "clean", "id_part"),
    [
        ("../../etc/passwd\n\0", "../../etc/passwd", "etc-passwd"),
        ("<b>Ünïcode</b>  \t x", "<b>Ünïcode</b> x", "b-unicode-b-x"),
        ("x" * 300, "x" * 80, "x" * 24),
        ("", None, "video"),
    ],
)
def test_titles_cannot_leave_the_folder(tmp_path, title, clean, id_part):
    made = recorder(tmp_path)
    made.add(played(0))
    folder = made.save(title)
    made.close()
    found = read_recording(folder)
    assert folder.parent == tmp_path
    assert id_part in folder.name
    assert found.title == (clean or folder.name)
    assert recording_file(tmp_path, folder.name, "video.mp4") == folder / "video.mp4"


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("..", "recording.json"),
        ("../a", "video.mp4"),
        ("a", "../b/video.mp4"),
        ("a", "passwd"),
        ("", "video.mp4"),
        (".1-ab.playing", "first.png"),
        ("a/b", "first.png"),
        ("a\0", "first.png"),
        ("missing", "video.mp4"),
        ("a", "drawn.mp4"),
    ],
)
def test_only_files_of_recordings_are_handed_out(tmp_path, id, name):
    for folder in (tmp_path / "r" / "a", tmp_path / "r" / "b", tmp_path / "r" / ".1-ab.playing", tmp_path / "a"):
        folder.mkdir(parents=True)
        for file in ("video.mp4", "first.png", "passwd", "recording.json"):
            (folder / file).write_text("x")
    with pytest.raises(ValueError, match="there is no"):
        recording_file(tmp_path / "r", id, name)


def test_a_full_disk_ends_the_recording_and_says_so(tmp_path):
    made = recorder(tmp_path)
    with full_disk(20_000):
        for index in range(40):
            made.add(played(index))
            if made.ended:
                break
        with pytest.raises(ValueError, match="is the disk full"):
            made.save("x")
    made.add(played(99))  # the stream goes on
    assert "the recording ended" in made.ended
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_saving_leaves_nothing_half_written(tmp_path):
    made = recorder(tmp_path)
    for index in range(3):
        made.add(played(index))
    made._queue.join()
    with full_disk(1000), pytest.raises(ValueError, match="free some space"):
        made.save("x")
    assert [p.suffix for p in tmp_path.iterdir()] == [".playing"]
    made.close()


def test_a_folder_that_cannot_be_made_ends_the_recording(tmp_path):
    (tmp_path / "file").write_text("in the way")
    made = recorder(tmp_path / "file" / "recordings")
    made.add(played(0))
    with pytest.raises(ValueError, match="the recording ended"):
        made.save("x")
    made.close()


def test_a_fault_of_the_recorder_does_not_stop_the_stream(tmp_path, monkeypatch):
    monkeypatch.setattr("demo.playing.recorder.digest_of", lambda frames: 1 / 0)
    made = recorder(tmp_path)
    for index in range(12):
        made.add(played(index))
    with pytest.raises(ValueError, match=r"the recording failed .ZeroDivisionError"):
        made.save("x")
    made.close()


def test_its_length_is_bounded(tmp_path):
    made = recorder(tmp_path, minutes=10 / 60 / BEGUN.fps)  # ten frames
    for index in range(5):
        made.add(played(index))
    folder = made.save("x")
    made.close()
    found = read_recording(folder)
    assert found.lengths == (4, 4)
    assert "demo.record_minutes" in found.ended


def test_threads_and_encoders_end(tmp_path):
    before = threading.active_count()
    for _ in range(3):
        made = recorder(tmp_path)
        made.add(played(0))
        assert threading.active_count() == before + 1
        made.close()
        made.close()
    assert threading.active_count() == before
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True, check=False
    )
    assert "ffmpeg" not in children.stdout


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.unit.demo.playing.test_recorder import played, recorder
made = recorder(Path(sys.argv[1]))
for index in range(3):
    made.add(played(index))
made._queue.join()
made.save("kept")
made.add(played(3))
made._queue.join()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_whole_recordings_and_its_rest_is_removed(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    rest = [p for p in tmp_path.iterdir() if p.name.endswith(".playing")]
    assert len(rest) == 1
    mine = tmp_path / f".{os.getpid()}-ab.playing"
    mine.mkdir()
    logged: list[str] = []
    clear_abandoned(tmp_path, logged.append)
    assert len(logged) == 1 and str(rest[0]) in logged[0]
    assert mine.exists() and not rest[0].exists()
    kept = [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
    assert len(kept) == 1 and len(json.loads((kept[0] / "recording.json").read_text())["lengths"]) == 3
