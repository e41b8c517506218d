"""python -m pipelines generate, from the command line: films of the asked length, and plain words for mistakes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from configs.settings import load
from demo.playing.player import About
from demo.server.uploads import CroppedPicture, read_picture
from msmodel.causal import CausalDiT
from msmodel.io.track_files import TrackFile, write_ati, write_tracks, write_wan_move
from msmodel.io.weights import save_weights
from msmodel.steering.authored import Authored
from pipelines.commands import cli
from pipelines.commands.generate import Job, asked_tracks, motion_of
from stages.data.files import write_png
from stages.data.video import read_container, read_frames, read_timestamps
from stages.play import recordings
from tests.unit.msmodel.models import randomise
from tests.unit.stages.eval import world
from tests.unit.stages.play import players

ABOUT = About("debug", "", "", 32, 32, 24.0, 1, 2, 24, (8, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student of the debug preset's size with random weights, and a picture."""
    root = tmp_path_factory.mktemp("generate")
    save_weights(randomise(CausalDiT(load("debug").model)), root / "student", {"name": "student", "step": 1})
    write_png(root / "a.png", world.texture(1, 60, 90).astype(np.uint8))
    return root


@pytest.fixture(autouse=True)
def no_text_encoder(monkeypatch):
    monkeypatch.setattr("msmodel.pretrained.load_text_encoder", players.FakeEncoder)


def generate(folder, out, *words: str) -> int:
    where = ["--preset", "debug", "--runs", str(folder / "runs"), f"demo.student={folder / 'student'}"]
    what = ["--image", str(folder / "a.png"), "--out", str(out), "--seconds", "0.5"]
    return cli.main(["generate", *where, *what, *words])


def pixels(path) -> np.ndarray:
    return np.stack(list(read_frames(str(path), read_container(str(path)), range(12))))


@pytest.mark.slow
def test_a_clip_of_the_asked_length_with_and_without_tracks(folder, tmp_path, capsys):
    out = tmp_path / "new" / "a.mp4"
    assert generate(folder, out, "--motion", "drag:0.2,0.5,0.8", "--prompt", "a hall") == cli.OK
    logged = capsys.readouterr().out
    assert "12 of 12 frames" in logged and str(out) in logged
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "a-plain.mp4",
        "a-strip.png",
        "a.mp4",
    ]  # a.png may be the picture itself
    for name in ("a.mp4", "a-plain.mp4"):
        assert len(read_timestamps(str(out.parent / name))) == 12
    assert (np.abs(pixels(out).astype(int) - pixels(out.parent / "a-plain.mp4")) > 60).any()  # dots of the tracks
    assert cv2.imread(str(out.with_name("a-strip.png"))).shape[1] > 8 * 300


@pytest.mark.slow
def test_the_same_words_give_the_same_film_and_another_seed_another(folder, tmp_path):
    names = [tmp_path / f"{i}.mp4" for i in range(3)]
    for out, seed in zip(names, ("1", "1", "2"), strict=True):
        assert generate(folder, out, "--motion", "pan:0.3", "--seed", seed) == cli.OK
    first, same, other = (p.with_name(f"{p.stem}-plain.mp4").read_bytes() for p in names)
    assert first == same
    assert first != other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--motion or --tracks: give one of them"),
        (("--motion", "pan", "--tracks", "a.npz"), "--motion or --tracks: give one of them"),
        (("--motion", "fly"), "'fly' is none of pan"),
        (("--motion", ""), "give one of them"),
        (("--motion", "pan:a"), "'pan:a' is none of pan"),
        (("--motion", "zoom:1,2"), "'zoom:1,2' is none of pan"),
        (("--motion", "pan", "--seconds", "0"), "--seconds: 0 must be above 0"),
        (("--motion", "pan", "--seconds", "nan"), "--seconds: nan"),
        (("--motion", "pan", "--seed", "-1"), "--seed: -1"),
        (("--motion", "pan", "--out", "a.gif"), "must end in .mp4"),
        (("--motion", "pan", "--image", ""), "--image: name a PNG"),
        (("--motion", "pan", "--image", "missing.png"), "there is no file missing.png"),
        (("--tracks", "missing.npz"), "missing.npz"),
    ],
)
def test_mistakes_are_reported_and_nothing_is_written(folder, tmp_path, capsys, words, says):
    assert generate(folder, tmp_path / "a.mp4", *words) == cli.FAILED
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_that_is_no_picture_is_an_error(folder, tmp_path, capsys):
    for name, words in (("a.txt", "no PNG, JPEG or WebP"), ("b.png", "no PNG")):
        (tmp_path / name).write_text("x")
        assert generate(folder, tmp_path / "a.mp4", "--motion", "zoom", "--image", str(tmp_path / name)) == cli.FAILED
        assert words in capsys.readouterr().err


def test_motions_take_numbers_in_place_of_defaults():
    assert motion_of("pan:0.2")[1].pan == (0.2, Authored().pan[1])
    assert motion_of("zoom")[1] == Authored()
    assert motion_of("orbit:-5")[1].orbit == -5
    drag = motion_of("drag:0.1,0.2,0.3")[1]
    assert (drag.start, drag.end) == ((0.1, 0.2), (0.3, Authored().end[1]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npz", "ati", "wan_move"])
def test_tracks_from_a_file_are_followed_in_the_picture_as_it_was_cut(folder, tmp_path, kind):
    """The picture is 90x60 and cut to its middle 60x60, 32x32 in the clip: a point at (45, 30) is in the middle."""
    t = np.arange(12, dtype=np.float32)
    xy = np.stack([np.stack([45 + t, np.full(12, 30, np.float32)], -1)], 1)
    tracks = TrackFile(xy, np.ones((12, 1), bool), 24.0, (60, 90))
    names = {"npz": "a.npz", "ati": "a.pth", "wan_move": "a.npy,b.npy"}[kind]
    files = [str(tmp_path / name) for name in names.split(",")]
    if kind == "npz":
        write_tracks(files[0], tracks)
    elif kind == "ati":
        write_ati(files[0], tracks, (60, 90))
    else:
        write_wan_move(*files, tracks, (60, 90))
    job = Job("", "", ",".join(files), "", 0.5, 0, "a.mp4")
    cut = read_picture((folder / "a.png").read_bytes(), "image/png", 32, 32, 10)
    found, visible = asked_tracks(job, ABOUT, 24, cut, 12)
    assert visible[:12].all()
    np.testing.assert_allclose(found[0, 0], [16, 16], atol=0.05)
    np.testing.assert_allclose(found[9, 0], [16 + 9 * 32 / 60, 16], atol=0.05)


def test_a_recordings_tracks_can_be_asked_for_again(tmp_path):
    xy = np.random.default_rng(0).uniform(0, 30, (7, 3, 2)).astype(np.float32)
    recordings.write_tracks(tmp_path, xy, xy[..., 0] > 5, 24.0, (32, 32))
    whole = np.zeros((32, 32, 3), np.uint8)
    job = Job("", "", str(tmp_path / "tracks.npz"), "", 0.5, 0, "a.mp4")
    found, visible = asked_tracks(job, ABOUT, 24, CroppedPicture(whole, 32, 32, (0, 0, 32, 32)), 12)
    np.testing.assert_array_equal(visible, xy[..., 0] > 5)
    np.testing.assert_allclose(found[visible], xy[visible], atol=1e-5)
