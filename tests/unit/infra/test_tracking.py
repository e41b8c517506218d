"""The MLflow tree on a fresh sqlite file: parent, nested runs, datasets, metrics once, pictures, registered models."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, PERMISSION_DENIED

from infra import tracking
from infra.tracking import (
    BATCH,
    HOST,
    PATIENCE,
    PID,
    PRIMARY_METRIC,
    RunAddress,
    RunLogger,
    TrackedModel,
    Tracking,
    close_abandoned,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """One command that ran two stages."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "weights").mkdir()
    log_lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking = Tracking(runs, "motionstream", "nano data teacher", log_lines.append)
    tracking.describe({"git_sha": "abc", "lock_hash": "def"}, {"config.yaml": "seed: 0\n"}, {"preset": "nano"})
    pack = tracking.stage("pack", {"key": "1"})
    teacher = tracking.stage("teacher", {"key": "2"})
    pack.dataset("train", str(runs / "shards"), "d" * 64, "train")
    pack.params({f"setting.{number}": number for number in range(120)} | {"long": "x" * 9000})
    pack.finish()
    for step in (1, 2):
        teacher.metrics(step, {"loss": 1.0 / step})
    teacher.flush()
    resumed = RunLogger(teacher.address, log_lines.append)  # a worker that died after step 2, saved at step 1
    for step in (2, 3):
        resumed.metrics(step, {"loss": 1.0 / step})
    resumed.image("held/out", np.zeros((8, 8, 3), np.uint8), 3)
    model = TrackedModel("teacher", str(runs / "weights"), 3, "e" * 64, {"epe": 2.0}, {"stage": "teacher"},
                         "motionstream-teacher", "train", "d" * 64)  # fmt: skip
    resumed.checkpoint(model)
    resumed.finish()
    tracking.finish("FINISHED")
    assert log_lines == []
    return tracking


@pytest.mark.slow
def test_settings_are_parameters_that_mlflow_can_compare(tree):
    client = tree.parent.client
    runs = {r.info.run_name: r.data.params for r in client.search_runs(["1"])}
    assert runs["nano data teacher"] == {"preset": "nano"}
    assert len(runs["pack"]) == 121  # more than one call takes
    assert runs["pack"]["setting.119"] == "119"
    assert len(runs["pack"]["long"]) == 500


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_resumed_worker_logs_no_step_twice(tree):
    client = tree.parent.client
    run = next(r for r in client.search_runs(["1"]) if r.info.run_name == "teacher")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["images"]


@pytest.mark.slow
def test_checkpoint_is_registered_as_candidate(tree):
    client = tree.parent.client
    version = client.get_model_version_by_alias("motionstream-teacher", "candidate")
    assert version.tags["step"] == "3"
    logged = client.get_logged_model(version.tags["model_id"])
    assert logged.tags["uri"] == version.tags["uri"]
    assert version.source == f"models:/{logged.model_id}"
    assert {m.key: (m.value, m.dataset_name) for m in logged.metrics} == {"final/epe": (2.0, "train")}


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:9"])
def test_registering_a_checkpoint_leaves_the_address_of_later_commands_alone(tree, tmp_path, monkeypatch, address):
    """Otherwise the next command of the process, or a child of it, writes mlflow.db into the working directory."""
    monkeypatch.chdir(tmp_path)
    # monkeypatch restores what the test leaves; the assertion below reads what the call leaves.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address or "")
    if address is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    model = TrackedModel("teacher", str(tmp_path), 1, "e" * 64, {"epe": 2.0}, {}, "motionstream-teacher")
    tree.parent.checkpoint(model)
    assert tree.parent.best_effort.failures == 0
    assert os.environ.get("MLFLOW_TRACKING_URI") == address
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_broken_server_is_reported_once_and_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    log_lines: list[str] = []
    tracking = Tracking(tmp_path, "motionstream", "run", log_lines.append)
    assert tracking.stage("a", {}) is None
    assert tracking.stage("b", {}) is None
    tracking.finish("FINISHED")
    assert len(log_lines) == 1
    assert "the work goes on" in log_lines[0]


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


class Registry:
    """As much of MlflowClient as an alias needs. Others set the same new alias at the same moment as the first `lost` calls."""

    def __init__(self, lost: int, code: int) -> None:
        self.lost, self.code, self.aliases, self.calls = lost, code, {}, 0

    def set_registered_model_alias(self, name, alias, version):
        self.calls += 1
        if self.calls <= self.lost:
            self.aliases[name, alias] = "another"
            raise MlflowException("(psycopg.errors.UniqueViolation) duplicate key value", error_code=self.code)
        self.aliases[name, alias] = version


def logger_to(registry, monkeypatch):
    """(logger, pauses that it makes)"""
    pauses: list[float] = []
    monkeypatch.setattr(tracking.time, "sleep", pauses.append)
    logger = RunLogger(RunAddress("http://server", "1"), print)
    logger._mlflow = registry
    return logger, pauses


