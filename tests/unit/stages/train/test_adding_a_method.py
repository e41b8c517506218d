"""A distillation method that the project does not know: one file and one registry entry make it train, resume and be found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from configs.distill import DistillConfig
from configs.settings import load
from msmodel.causal import CausalDiT
from msmodel.io.weights import load_student, load_teacher
from pipelines import distill
from pipelines.data import Dataset
from pipelines.run import Run, open_run
from stages.contracts import Stage
from stages.records import Checkpoint, OdePairs
from stages.train.publish import publish
from stages.train.raw import raw_weights
from tests.fakes import FakeContext
from tests.unit.pipelines.test_trainings import shards
from tests.unit.stages.train import latent_regression
from tests.unit.stages.train.fakes import FakeLoader, clips
from tests.unit.stages.train.methods import AUGMENT, QUICK, alive, small
from tests.unit.stages.train.shards import shard_set
from tests.unit.stages.train.test_resume import DyingContext, Stopped


def config(**changes) -> latent_regression.RegressionConfig:
    settings = {name: value for name, value in QUICK.items() if name != "picture_clips"}
    return latent_regression.RegressionConfig(**(settings | {"steps": 4, "augment": AUGMENT} | changes))


def fit(ctx: FakeContext, **changes) -> CausalDiT:
    model, student = small(), alive(CausalDiT, small())
    assert isinstance(student, CausalDiT)
    run = latent_regression.RegressionRun(model, config(**changes))
    latent_regression.fit(run, student, FakeLoader(model), clips(model, 2, seed=99), ctx)
    return student


@pytest.mark.slow
def test_the_loop_trains_and_resumes_it_bit_for_bit(tmp_path):
    ctx = FakeContext(tmp_path / "whole")
    whole = fit(ctx)
    with pytest.raises(Stopped):
        fit(DyingContext(tmp_path / "parts"), save_steps=2)
    parts = fit(FakeContext(tmp_path / "parts"), save_steps=2)
    assert len(ctx.series("loss/student")) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert not torch.equal(whole.track_head.weight, alive(CausalDiT, small()).track_head.weight)


def test_its_student_is_published_like_any_other(tmp_path):
    model = small()
    train, heldout = shard_set(tmp_path / "t", model), shard_set(tmp_path / "h", model, split="heldout")
    start = publish("adapted", alive(CausalDiT, model), 1, FakeContext(tmp_path / "adapt"))
    ctx = FakeContext(tmp_path / "latent_regression")
    inputs = latent_regression.RegressionInputs(train, heldout, start)
    student = latent_regression.run(latent_regression.RegressionRun(model, config(steps=1)), inputs, ctx)
    assert (student.name, student.parents) == ("student", (start.digest,))
    assert load_student(student.folder).cfg == load_teacher(start.folder).cfg == model
    step, weights = raw_weights(ctx.workdir)
    assert step == 1
    assert weights.keys() >= set(dict(load_student(student.folder).named_parameters()))


@pytest.mark.slow
def test_a_setting_chooses_it(tmp_path, monkeypatch):
    """The stages around it keep their keys: adaptation and the tiny VAE are not made again."""

    def train(run: Run, start: distill.Start) -> Checkpoint:
        inputs = latent_regression.RegressionInputs(start.train, start.heldout, start.adapted)
        cfg = latent_regression.RegressionRun(run.cfg.model, config())
        return run.step(latent_regression.LATENT_REGRESSION, cfg, inputs)

    method = distill.DistillationMethod(latent_regression.LATENT_REGRESSION, train)
    monkeypatch.setitem(distill.METHODS, "latent_regression", method)
    monkeypatch.setattr(distill, "data", lambda run: Dataset(shards(3, "train"), shards(1, "heldout")))
    monkeypatch.setattr(distill, "teacher", lambda run: Checkpoint("teacher", "", 1, "d"))
    dmd, regression = (steps_of(tmp_path, monkeypatch, name) for name in ("dmd", "latent_regression"))
    assert list(dmd) == ["ode_pairs", "adapt", "dmd", "tiny_vae"]
    assert list(regression) == ["ode_pairs", "adapt", "latent_regression", "tiny_vae"]
    assert all(dmd[name] == regression[name] for name in ("ode_pairs", "adapt", "tiny_vae"))
    assert distill.unused_stages("latent_regression") == {"dmd"}


def steps_of(root, monkeypatch, method: str) -> dict[str, str]:
    """Returns the key of every step of `make distill`, without making any."""
    keys: dict[str, str] = {}

    def step(run: Run, stage: Stage, cfg, inputs, key_inputs=None, label=""):
        keyed = inputs if key_inputs is None else key_inputs
        keys[stage.name] = run.store.step(stage.name, stage.version, cfg, keyed, 0).key
        return OdePairs("", 1, (1.0,), "d") if stage.name == "ode_pairs" else Checkpoint(stage.name, "", 1, stage.name)

    monkeypatch.setattr(Run, "step", step)
    cfg = replace(load("debug", runs=str(root)), distill=DistillConfig(method))
    distill.distill(open_run(cfg, ["distill"], dry=True))
    return keys


@pytest.mark.slow
def test_an_unknown_method_is_refused_when_settings_are_loaded():
    with pytest.raises(ValueError, match=r"distill\.method: 'magic' is not one of dmd"):
        load("debug", ["distill.method=magic"])
