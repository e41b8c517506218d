"""The MLflow tree on a fresh sqlite file: parent, nested runs, datasets, metrics once, pictures, registered models."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

from infra.tracking import HOST, PID, PRIMARY_METRIC, RunLogger, TrackedModel, Tracking, close_abandoned


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """One command that ran two stages."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "weights").mkdir()
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking = Tracking(runs, "motionstream", "nano data teacher", said.append)
    tracking.describe({"git_sha": "abc", "lock_hash": "def"}, {"config.yaml": "seed: 0\n"})
    pack = tracking.stage("pack", {"key": "1"})
    teacher = tracking.stage("teacher", {"key": "2"})
    pack.dataset("train", str(runs / "shards"), "d" * 64, "train")
    pack.finish()
    for step in (1, 2):
        teacher.metrics(step, {"loss": 1.0 / step})
    teacher.flush()
    resumed = RunLogger(teacher.address, said.append)  # a worker that died after step 2, saved at step 1
    for step in (2, 3):
        resumed.metrics(step, {"loss": 1.0 / step})
    resumed.image("held/out", np.zeros((8, 8, 3), np.uint8), 3)
    model = TrackedModel("teacher", str(runs / "weights"), 3, "e" * 64, {"epe": 2.0}, {"stage": "teacher"},
                         "motionstream-teacher", "train", "d" * 64)  # fmt: skip
    resumed.checkpoint(model)
    resumed.finish()
    tracking.finish("FINISHED")
    assert said == []
    return tracking


def test_one_parent_and_a_nested_run_per_stage(tree):
    client = tree.parent.client
    experiment = client.get_experiment_by_name("motionstream")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"nano data teacher", "pack", "teacher"}
    parent = runs["nano data teacher"].info.run_id
    assert {r.data.tags["mlflow.parentRunId"] for n, r in runs.items() if n != "nano data teacher"} == {parent}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == PRIMARY_METRIC
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert runs["nano data teacher"].data.tags["lock_hash"] == "def"
    assert [f.path for f in client.list_artifacts(parent)] == ["config.yaml"]
    assert runs["pack"].inputs.dataset_inputs[0].dataset.digest == "d" * 36


def test_a_resumed_worker_logs_no_step_twice(tree):
    client = tree.parent.client
    run = next(r for r in client.search_runs(["1"]) if r.info.run_name == "teacher")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["images"]


def test_checkpoint_is_registered_as_candidate(tree):
    client = tree.parent.client
    version = client.get_model_version_by_alias("motionstream-teacher", "candidate")
    assert version.tags["step"] == "3"
    logged = client.get_logged_model(version.tags["model_id"])
    assert logged.tags["uri"] == version.tags["uri"]
    assert version.source == f"models:/{logged.model_id}"
    assert {m.key: (m.value, m.dataset_name) for m in logged.metrics} == {"final/epe": (2.0, "train")}


def test_a_broken_server_is_said_once_and_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    said: list[str] = []
    tracking = Tracking(tmp_path, "motionstream", "run", said.append)
    assert tracking.stage("a", {}) is None
    assert tracking.stage("b", {}) is None
    tracking.finish("FINISHED")
    assert len(said) == 1
    assert "the work goes on" in said[0]


def test_nothing_executed_leaves_no_database(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Tracking(tmp_path, "motionstream", "run", print).finish("FINISHED")
    assert list(tmp_path.iterdir()) == []


def test_runs_of_commands_that_were_killed_are_closed_and_nobody_elses(tree):
    client = tree.parent.client
    experiment = client.create_experiment("killed")
    dead = subprocess.Popen(["true"])
    dead.wait()
    here, alive = os.uname().nodename, str(os.getpid())
    owners = {"dead": (here, str(dead.pid)), "alive": (here, alive), "elsewhere": ("other host", str(dead.pid))}
    for name, (host, pid) in owners.items():
        client.create_run(experiment, run_name=name, tags={HOST: host, PID: pid})
    close_abandoned(client, experiment)
    status = {r.info.run_name: r.info.status for r in client.search_runs([experiment])}
    assert status == {"dead": "KILLED", "alive": "RUNNING", "elsewhere": "RUNNING"}