def test_the_last_of_several_commands_that_set_an_alias_at_once_wins(monkeypatch):
    registry = Registry(lost=3, code=BAD_REQUEST)
    logger, pauses = logger_to(registry, monkeypatch)
    logger._set_alias("teacher", "candidate", "7")
    assert registry.aliases == {("teacher", "candidate"): "7"}
    assert pauses == list(tracking.ALIAS_PAUSES[:3])


def test_an_alias_is_tried_a_bounded_number_of_times(monkeypatch):
    registry = Registry(lost=100, code=BAD_REQUEST)
    logger, pauses = logger_to(registry, monkeypatch)
    with pytest.raises(MlflowException, match="UniqueViolation"):
        logger._set_alias("teacher", "candidate", "7")
    assert pauses == list(tracking.ALIAS_PAUSES) and registry.calls == len(pauses) + 1


def test_an_alias_that_the_server_refuses_is_not_tried_again(monkeypatch):
    registry = Registry(lost=100, code=PERMISSION_DENIED)
    logger, pauses = logger_to(registry, monkeypatch)
    with pytest.raises(MlflowException):
        logger._set_alias("teacher", "candidate", "7")
    assert registry.calls == 1 and pauses == []


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Server:
    """As much of MlflowClient as curves and pictures need. down: every call takes so many seconds and fails."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.down, self.waited, self.loses_replies = clock, 0.0, 0.0, False
        self.points: set[tuple[str, int, float, int]] = set()  # as MLflow: the same point at the same time is one
        self.pictures: list[int] = []

    def _answer(self) -> None:
        if self.down:
            self.clock.now += self.down
            self.waited += self.down
            raise ConnectionError("nobody is here")

    def get_metric_history(self, run_id, key):
        self._answer()
        return [Metric(k, value, when, step) for k, step, value, when in self.points if k == key]

    def steps(self):
        return sorted((key, step) for key, step, _, _ in self.points)

    def log_batch(self, run_id, metrics):
        self._answer()
        assert len(metrics) <= BATCH
        self.points |= {(m.key, m.step, m.value, m.timestamp) for m in metrics}
        if self.loses_replies:
            raise ConnectionError("reset by peer")

    def log_image(self, run_id, picture, key, step):
        self._answer()
        self.pictures.append(step)

    def set_terminated(self, run_id, status):
        self._answer()


@pytest.fixture
def outage(monkeypatch):
    """(server, logger to it, lines it says, function that trains from one step to another, at a second a step)."""
    clock, log_lines = Clock(), []
    monkeypatch.setattr(tracking, "time", clock)
    server = Server(clock)
    logger = RunLogger(RunAddress("http://server", "1"), log_lines.append)
    logger._mlflow = server

    def train(first: int, last: int) -> None:
        for step in range(first, last + 1):
            clock.now += 1
            logger.metrics(step, {"loss": 1 / step, "rate": 0.1})
            if step % 100 == 0:
                logger.image("out", np.zeros((2, 2, 3), np.uint8), step)

    return server, logger, log_lines, train


def test_points_of_an_outage_are_sent_after_it(outage):
    server, logger, log_lines, train = outage
    train(1, 50)
    server.down = 0.5
    train(51, 950)
    assert len(server.points) < 2 * 60
    server.down = 0.0
    train(951, 1000)
    logger.finish()
    assert server.steps() == [(key, step) for key in ("loss", "rate") for step in range(1, 1001)]
    assert server.pictures[-1] == 1000
    assert len(log_lines) == 1 and "nobody is here" in log_lines[0]


def test_a_batch_whose_answer_is_lost_is_sent_again_and_not_logged_twice(outage):
    server, logger, _, train = outage
    train(1, 3)
    server.loses_replies = True
    train(4, 20)
    logger._last.clear()  # as in a worker that was restarted
    server.loses_replies = False
    train(21, 40)
    logger.finish()
    assert server.steps() == [(key, step) for key in ("loss", "rate") for step in range(1, 41)]


def test_a_server_that_hangs_takes_a_tenth_of_the_time_at_most_and_what_is_lost_is_reported(outage):
    server, logger, log_lines, train = outage
    server.down = 300.0
    train(1, 20_000)
    assert 0 < server.waited < 0.1 * server.clock.now + 300
    logger.finish()
    assert log_lines[1:] == ["MLflow: 40000 points of curves could not be logged"]
    assert server.pictures == []


def test_mlflow_itself_gives_up_before_the_ranks_of_a_gang_do(monkeypatch):
    from mlflow import environment_variables as known

    for name in PATIENCE:
        monkeypatch.delenv(name, raising=False)
    tracking._client("http://server")
    retries, backoff = known.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), known.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get()
    pauses = [backoff * 2**n for n in range(1, retries)]  # urllib3: none before the first retry
    assert 20 < sum(pauses) < 60
    assert (1 + retries) * known.MLFLOW_HTTP_REQUEST_TIMEOUT.get() + sum(pauses) < 600
