"""The Python API: frames equal those of the demo's player; sources, pictures, steering, forks; bad input is a clear error."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.settings import load
from demo.playing.model_player import make_player
from demo.playing.player import Start
from demo.playing.student import ChosenStudent
from msmodel.dit import WanDiT
from msmodel.io.export import write_diffusers
from msmodel.io.weights import load_student, load_teacher, save_weights
from msmodel.pretrained import load_streaming_model
from msmodel.session import StreamingSession, read_picture
from msmodel.steering.controls import Camera, Controls, InputSmoothing
from msmodel.tiny_vae import TinyDecoder
from tests.unit.stages.play import players

CHECKOUT = Path(__file__).parents[3]
PAGE = CHECKOUT / "docs" / "python-api.md"
GRID = (4, 6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return players.make_student(tmp_path_factory.mktemp("weights"))[1]


@pytest.fixture(autouse=True)
def no_text_encoder(monkeypatch):
    monkeypatch.setattr("msmodel.pretrained.load_text_encoder", players.FakeEncoder)


@pytest.fixture
def opened(checkpoint):
    def open_(prompt: str = "a hall", seed: int = 5, **more) -> StreamingSession:
        given = {"grid": GRID, "max_tracks": players.POINTS, "device": "cpu"} | more
        return StreamingSession.from_pretrained(checkpoint.folder, players.picture(), prompt, seed=seed, **given)

    return open_


def frames(session: StreamingSession, chunks: int) -> np.ndarray:
    return np.concatenate([chunk.frames.numpy() for chunk in session.stream(chunks)])


def moved(index: int) -> Controls:
    xy = np.array([[0.2 + 0.1 * index, 0.5], [0.8, 0.2]], np.float32)
    return Controls(index, np.array([1, 2]), xy, np.array([False, True]))


@pytest.mark.slow
def test_frames_equal_those_of_the_demos_player(checkpoint, opened, tmp_path):
    cfg = load("debug", [f"data.grid_rows={GRID[0]}", f"data.grid_cols={GRID[1]}"], runs=str(tmp_path))
    player = make_player(cfg, players.playable(checkpoint), ChosenStudent(checkpoint, checkpoint.folder, None))
    smoothing = InputSmoothing(smooth_seconds=0.1)
    performance = player.open(Start(players.picture(), "a hall", 5, smoothing), record=False)
    session = opened(smoothing=smoothing)
    for index in range(5):
        if index == 3:
            performance.set_prompt("a door")
            session.set_prompt("a door")
            performance.refresh_sink()
            session.refresh_sink()
        session.controls = moved(index)
        played = performance.next_chunk(moved(index))
        np.testing.assert_array_equal(session.next_chunk().frames.numpy(), played.frames)
    performance.close()


def test_an_export_and_a_hub_repository_stream_as_the_checkpoint_does(checkpoint, opened, tmp_path):
    write_diffusers(load_student(checkpoint.folder), tmp_path / "export", shard_gb=5.0)
    shutil.copytree(tmp_path / "export", tmp_path / "fetched")
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(tmp_path / "fetched")

    expected = frames(opened(), 2)
    for source in (tmp_path / "export", str(tmp_path / "export"), "somebody/student@v1"):
        session = StreamingSession.from_pretrained(
            source,
            players.picture(),
            "a hall",
            seed=5,
            grid=GRID,
            max_tracks=players.POINTS,
            device="cpu",
            download=download,
        )
        np.testing.assert_array_equal(frames(session, 2), expected)
    assert asked == [("somebody/student", "v1")]


def test_one_loaded_model_serves_many_sessions(checkpoint, opened):
    model = load_streaming_model(checkpoint.folder, device="cpu")
    one, other = (
        StreamingSession(model, players.picture(), "a hall", seed=s, grid=GRID, max_tracks=players.POINTS)
        for s in (5, 6)
    )
    first = frames(one, 2)
    np.testing.assert_array_equal(first, frames(opened(), 2))
    assert (frames(other, 2) != first).any()


def test_a_drag_moves_what_lies_around_its_start_and_holds_the_rest(opened):
    session = opened()
    session.drag((0.3, 0.5), (0.7, 0.5), seconds=0.5)
    assert frames(session, 1).shape[1:] == (*session.size, 3)
    (path,) = session.controls.paths
    height, width = session.size
    xy_px, visible = session._steering.fork().tracks(session.controls, 1, 8)
    ends = xy_px[-1][visible[-1]]
    last = path.members * [width, height] + [0.4 * width, 0]
    assert len(path.members) and all(np.abs(ends - p).sum(-1).min() < 1e-3 for p in last)
    still = opened()
    still.controls = Controls(camera=Camera())
    assert (frames(session, 2) != frames(still, 3)[-4:]).any()


def test_a_second_drag_begins_when_it_is_given(opened):
    session = opened()
    session.drag((0.3, 0.5), (0.7, 0.5), seconds=0.5)
    first = session.controls.paths[0].id
    session.drag((0.3, 0.5), (0.7, 0.5), seconds=0.5)
    assert session.controls.paths[0].id != first


def test_own_tracks_are_followed_forward_and_backward(opened):
    session = opened()
    xy_px = np.stack([[[4.0 + t, 10.5]] for t in range(3)])
    session.follow(xy_px, np.ones((3, 1), bool))
    got, visible = session._steering.fork().tracks(session.controls, 0, 5)
    assert got[visible][:, 0].tolist() == [4.0, 5.0, 6.0, 5.0, 4.0]
    frames(session, 2)


def test_a_fork_goes_on_alone_and_a_reset_repeats(opened):
    session = opened()
    session.drag((0.3, 0.5), (0.7, 0.5), seconds=1.0)
    start = frames(session, 2)
    fork = session.fork()
    same, own = fork.fork(), frames(session, 2)
    fork.set_prompt("a door")
    fork.controls = Controls()
    assert (frames(fork, 2) != own).any()
    np.testing.assert_array_equal(frames(same, 2), own)
    session.reset()
    np.testing.assert_array_equal(frames(session, 2), start)


def test_an_empty_prompt_streams_and_a_new_prompt_holds_from_the_next_chunk(opened):
    session, other = opened(""), opened("")
    np.testing.assert_array_equal(frames(session, 1), frames(other, 1))
    session.set_prompt("a door")
    assert session.prompt == "a door" and (frames(session, 1) != frames(other, 1)).any()


def test_memory_stays_at_the_formula(opened):
    session = opened()
    held = []
    for _ in session.stream(8):
        session._stream.settle()
        held.append(session.cache_bytes)
    cfg = session.model.student.cfg
    s, w, chunk = cfg.student.sink, cfg.student.window, cfg.student.chunk
    assert held[s + w - 1 :] == [2 * cfg.dit.layers * (s + w) * chunk * cfg.tokens_per_frame * cfg.dit.dim * 4] * (
        8 - s - w + 1
    )


def test_a_tiny_vae_decodes_where_it_is_asked_for(checkpoint, opened, tmp_path):
    save_weights(TinyDecoder(load_student(checkpoint.folder).cfg.vae, 4), tmp_path, {})
    tiny = opened(decoder="tiny", tiny_vae=tmp_path)
    assert tiny.model.decoder == "tiny" and opened(tiny_vae=tmp_path).model.decoder == "vae"
    assert frames(tiny, 1).shape == frames(opened(), 1).shape


def test_pictures_cover_the_frame_and_are_cropped_around_their_centre(tmp_path):
    exact = players.picture()
    size = exact.shape[:2]
    np.testing.assert_array_equal(read_picture(exact, size), exact)
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 24:72] = exact  # the middle is what stays
    Image.fromarray(wide).save(tmp_path / "wide.png")
    for picture in (wide, Image.fromarray(wide), tmp_path / "wide.png", str(tmp_path / "wide.png")):
        np.testing.assert_array_equal(read_picture(picture, size), exact)
    large = np.asarray(Image.fromarray(exact).resize((480, 320)))
    assert read_picture(large, size).shape == (*size, 3)
    assert read_picture(Image.fromarray(exact).convert("RGBA"), size).shape == (*size, 3)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        ("none.png", "there is no file none.png"),
        (str(PAGE), "cannot be read as a picture"),
        (str(CHECKOUT), "cannot be read as a picture"),
        (None, "cannot be read as a picture"),
        (np.zeros((32, 48, 3), np.float32), "H W 3 uint8"),
        (np.zeros((32, 48), np.uint8), "H W 3 uint8"),
        (np.zeros((32, 47, 3), np.uint8), "47x32 pixels, fewer than the 48x32"),
    ],
)
def test_a_picture_that_does_not_do_is_a_clear_error(picture, reason):
    with pytest.raises(ValueError, match=reason):
        read_picture(picture, (32, 48))


def offline(name: str, **_) -> str:
    raise OSError("no route to host")


def start_from(source: Path | str, **more) -> StreamingSession:
    return StreamingSession.from_pretrained(source, players.picture(), "x", device="cpu", download=offline, **more)


def test_a_model_that_does_not_do_is_a_clear_error(checkpoint, tmp_path):
    teacher = load_teacher(checkpoint.folder)
    assert type(teacher) is WanDiT
    save_weights(teacher, tmp_path / "teacher", {})
    write_diffusers(teacher, tmp_path / "exported", shard_gb=5.0)
    save_weights(TinyDecoder(teacher.cfg.vae, 4), tmp_path / "tiny", {})
    (tmp_path / "empty").mkdir()
    shutil.copytree(checkpoint.folder, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for source, reason in (
        (tmp_path / "none", "there is no such folder"),
        (str(tmp_path / "none"), "there is no such folder"),
        ("embedded:none", "there is no such folder"),
        (tmp_path / "empty", r"config\.json: missing"),
        (tmp_path / "teacher", "a teacher, which cannot stream"),
        (tmp_path / "exported", "a teacher, which cannot stream"),
        (tmp_path / "tiny", "of class TinyDecoder, not a student"),
        (tmp_path / "damaged", "damaged or truncated"),
        ("somebody/student", "cannot be fetched .no route to host"),
    ):
        with pytest.raises(ValueError, match=reason):
            start_from(source)


def test_options_that_do_not_fit_are_clear_errors(checkpoint, opened):
    for more, reason in (
        ({"decoder": "fast"}, "'fast' is not one of auto, vae, tiny"),
        ({"decoder": "tiny"}, "needs a tiny VAE"),
        ({"tiny_vae": "none", "decoder": "tiny"}, "none"),
        ({"smoothing": replace(InputSmoothing(), release="drop")}, "release"),
    ):
        with pytest.raises(ValueError, match=reason):
            start_from(checkpoint.folder, **more)
    with pytest.raises(ValueError, match="prompt: must be text, not list"):
        opened(["a hall"])
    session = opened()
    with pytest.raises(ValueError, match="no chunk yet"):
        session.refresh_sink()
    for drag, reason in (
        (((0.3, 0.5), (70, 0.5), 1.0), "end=.*shares of the frame"),
        (((0.3,), (0.7, 0.5), 1.0), "start=.*shares of the frame"),
        (((0.3, 0.5), (0.7, 0.5), 0.0), "must be positive"),
    ):
        with pytest.raises(ValueError, match=reason):
            session.drag(*drag)
    with pytest.raises(ValueError, match="T n 2"):
        session.follow(np.zeros((3, 2)), np.ones(3, bool))
    session.controls = Controls(0, np.arange(99), np.full((99, 2), 0.5, np.float32), np.zeros(99, bool))
    with pytest.raises(ValueError, match="more than the 24 tracks"):
        session.next_chunk()


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_first_example_of_the_page_has_at_most_ten_lines():
    assert len([line for line in examples()[0].splitlines() if line.strip()]) <= 10


@pytest.mark.slow
def test_the_examples_of_the_page_run_from_another_folder(tmp_path):
    """With the shipped student and its real text encoder, in a fresh process whose working directory is elsewhere."""
    rough = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(rough).resize((320, 200)).save(tmp_path / "photo.png")
    script = "\n".join(code for code in examples() if "runs/" not in code and "owner/name" not in code)
    env = os.environ | {"PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "video.mp4").stat().st_size > 0
