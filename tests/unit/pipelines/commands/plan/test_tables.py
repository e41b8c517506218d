"""`make plan` at full size: the tables, the warnings and settings that mend them, and mistakes."""

from __future__ import annotations

import pytest

from configs.settings import ConfigError, load
from pipelines.commands import cli
from pipelines.commands.plan import check as plan_check
from pipelines.commands.plan import dry_run as plan
from pipelines.commands.plan.advice import nearest
from pipelines.commands.plan.loads import TRAININGS
from pipelines.commands.plan.memory import layout, training_memory
from pipelines.commands.plan.tables import describe
from pipelines.commands.plan.work import disk, rows, speed

SHORT = "clip.frames=9"  # one chunk, which is traced soon


@pytest.mark.slow
def test_a_full_size_is_planned_without_a_gpu(tmp_path, capsys):
    words = ["plan", "--preset", "wan21-1.3b", "--gpus", "8", "--runs", str(tmp_path), SHORT]
    assert cli.main(words) == cli.OK
    out = capsys.readouterr().out
    for part in (
        "of one GPU, ZeRO 2 on 8",
        "DiT 1.42 B",
        "teacher",
        "adapt",
        "dmd",
        "tiny_vae",
        "encode",
        "eval_generate",
        "student, streaming",
        "x 8 = 128",
        "x 8 = 64",
        "GPU hours",
        "fewer than 8, one a rank",
        "takes 449 training clips",
        "Best are 64 shards",
    ):
        assert part in out, part
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_is_advised_is_a_configuration_and_fits():
    overrides = ["clip.frames=5", *(f"{name}.batch=8" for name in TRAININGS)]
    cfg = load("debug", overrides, gpus="2")

    def peak(cfg) -> float:
        return max(training_memory(cfg, name, layout(cfg, 2, gpu=True)).peak for name in TRAININGS)

    limit = 0.7 * peak(cfg)
    change = nearest(cfg, 2, limit)
    assert change is not None
    assert change.settings
    advised = load("debug", [*overrides, *change.settings], gpus="2")
    assert advised == change.cfg
    assert peak(advised) <= limit < peak(cfg)
    assert nearest(advised, 2, limit).settings == ()  # type: ignore[union-attr]
    assert nearest(cfg, 2, 1e6) is None  # bytes: weights alone are more


@pytest.mark.slow
def test_where_the_teacher_of_dmd_takes_too_much_it_is_spread():
    """Sharded over several GPUs; on one, where nothing is shared, it is offloaded or something else is changed."""
    cfg = load("wan21-1.3b", [SHORT, "dmd.heldout_clips=1", "dmd.picture_clips=0"], gpus="8")

    def peak(cfg) -> float:
        return training_memory(cfg, "dmd", layout(cfg, 8, gpu=True)).peak

    limit = peak(cfg) - 1e9
    change = nearest(cfg, 8, limit)
    assert change is not None and "dmd.teacher_placement=shard" in change.settings
    assert peak(change.cfg) <= limit
    alone = nearest(cfg, 1, 0.9 * training_memory(cfg, "dmd", layout(cfg, 1, gpu=True)).peak)
    assert alone is None or "dmd.teacher_placement=shard" not in alone.settings


@pytest.mark.slow
def test_what_does_not_fit_is_reported_with_what_would():
    few, none = (
        "\n".join(plan.describe(load("debug", ["clip.frames=5", f"plan.spare={spare}"], gpus="2"), asked=True))
        for spare in (0.0, 0.99999)
    )
    assert "warning" not in few
    assert "warning: dmd will not fit into 0.0 GiB: training 0.0" in none
    assert "no settings of ZeRO" in none
    assert "GPU" not in "\n".join(plan.describe(load("debug", ["clip.frames=5"])))


@pytest.mark.slow
def test_every_mistake_of_a_plan_comes_in_one_message(capsys):
    words = ["plan", "--preset", "wan21-1.3b", "--gpus", "x", "plan.gpu=h900", "plan.mfu=0", "teacher.batch=3"]
    assert cli.main(words) == cli.BAD_CONFIG
    logged = capsys.readouterr().err
    assert "4 problems" in logged
    for part in (
        "GPUS=x: not a whole",
        "plan.gpu: 'h900' is not one of a100-80",
        "plan.mfu: 0",
        "teacher.global_batch: 128",
    ):
        assert part in logged
    with pytest.raises(ConfigError, match="GPUS=0: not a whole number of at least 1"):
        load("nano", gpus="0")


