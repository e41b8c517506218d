"""What is checked before a training is launched, and what its key leaves out."""

from __future__ import annotations

import pytest

from pipelines import distill, teacher
from pipelines.config import load
from pipelines.data import Dataset
from pipelines.wiring import NotMade, open_run
from stages.records import Checkpoint, ShardSet


def shards(count: int, split: str) -> ShardSet:
    names = tuple(f"shard-{i:06d}.tar" for i in range(count))
    return ShardSet(f"/data/{split}", split, names, 64 * count, 64 * count, 0, split, "")


@pytest.mark.parametrize(
    ("target", "overrides", "message"),
    [
        ("teacher", ["compute.workers=4"], "3 shards in /data/train for 4 ranks:"),
        ("teacher", ["loader.workers=4"], "3 shards in /data/train for 1 ranks x 4 loader workers:"),
        (
            "distill",
            ["compute.workers=2", "loader.workers=2"],
            "3 shards in /data/train for 2 ranks x 2 loader workers:",
        ),
    ],
)
def test_too_few_shards_are_said_before_a_training_is_launched(tmp_path, monkeypatch, target, overrides, message):
    module = {"teacher": teacher, "distill": distill}[target]
    monkeypatch.setattr(module, "data", lambda run: Dataset(shards(3, "train"), shards(1, "heldout")))
    if target == "distill":
        monkeypatch.setattr(module, "teacher", lambda run: Checkpoint("teacher", "", 1, "d"))
    run = open_run(load("debug", overrides, runs=str(tmp_path)), [target], dry=True)
    with pytest.raises(ValueError, match=message):
        vars(module)[target](run)


def test_how_a_training_reads_its_data_is_not_in_its_key(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "data", lambda run: Dataset(shards(3, "train"), shards(1, "heldout")))
    folders = set()
    for overrides in ([], ["loader.workers=3", "loader.on_corrupt=skip"]):
        with pytest.raises(NotMade) as stopped:
            teacher.teacher(open_run(load("debug", overrides, runs=str(tmp_path)), ["teacher"], dry=True))
        folders.add(stopped.value.line.folder)
    assert len(folders) == 1
