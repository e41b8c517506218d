"""Which models and data a command finds in a run's folder."""

from __future__ import annotations

import pytest

from configs.settings import load
from demo.playing import student
from infra.codec import Codec
from infra.store import Store
from msmodel.dit import WanDiT
from msmodel.io.weights import save_weights
from pipelines.commands import cli, ship
from pipelines.results import checkpoint_in, newest_data, students, teachers
from pipelines.run import RECORDS
from stages.records import Checkpoint
from stages.train.dmd import DmdConfig
from tests.unit.stages.play import players
from tests.unit.stages.train.methods import small


def train(runs, stage: str, finished: str, name: str = "student") -> Checkpoint:
    """Publishes a causal student as a step of that stage would."""
    root = runs / "debug"
    store = Store(root, Codec(RECORDS, root))
    step = store.step(stage, 1, DmdConfig(), (finished,), 0)
    step.folder.mkdir(parents=True)
    _, made = players.make_student(step.folder, finished)
    checkpoint = Checkpoint(name, made.folder, 1, made.digest)
    store.publish(step, checkpoint, 1.0, provenance={"finished": finished, "git_sha": "abc", "seed": 5})
    return checkpoint


@pytest.mark.slow
def test_a_student_of_any_training_is_exported_shipped_and_played(tmp_path, monkeypatch, capsys):
    old = train(tmp_path, "dmd", "2026-01-01T00:00:00+00:00")
    new = train(tmp_path, "consistency", "2026-02-01T00:00:00+00:00")
    assert [t.record.folder for t in students(tmp_path / "debug")] == [old.folder, new.folder]
    assert cli.main(["export", "--preset", "debug", "--runs", str(tmp_path)]) == cli.OK
    assert new.digest in (tmp_path / "debug" / "export" / "student" / "README.md").read_text()
    cfg = load("debug", runs=str(tmp_path))
    assert student.choose(cfg, pytest.fail).student.folder == new.folder
    assert student.by_digest(cfg, new.digest, "/gone").student.folder == new.folder
    monkeypatch.setattr(ship, "newest_data", lambda root: [])
    ship.ship_student(cfg, tmp_path / "shipped")
    assert new.digest in (tmp_path / "shipped" / "provenance.json").read_text()


def test_names_and_classes_tell_students_from_teachers_and_from_what_is_neither(tmp_path):
    train(tmp_path, "adapt", "2026-01-01T00:00:00+00:00", name="adapted")
    bidirectional = train(tmp_path, "other", "2026-02-01T00:00:00+00:00")
    save_weights(WanDiT(small()), bidirectional.folder, {})
    causal = train(tmp_path, "another", "2026-03-01T00:00:00+00:00", name="teacher")
    root = tmp_path / "debug"
    assert students(root) == [] and teachers(root) == []
    save_weights(WanDiT(small()), causal.folder, {})
    assert [t.record.folder for t in teachers(root)] == [causal.folder]


def test_a_folder_from_elsewhere_is_described_by_its_config(tmp_path):
    save_weights(WanDiT(small()), tmp_path / "mine", {"name": "tuned", "step": 9})
    found = checkpoint_in(tmp_path / "mine", [])
    assert (found.record.name, found.record.step, found.manifest) == ("tuned", 9, {})


def test_no_data_is_an_error_that_names_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"no finished data in .*: `make data`"):
        newest_data(tmp_path)
