"""What is checked before a training is launched, and what its key leaves out."""

from __future__ import annotations

import pytest

from configs.settings import load
from pipelines import distill, teacher
from pipelines.data import Dataset
from pipelines.run import NotMade, Run, found_in, open_run
from stages.records import Checkpoint, OdePairs, ShardSet


def shards(count: int, split: str) -> ShardSet:
    names = tuple(f"shard-{i:06d}.tar" for i in range(count))
    return ShardSet(f"/data/{split}", split, names, 64 * count, 64 * count, 0, split, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "overrides", "message"),
    [
        ("teacher", ["compute.workers=4"], "3 shards in /data/train are too few for 4 ranks:"),
        ("teacher", ["loader.workers=4"], "3 shards in /data/train are too few for 1 ranks x 4 loader workers:"),
        (
            "distill",
            ["compute.workers=2", "loader.workers=2"],
            "3 shards in /data/train are too few for 2 ranks x 2 loader workers:",
        ),
    ],
)
def test_too_few_shards_are_reported_before_a_training_is_launched(tmp_path, monkeypatch, target, overrides, message):
    module = {"teacher": teacher, "distill": distill}[target]
    monkeypatch.setattr(module, "data", lambda run: Dataset(shards(3, "train"), shards(1, "heldout")))
    if target == "distill":
        monkeypatch.setattr(module, "teacher", lambda run: Checkpoint("teacher", "", 1, "d"))
    run = open_run(load("debug", overrides, runs=str(tmp_path)), [target], dry=True)
    with pytest.raises(ValueError, match=message):
        vars(module)[target](run)


@pytest.mark.slow
def test_how_a_training_reads_its_data_is_not_in_its_key(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "data", lambda run: Dataset(shards(3, "train"), shards(1, "heldout")))
    folders = set()
    for overrides in ([], ["loader.workers=3", "loader.on_corrupt=skip"]):
        with pytest.raises(NotMade) as stopped:
            teacher.teacher(open_run(load("debug", overrides, runs=str(tmp_path)), ["teacher"], dry=True))
        folders.add(stopped.value.line.folder)
    assert len(folders) == 1


@pytest.mark.slow
def test_phases_and_distillation_take_the_configured_clips(tmp_path, monkeypatch):
    """Of the full presets' choice and of nano's; without generated clips every training takes all."""
    parts = (shards(3, "train"), shards(1, "heldout"), shards(2, "train_real"), shards(1, "train_synthetic"))
    apart = ["data.phase1_clips=real", "data.phase2_clips=synthetic", "data.distill_clips=synthetic"]
    asked: list[tuple[str, ...]] = []

    def step(run, stage, config, inputs, key_inputs=None, label=""):
        sets = [s for s in found_in(key_inputs or inputs, ShardSet) if s.split != "heldout"]
        asked.append((stage.name, *(s.split for s in sets)))
        return OdePairs("", 1, (1.0,), "d") if stage.name == "ode_pairs" else Checkpoint(stage.name, "", 1, "d")

    monkeypatch.setattr(Run, "step", step)
    monkeypatch.setattr(distill, "teacher", teacher.teacher)
    for known, overrides, wanted in (
        (parts, apart, (["train_real", "train_synthetic"], ["train_synthetic"])),
        (parts, [*apart, "teacher.phase2_steps=0"], (["train_real"], ["train_synthetic"])),
        (parts, [], (["train"], ["train"])),
        (parts[:2], apart, (["train"], ["train"])),
    ):
        for module in (teacher, distill):
            monkeypatch.setattr(module, "data", lambda run, known=known: Dataset(*known))
        asked.clear()
        distill.distill(open_run(load("debug", overrides, runs=str(tmp_path)), ["distill"], dry=True))
        taught, distilled = wanted
        assert asked == [
            ("teacher", *taught),
            ("ode_pairs", *distilled),
            ("adapt",),
            ("dmd", *distilled),
            ("tiny_vae", "train"),
        ]
