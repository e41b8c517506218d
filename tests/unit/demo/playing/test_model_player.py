"""The model as the demo plays it: steered, recorded, and played again bit for bit."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.settings import load
from demo.playing.model_player import ModelPlayer, make_player
from demo.playing.player import Picture, Start
from demo.playing.student import ChosenStudent
from demo.soak import figures, soak
from msmodel.io.weights import save_weights
from msmodel.steering.steering import Camera, Controls, InputSmoothing
from msmodel.tiny_vae import TinyDecoder
from stages.contracts import StageError
from stages.data.files import write_mp4
from stages.eval.config import MeasureConfig, ReplayRun
from stages.play.playing import load_playable
from stages.play.recordings import read_recording, replay_digest
from stages.play.replay import ReplayInputs, run
from stages.records import Checkpoint
from stages.trackers import TrackerConfig
from tests.fakes import FakeContext
from tests.unit.msmodel.models import randomise
from tests.unit.stages.eval import world
from tests.unit.stages.play import players

MEASURE = MeasureConfig(64, 96, TrackerConfig(name="lucas_kanade"))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return players.make_student(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module", autouse=True)
def no_text_encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msmodel.pretrained.load_text_encoder", players.FakeEncoder)
        yield


@pytest.fixture(scope="module")
def playable(student, no_text_encoder):
    """The loaded weights, which no test changes."""
    return players.playable(student[1])


@pytest.fixture(scope="module")
def settings():
    return load("debug", ["data.grid_rows=4", "data.grid_cols=6"])


@pytest.fixture
def player(student, playable, settings, tmp_path) -> ModelPlayer:
    _, checkpoint = student
    chosen = ChosenStudent(checkpoint, checkpoint.folder, None)
    return make_player(replace(settings, runs=str(tmp_path)), playable, chosen)


def dragged(index: int) -> Controls:
    """A point that moves, a pinned one, and from chunk 2 on a third."""
    ids = [1, 2, 3][: 3 if index > 1 else 2]
    xy = np.array([[0.2 + 0.05 * index, 0.5], [0.8, 0.2], [0.5, 0.9]], np.float32)[: len(ids)]
    return Controls(index, np.array(ids), xy, np.array([False, True, False])[: len(ids)])


def play(performance, chunks: range):
    out = []
    for index in chunks:
        out.append(performance.next_chunk(dragged(index)))
        performance.settle()
    return out


def session(player: ModelPlayer) -> Path:
    """A recording with two prompts and a refreshed sink."""
    performance = player.open(Start(players.picture(), "a hall", 5, InputSmoothing()))
    play(performance, range(4))
    performance.set_prompt("a door")
    performance.refresh_sink()
    play(performance, range(4, 8))
    folder = performance.save("test")
    performance.close()
    return folder


def replay(folder, checkpoint, tmp_path, model):
    ctx = FakeContext(tmp_path).within("replay")
    figures = run(ReplayRun(model, MEASURE), ReplayInputs(str(folder), replay_digest(folder), checkpoint), ctx)
    return json.loads(Path(figures.file).read_text()), ctx


@pytest.mark.slow
def test_chunks_are_as_announced(player):
    performance = player.open(Start(players.picture()))
    chunks = play(performance, range(3))
    about = player.about
    assert [len(c.frames) for c in chunks] == [about.first_frames, about.chunk_frames, about.chunk_frames]
    assert [c.revision for c in chunks] == [0, 1, 2]
    assert chunks[0].frames.shape[1:] == (about.height, about.width, 3)
    assert chunks[1].xy_px.shape == (about.chunk_frames, players.POINTS, 2)
    assert chunks[1].visible.sum(-1).tolist() == [2, 2]
    assert performance.cache_bytes > 0
    performance.close()


@pytest.mark.slow
def test_a_reset_plays_the_same_again_and_other_seeds_do_not(player):
    performance = player.open(Start(players.picture(), "x", 1))
    first = play(performance, range(3))
    performance.reset()
    again = play(performance, range(3))
    other = player.open(Start(players.picture(), "x", 2))
    different = play(other, range(3))
    for a, b, c in zip(first, again, different, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        assert (a.frames != c.frames).any()
    for opened in (performance, other):
        opened.close()


def test_a_recording_begins_again_with_a_reset_and_the_prompt_in_force(player):
    performance = player.open(Start(players.picture(), "a hall", 5))
    play(performance, range(6))
    performance.set_prompt("a door")
    performance.reset()
    with pytest.raises(ValueError, match="nothing was played"):
        performance.save("x")
    play(performance, range(3))
    found = read_recording(performance.save("x"))
    assert (len(found.lengths), found.prompts, found.refreshes) == (3, ((0, "a door"),), ())
    performance.close()


def test_prompts_and_refreshes_act_from_the_next_chunk_on(player):
    plain = player.open(Start(players.picture(), "a hall", 5))
    changed = player.open(Start(players.picture(), "a hall", 5))
    with pytest.raises(ValueError, match="no chunk yet"):
        changed.refresh_sink()
    same = zip(play(plain, range(3)), play(changed, range(3)), strict=True)
    assert all((a.frames == b.frames).all() for a, b in same)
    changed.set_prompt("a door")
    assert (plain.next_chunk(dragged(3)).frames != changed.next_chunk(dragged(3)).frames).any()
    for opened in (plain, changed):
        opened.close()


@pytest.mark.slow
def test_a_replay_is_bit_for_bit_and_a_changed_recording_is_found(player, student, tmp_path):
    model, checkpoint = student
    folder = session(player)
    found, ctx = replay(folder, checkpoint, tmp_path / "a", model)
    assert found["identical"] and found["first_difference"] is None
    assert found["frames"] == read_recording(folder).frames == player.about.first_frames + 7 * player.about.chunk_frames
    assert found["fps"] > 0 and ctx.metrics["identical"] == 1
    assert {p.name for p in ctx.artifacts} == {"replay.json", "video.mp4", "drawn.mp4"}
    about = folder / "recording.json"
    values = json.loads(about.read_text())
    for change, first in (
        ({"prompts": [[0, "a hall"], [5, "a door"]]}, 4),
        ({"refreshes": []}, 4),
        ({"seed": 6}, 0),
        ({"frames_sha256": [*values["frames_sha256"][:6], "0" * 64, values["frames_sha256"][7]]}, 6),
    ):
        about.write_text(json.dumps(values | change))
        found, ctx = replay(folder, checkpoint, tmp_path / f"b{first}{len(change)}", model)
        assert (found["identical"], found["first_difference"]) == (False, first), change
        assert any(f"chunk {first} is the first" in line for line in ctx.logged)


def test_the_epe_of_a_replay_is_that_of_what_was_asked(player, student, tmp_path):
    model, checkpoint = student
    found, _ = replay(session(player), checkpoint, tmp_path / "a", model)
    assert found["epe"]["windows"] == 2
    assert found["epe"]["epe"] > 0  # random weights follow nothing


def test_another_student_is_an_error_that_names_both(player, student, tmp_path):
    model, checkpoint = student
    folder = session(player)
    other = Checkpoint("student", "/other", 1, "f" * 64)
    with pytest.raises(StageError, match=f"{checkpoint.folder} .{checkpoint.digest[:12]}.*/other .ffffffffffff"):
        replay(folder, other, tmp_path, model)


def test_frames_of_another_size_and_too_many_points_are_refused_and_the_stream_lives(player):
    with pytest.raises(ValueError, match="this student needs"):
        player.open(Start(np.zeros((9, 9, 3), np.uint8)))
    performance = player.open(Start(players.picture()))
    play(performance, range(2))
    many = np.arange(200)
    with pytest.raises(ValueError, match="more than the"):
        performance.next_chunk(Controls(9, many, np.full((200, 2), 0.5, np.float32), np.zeros(200, bool)))
    assert performance.next_chunk(dragged(2)).index == 2
    performance.close()


@pytest.mark.slow
def test_the_end_of_a_recording_is_reported_once_and_the_stream_goes_on(student, tmp_path):
    cfg = load("debug", ["data.grid_rows=4", "data.grid_cols=6", "demo.record_minutes=0.01"], runs=str(tmp_path))
    player = make_player(cfg, players.playable(student[1]), ChosenStudent(student[1], "x", None))
    performance = player.open(Start(players.picture()))
    notices = [c.notice for c in play(performance, range(8))]  # 0.6 s are 7 frames, so 4 chunks
    assert [bool(n) for n in notices] == [False] * 5 + [True] + [False] * 2
    assert "demo.record_minutes" in notices[5]
    assert len(read_recording(performance.save("x")).lengths) == 4
    performance.close()


def test_a_clip_and_a_webcam_move_the_picture(player, tmp_path):
    clip = world.panning(5, (1, 0), 25)
    write_mp4(tmp_path / "clip.mp4", clip, 12.0, crf=10)
    xy_px, visible = player.motion_of((tmp_path / "clip.mp4").read_bytes())
    moved = (xy_px[12] - xy_px[0])[visible[12]]
    np.testing.assert_allclose(np.median(moved, axis=0), [12, 0], atol=1)
    with pytest.raises(ValueError, match=r"not a video|text"):
        player.motion_of(b"words and words")
    performance = player.open(Start(players.picture()))
    performance.add_motion("clip", xy_px, visible)
    first = performance.next_chunk(Controls(1, transfer="clip"))
    second = performance.next_chunk(Controls(2, transfer="clip"))
    both = first.visible[0] & second.visible[-1]
    assert both.any()
    np.testing.assert_allclose(second.xy_px[-1][both], xy_px[2][: len(both)][both[: xy_px.shape[1]]], atol=1e-3)
    for frame in clip[:6]:
        performance.add_webcam_frame(frame)
    live = performance.next_chunk(Controls(3, transfer="webcam"))  # begins on the grid, wherever points were before
    assert live.visible.sum(-1).min() > 10
    np.testing.assert_allclose(live.xy_px[0][live.visible[0]] % 8, 4, atol=0.01)
    for frame in clip[6:10]:
        performance.add_webcam_frame(frame)
    went = performance.next_chunk(Controls(4, transfer="webcam"))
    both = went.visible[-1] & live.visible[0]
    np.testing.assert_allclose(np.median((went.xy_px[-1] - live.xy_px[0])[both], axis=0), [4, 0], atol=1.5)
    with pytest.raises(ValueError, match="no motion 'gone'"):
        performance.next_chunk(Controls(5, transfer="gone"))
    performance.close()


def test_recordings_are_listed_newest_first_and_their_files_found(player):
    folder = session(player)
    listed = player.recordings()
    assert [r["id"] for r in listed] == [folder.name]
    assert {"id", "title", "prompt", "seed", "seconds", "frames", "saved", "student", "digest"} <= listed[0].keys()
    assert player.recording_file(folder.name, "drawn.mp4").read_bytes()[4:8] == b"ftyp"
    with pytest.raises(ValueError, match="there is no"):
        player.recording_file("..", "recording.json")


@pytest.mark.slow
def test_a_tiny_vae_decodes_where_it_is_asked_for_and_is_recorded(player, student, tmp_path):
    model, checkpoint = student
    save_weights(randomise(TinyDecoder(model.vae, width=8)), tmp_path / "tiny", {})
    tiny = Checkpoint("tiny_vae", str(tmp_path / "tiny"), 1, "t" * 64)
    cfg = load("debug", ["data.grid_rows=4", "data.grid_cols=6"], runs=str(tmp_path))
    playable = load_playable(checkpoint, tiny, "tiny", players.POINTS, players.CPU)
    assert (
        load_playable(checkpoint, tiny, "auto", players.POINTS, players.CPU).decoder == "vae"
    )  # a linear VAE is faster
    folder = session(make_player(cfg, playable, ChosenStudent(checkpoint, checkpoint.folder, tiny)))
    recording = read_recording(folder)
    assert (recording.decoder, recording.decoder_digest) == ("tiny", tiny.digest)
    assert recording.frames_sha256 != read_recording(session(player)).frames_sha256
    run_cfg, ctx = ReplayRun(model, MEASURE), FakeContext(tmp_path).within("replay")
    inputs = ReplayInputs(str(folder), replay_digest(folder), checkpoint, tiny)
    assert json.loads(Path(run(run_cfg, inputs, ctx).file).read_text())["identical"]
    with pytest.raises(StageError, match=r"tiny VAE tttttttttttt, and this run's is none"):
        run(run_cfg, replace(inputs, tiny_vae=None), ctx)


def test_a_fork_goes_on_by_itself(player):
    performance = player.open(Start(players.picture(), "x", 1))
    play(performance, range(3))
    fork, other = performance.fork(), performance.fork()
    moved = other.next_chunk(Controls(9, camera=Camera(pan_x=0.5)))
    ours, theirs = performance.next_chunk(dragged(3)), fork.next_chunk(dragged(3))
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    np.testing.assert_array_equal(ours.xy_px, theirs.xy_px)
    assert (moved.frames != ours.frames).any()
    assert len(read_recording(performance.save("x")).lengths) == 4
    performance.close()


@pytest.mark.slow
def test_a_latency_that_grows_or_a_memory_that_does_is_seen():
    even, growing = [1.0] * 40, [1 + 0.01 * i for i in range(40)]
    assert figures(even, even, [100] * 40)["slope_ci"] == [0, 0]
    found = figures(even, growing, [100 + i for i in range(40)])
    assert found["slope_ci"][0] > 50
    assert found["growth_pct"] == pytest.approx(100 * 35 / 104)


@pytest.mark.slow
def test_its_pace_and_memory_are_measured(student, tmp_path):
    cfg = load("debug", ["data.grid_rows=4", "data.grid_cols=6"], runs=str(tmp_path))
    player = make_player(cfg, players.playable(student[1]), ChosenStudent(student[1], "x", None))
    player._pictures = [Picture("a", "A", "a hall", players.picture())]
    found = soak(player, 12, record=True)
    assert found["frames"] == 12 * player.about.chunk_frames
    assert found["fps"] > 0 and found["slope_ci"][0] <= found["slope_pct_per_100_chunks"] <= found["slope_ci"][1]
    assert found["resident_mb"][0] > 10 and found["cache_bytes"] > 0
    assert not list(player.setup.root.glob("*"))


def test_nothing_is_left_of_a_closed_performance(player):
    before = threading.active_count()
    player.warm_up()
    performance = player.open(Start(players.picture()))
    play(performance, range(2))
    performance.close()
    assert threading.active_count() == before
    assert not list(player.setup.root.glob("*"))
