"""Which student is played, and which pictures it is shown from."""

from __future__ import annotations

import numpy as np
import pytest

from configs.settings import load
from demo.playing import pictures, student
from infra.codec import Codec
from infra.store import Store
from msmodel.io.weights import load_student
from pipelines.commands import ship
from pipelines.run import RECORDS
from stages.records import Checkpoint
from stages.train.dmd import DMD, DmdConfig
from stages.train.publish import weights_digest
from tests.unit.stages.play import players


def train(runs, name: str, finished: str, preset: str = "debug") -> Checkpoint:
    """A student, published as `make distill` would."""
    root = runs / preset
    store = Store(root, Codec(RECORDS, root))
    step = store.step(DMD.name, DMD.version, DmdConfig(), (name,), 0)
    step.folder.mkdir(parents=True)
    _, checkpoint = players.make_student(step.folder, name)
    store.publish(step, checkpoint, 1.0, provenance={"finished": finished, "git_sha": "abc", "seed": 5})
    return checkpoint


@pytest.mark.slow
def test_the_newest_is_played_unless_another_is_named(tmp_path):
    old = train(tmp_path, "b", "2026-01-01T00:00:00+00:00")
    new = train(tmp_path, "a", "2026-02-01T00:00:00+00:00")
    cfg = load("debug", runs=str(tmp_path))
    assert student.choose(cfg, pytest.fail).student.digest == new.digest
    named = student.choose(load("debug", [f"demo.student={old.folder}"], runs=str(tmp_path)), pytest.fail)
    assert (named.student.digest, named.name) == (old.digest, old.folder)
    assert student.by_digest(cfg, old.digest, "/gone").student.folder == old.folder


@pytest.mark.slow
def test_without_one_nano_plays_the_shipped_one_and_says_so_and_others_report_how_to_make_one(tmp_path):
    logged: list[str] = []
    chosen = student.choose(load("nano", runs=str(tmp_path)), logged.append)
    assert chosen.name == student.SHIPPED
    assert len(logged) == 1 and student.SHIPPED in logged[0]
    assert load_student(chosen.student.folder).cfg == load("nano").model
    with pytest.raises(ValueError, match="make distill PRESET=debug"):
        student.choose(load("debug", runs=str(tmp_path)), pytest.fail)
    teacher = f"demo.student={student.SHIPPED_FOLDER.parent / 'dit'}"
    with pytest.raises(ValueError, match="holds no student"):
        student.choose(load("nano", [teacher], runs=str(tmp_path)), pytest.fail)


@pytest.mark.slow
def test_weights_that_are_not_here_are_an_error_that_names_those_that_are(tmp_path):
    mine = train(tmp_path, "a", "2026-02-01T00:00:00+00:00")
    with pytest.raises(ValueError, match=r"/gone .eeeeeeeeeeee") as error:
        student.by_digest(load("debug", runs=str(tmp_path)), "e" * 64, "/gone")
    assert mine.folder in str(error.value) and mine.digest[:12] in str(error.value)


def test_a_tiny_vae_that_is_asked_for_and_missing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("msmodel.pretrained.load_text_encoder", players.FakeEncoder)
    _, checkpoint = players.make_student(tmp_path)
    from stages.play.playing import load_playable

    with pytest.raises(ValueError, match="no tiny VAE"):
        load_playable(checkpoint, None, "tiny", 8, players.CPU)


def test_shipped_pictures_are_held_out_frames_with_sources_and_licences():
    shown = pictures.shipped()
    assert len(shown) == pictures.MAX_PICTURES == len({p.id for p in shown})
    assert all(p.frame.shape == (40, 64, 3) and p.frame.std() > 10 and p.held_out for p in shown)
    single = [p for p in shown if " over " in p.prompt and " and " not in p.prompt.split(" over ")[0]]
    assert len(single) >= 2  # one clear object each


def test_real_scenes_take_turns_and_rendered_ones_with_few_objects_come_first():
    rows = [
        {"name": f"{scene}-{i}", "scene": scene, "kind": "real", "caption": "x"} for scene in "ab" for i in range(5)
    ]
    rows += [
        {
            "name": f"r{i}-{j}",
            "scene": f"r{i}",
            "kind": "rendered",
            "caption": "a red oval" + " and a box" * i + " over x" + m,
        }
        for i in range(9)
        for j, m in enumerate([", it moves", ""])
    ]
    names = [row["name"] for row in pictures.choose(rows)]
    assert names[:6] == ["a-0", "b-0", "a-1", "b-1", "a-2", "b-2"]
    assert names[6:] == [f"r{i}-1" for i in range(6)]


@pytest.mark.slow
def test_what_is_shipped_is_the_newest_student_with_its_provenance(tmp_path, monkeypatch):
    made = train(tmp_path, "a", "2026-02-01T00:00:00+00:00", "nano")
    monkeypatch.setattr(ship, "newest_data", lambda root: [])
    ship.ship_student(load("nano", runs=str(tmp_path)), tmp_path / "out")
    assert weights_digest(tmp_path / "out") == made.digest
    import json

    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["digest"] == made.digest and provenance["git_sha"] == "abc"
    assert provenance["seed"] == 5
    with pytest.raises(ValueError, match="make distill"):
        ship.ship_student(load("nano", runs=str(tmp_path / "empty")), tmp_path / "out")


def test_pictures_are_written_as_they_are_read(tmp_path):
    stills = [
        pictures.Still(pictures.Picture("a-1", "A", "a door", players.picture()), "real", "here", "MIT"),
        pictures.Still(pictures.Picture("b-1", "B", "a hall", players.picture(4)), "rendered", "there", "BSD"),
    ]
    pictures.write(stills, tmp_path / "out")
    found = pictures.shipped(tmp_path / "out")
    assert [(p.id, p.title, p.prompt) for p in found] == [("a-1", "A", "a door"), ("b-1", "B", "a hall")]
    for p, still in zip(found, stills, strict=True):
        np.testing.assert_array_equal(p.frame, still.picture.frame)