@pytest.mark.slow
def test_time_follows_from_work_and_gpus():
    cfg = load("wan21-1.3b", [SHORT, "ode.heldout_pairs=96"])
    eight, sixteen = ({row.name: row for row in rows(cfg, ranks, True)} for ranks in (8, 16))
    assert list(eight) == [
        *("cut", "track", "encode", "render", "shard, pack", "teacher", "ode_pairs", "adapt", "dmd", "tiny_vae"),
        *("eval_generate", "eval_measure", "eval_speed", "eval_long_run"),
    ]
    for name, few in eight.items():
        assert few.flops == pytest.approx(sixteen[name].flops, rel=0.03), name  # the same work, on more GPUs
        assert few.seconds > 0, name
    assert sixteen["track"].seconds == eight["track"].seconds / 2
    assert sixteen["eval_speed"].seconds == eight["eval_speed"].seconds  # on one GPU
    assert sixteen["teacher"].talking > eight["teacher"].talking  # between two machines
    assert speed(cfg, 16, True) == 2 * speed(cfg, 8, True) == 16 * 0.35 * 989e12


@pytest.mark.slow
def test_every_assumption_moves_its_rows():
    def changed(*settings: str) -> set[str]:
        plain, other = (rows(load("debug", ["clip.frames=5", *more]), 2, True) for more in ((), settings))
        return {a.name for a, b in zip(plain, other, strict=True) if a.seconds != b.seconds}

    assert changed("plan.clips=30") == {"cut", "track", "encode", "shard, pack"}
    assert changed("plan.track_seconds=1") == {"track", "eval_measure", "eval_long_run"}
    assert changed("plan.vae_mfu=0.1") == {"encode", "eval_generate", "eval_long_run"}
    assert changed("plan.frames_per_second=1") == {"cut", "render", "shard, pack", "tiny_vae"}
    assert changed("plan.node_gb_per_second=1") == {"teacher", "adapt", "dmd", "tiny_vae"}


@pytest.mark.slow
def test_the_last_line_is_the_cost_of_everything_with_its_price():
    cfg = load("wan21-1.3b", [SHORT])
    line = describe(cfg, 8, gpu=True)[-1]
    hours = 8 * sum(row.seconds for row in rows(cfg, 8, True)) / 3600
    assert line.startswith("summary: everything takes ")
    assert f"8 x H100 80 GB SXM = {hours:,.0f} GPU hours = {2.5 * hours:,.0f} USD at 2.5 USD an hour" in line
    unpriced = "\n".join(describe(load("wan21-1.3b", [SHORT, "plan.usd_per_gpu_hour=0"]), 8, gpu=True))
    assert "USD" not in unpriced
    assert "GPU" not in describe(load("debug", ["clip.frames=5"]), 1, gpu=False)[-1]
    with pytest.raises(ConfigError, match=r"plan\.usd_per_gpu_hour: -1.0 is below zero"):
        load("nano", ["plan.usd_per_gpu_hour=-1"])


@pytest.mark.slow
def test_files_are_as_large_as_foretold(tmp_path):
    """A pair of latents, an image, a text and tracks in float16 and float32."""
    cfg = load("nano")
    latents = 16 * 15 * 10 * 16
    assert disk(cfg).clip == 2 * 2 * latents + 2 * 16 * 384 + 9 * 29 * 160
    large = load("wan22-5b").model  # which reads the first image latent alone
    latents = 2 * 48 * 44 * 80
    assert disk(load("wan22-5b")).clip == (31 + 1) * latents + 2 * 512 * 4096 + 9 * large.clip.frames * 2500
    seeing = load("nano", ["dit.clip_dim=1280", "image_encoder.source=a/b"])
    assert disk(seeing).clip - disk(cfg).clip == 2 * 257 * 1280
    assert disk(seeing).pairs - disk(cfg).pairs == (cfg.ode.pairs + cfg.ode.heldout_pairs) * 2 * 257 * 1280


def test_the_makefile_hands_the_number_of_gpus_on():
    from tests.unit.pipelines.commands.test_cli import make

    assert make("plan", "GPUS=8")[0].endswith("motionstream plan --preset 'nano' --runs 'runs' --gpus '8'")
    assert make("plan-check")[0].endswith("motionstream plan-check")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dmd", "adapt", "tiny_vae", "eval_generate"])
def test_predicted_memory_is_what_a_stage_takes(tmp_path, stage, monkeypatch):
    """As `make plan-check`, at a size for CI and without DeepSpeed: every tensor of two steps and the validations."""
    settings = [
        "dmd.steps=2",
        "dmd.ratio=1",
        "adapt.own_share=1",
        "compute.engine=torch",
        "dit.dim=64",
        "dit.ffn_dim=256",
    ]
    cfg = load("debug", settings)
    monkeypatch.setitem(plan_check.CASES, f"debug {stage}", ("debug", settings))
    predicted = plan_check.predicted(f"debug {stage}")
    counter = plan_check.Counter()
    with counter:
        plan_check.train(cfg, stage, tmp_path)
    assert predicted == pytest.approx(counter.peak, rel=plan_check.TOLERANCE)
