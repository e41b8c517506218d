"""python -m pipelines generate, from the command line: films of the asked length, and plain words for mistakes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from msmodel.causal import CausalDiT
from msmodel.weights import save_weights
from pipelines import cli
from pipelines.config import load
from pipelines.generate import authored
from stages.data.files import write_png
from stages.data.video import read_container, read_frames, read_timestamps
from tests.unit.msmodel.models import randomise
from tests.unit.stages.eval import players, world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student of the debug preset's size with random weights, and a picture."""
    root = tmp_path_factory.mktemp("generate")
    save_weights(randomise(CausalDiT(load("debug").model)), root / "student", {"name": "student", "step": 1})
    write_png(root / "a.png", world.texture(1, 60, 90).astype(np.uint8))
    return root


@pytest.fixture(autouse=True)
def no_text_encoder(monkeypatch):
    monkeypatch.setattr("stages.eval.playing.load_text_encoder", players.FakeEncoder)


def generate(folder, out, *words: str) -> int:
    where = ["--preset", "debug", "--runs", str(folder / "runs"), f"demo.student={folder / 'student'}"]
    what = ["--image", str(folder / "a.png"), "--out", str(out), "--seconds", "0.5"]
    return cli.main(["generate", *where, *what, *words])


def pixels(path) -> np.ndarray:
    return np.stack(list(read_frames(str(path), read_container(str(path)), range(12))))


def test_a_clip_of_the_asked_length_with_and_without_tracks(folder, tmp_path, capsys):
    out = tmp_path / "new" / "a.mp4"
    assert generate(folder, out, "--motion", "drag:0.2,0.5,0.8,0.5", "--prompt", "a hall") == cli.OK
    said = capsys.readouterr().out
    assert "12 of 12 frames" in said and str(out) in said
    assert sorted(p.name for p in out.parent.iterdir()) == ["a-plain.mp4", "a.mp4", "a.png"]
    for name in ("a.mp4", "a-plain.mp4"):
        assert len(read_timestamps(str(out.parent / name))) == 12
    assert (np.abs(pixels(out).astype(int) - pixels(out.parent / "a-plain.mp4")) > 60).any()  # dots of the tracks
    assert cv2.imread(str(out.with_suffix(".png"))).shape[1] > 8 * 300


def test_the_same_words_give_the_same_film_and_another_seed_another(folder, tmp_path):
    names = [tmp_path / f"{i}.mp4" for i in range(3)]
    for out, seed in zip(names, ("1", "1", "2"), strict=True):
        assert generate(folder, out, "--motion", "pan:0.3", "--seed", seed) == cli.OK
    first, same, other = (p.with_name(f"{p.stem}-plain.mp4").read_bytes() for p in names)
    assert first == same
    assert first != other


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--motion or --tracks: give one of them"),
        (("--motion", "pan", "--tracks", "a.npz"), "--motion or --tracks: give one of them"),
        (("--motion", "fly"), "'fly' is none of pan"),
        (("--motion", "pan:a"), "at most 2 numbers"),
        (("--motion", "zoom:1,2"), "at most 1 numbers"),
        (("--motion", "pan", "--seconds", "0"), "--seconds: 0 must be above 0"),
        (("--motion", "pan", "--seconds", "nan"), "--seconds: nan"),
        (("--motion", "pan", "--seed", "-1"), "--seed: -1"),
        (("--motion", "pan", "--out", "a.gif"), "must end in .mp4"),
        (("--motion", "pan", "--image", ""), "--image: name a PNG"),
        (("--motion", "pan", "--image", "missing.png"), "there is no file missing.png"),
        (("--tracks", "missing.npz"), "missing.npz"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(folder, tmp_path, capsys, words, says):
    assert generate(folder, tmp_path / "a.mp4", *words) == cli.FAILED
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_picture_is_an_error(folder, tmp_path, capsys):
    for name, words in (("a.txt", "no PNG, JPEG or WebP"), ("b.png", "no PNG")):
        (tmp_path / name).write_text("x")
        assert generate(folder, tmp_path / "a.mp4", "--motion", "still", "--image", str(tmp_path / name)) == cli.FAILED
        assert words in capsys.readouterr().err


def test_authored_motions_are_controls():
    assert authored("pan:0.2,0.1", 2).camera.pan_y == 0.1
    assert authored("zoom", 2).camera.zoom > 0
    assert authored("orbit:-5", 2).camera.orbit == -5
    path = authored("drag:0.1,0.2,0.3,0.4", 2.5).paths[0]
    np.testing.assert_allclose(path.line, [[0.1, 0.2], [0.3, 0.4]], atol=1e-6)
    assert (path.seconds, len(path.members)) == (2.5, 5)
    assert not any(vars(authored("still", 1).camera).values())
