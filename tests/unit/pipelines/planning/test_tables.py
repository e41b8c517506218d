"""`make plan` at full size: the tables, the warnings and settings that mend them, and mistakes."""

from __future__ import annotations

import re

import pytest

from infra.files import CHECKOUT
from pipelines import cli, plan, plan_check
from pipelines.config import ConfigError, load
from pipelines.planning.advice import nearest
from pipelines.planning.config import GPUS
from pipelines.planning.loads import TRAININGS
from pipelines.planning.memory import layout, training_memory
from pipelines.planning.work import disk, speed, works


@pytest.mark.parametrize(("preset", "gpus"), [("wan21-1.3b", "8"), ("wan22-5b", "32")])
def test_full_sizes_are_planned_without_a_gpu(preset, gpus, tmp_path, capsys):
    assert cli.main(["plan", "--preset", preset, "--gpus", gpus, "--runs", str(tmp_path)]) == cli.OK
    out = capsys.readouterr().out
    for part in (
        f"ZeRO 2 on {gpus}",
        "teacher",
        "adapt",
        "dmd",
        "student, streaming",
        f" x {gpus} = 128",
        f" x {gpus} = 64",
    ):
        assert part in out, part
    assert not list(tmp_path.iterdir())


def test_what_is_advised_is_a_configuration_and_fits():
    cfg = load("wan22-5b", gpus="8")
    limit = 0.9 * GPUS["h100"].memory
    change = nearest(cfg, 8, limit)
    assert change is not None
    advised = load("wan22-5b", change.settings, gpus="8")
    assert advised == change.cfg
    for name in TRAININGS:
        assert training_memory(advised, name, layout(advised, 8, gpu=True)).peak <= limit
    assert nearest(advised, 8, limit).settings == ()  # type: ignore[union-attr]
    assert nearest(cfg, 8, 1e9) is None


def test_a_preset_that_does_not_fit_is_said_with_what_would(capsys):
    lines = "\n".join(plan.describe(load("wan22-5b", gpus="1"), asked=True))
    assert "warning: dmd will not fit" in lines
    assert re.search(r'settings that fit: ARGS="|no settings', lines)
    assert "warning" not in "\n".join(plan.describe(load("debug")))


def test_every_mistake_of_a_plan_comes_in_one_message(capsys):
    words = ["plan", "--preset", "wan21-1.3b", "--gpus", "x", "plan.gpu=h900", "plan.mfu=0", "teacher.batch=3"]
    assert cli.main(words) == cli.BAD_CONFIG
    said = capsys.readouterr().err
    assert "4 problems" in said
    for part in (
        "GPUS=x: not a whole",
        "plan.gpu: 'h900' is not one of a100-80",
        "plan.mfu: 0",
        "teacher.global_batch: 128",
    ):
        assert part in said
    with pytest.raises(ConfigError, match="GPUS=0: not a whole number of at least 1"):
        load("nano", gpus="0")


def test_time_follows_from_work_and_gpus():
    cfg = load("wan21-1.3b")
    eight, sixteen = works(cfg, 8, True), works(cfg, 16, True)
    for few, many in zip(eight, sixteen, strict=True):
        assert few.total == pytest.approx(many.total, rel=0.02), few.name  # the same work, on more GPUs
    assert speed(cfg, 16, True) == 2 * speed(cfg, 8, True) == 16 * 0.35 * 989e12
    assert [w.steps for w in eight] == [5600, 127, 2000, 2000]


def test_files_are_as_large_as_foretold(tmp_path):
    """A pair of latents, an image, a text and tracks in float16 and float32."""
    cfg = load("nano")
    latents = 16 * 15 * 10 * 16
    assert disk(cfg).clip == 2 * 2 * latents + 2 * 16 * 384 + 9 * 29 * 160


def test_the_makefile_hands_the_number_of_gpus_on():
    from tests.unit.pipelines.test_cli import make

    assert make("plan", "GPUS=8")[0].endswith(
        "pipelines plan --gpus '8' --preset 'nano' --runs 'runs'".replace("  ", " ")
    )
    assert (CHECKOUT / "Makefile").read_text().count("plan-check") == 2


def test_predicted_memory_is_what_a_training_takes(tmp_path):
    """As `make plan-check`, at a size for CI and without DeepSpeed: every tensor of two steps of DMD's three models."""
    cfg = load("debug", ["dmd.steps=2", "dmd.ratio=1", "compute.engine=torch"])
    predicted = training_memory(cfg, "dmd", layout(cfg, 1, gpu=False)).peak
    counter = plan_check.Counter()
    with counter:
        plan_check.train(cfg, "dmd", tmp_path)
    assert predicted == pytest.approx(counter.peak, rel=plan_check.TOLERANCE)
