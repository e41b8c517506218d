"""MLflow for a team: eight commands at once on one Postgres and one S3 store, both real, started empty: directly, and through
a server that is started as compose.yaml starts it, by clients that know neither of the two."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import boto3
import pytest
import sqlalchemy
from moto.server import ThreadedMotoServer

from tests.smoke.kills import ROOT
from tests.smoke.mlflow_server import Composed
from tests.smoke.postgres import binaries, postgres
from tests.smoke.team import EXPERIMENT, MODEL, STEPS, WRITERS

NUMBERS = [str(n) for n in range(WRITERS)]


@pytest.fixture(scope="module")
def store():
    """An S3 store, as environment variables."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    yield {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    server.stop()


@pytest.fixture(scope="module")
def database():
    programs = binaries()
    if programs is None:
        pytest.skip("no Postgres here: apt-get install postgresql")
    with postgres(programs) as address:
        yield address


@contextlib.contextmanager
def directly(database, store, folder):
    """Environment of the writers, bucket, and where MLflow shall say that artifacts are."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="team")
        mine = {"MLFLOW_TRACKING_URI": database, "MLFLOW_DEFAULT_ARTIFACT_ROOT": "s3://team/mlflow"}
        yield mine, "team", f"s3://team/mlflow/{EXPERIMENT}"


@contextlib.contextmanager
def through_a_server(database, store, folder):
    engine = sqlalchemy.create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE mlflow"))
    address = database.replace("/postgres?", "/mlflow?")
    composed = Composed({"MLFLOW_BACKEND_STORE_URI": address, **store}, folder / "server.log")
    composed.make_bucket()
    with composed.running():
        yield {"MLFLOW_TRACKING_URI": composed.address}, "mlflow", "mlflow-artifacts:/"


@pytest.fixture(scope="module", params=[directly, through_a_server])
def filled(request, database, store, tmp_path_factory):
    """(client, keys of the objects in the store, where artifacts are) after eight writers."""
    answers = tmp_path_factory.mktemp("answers")
    with request.param(database, store, answers) as (mine, bucket, place):
        command = [sys.executable, "-m", "tests.smoke.team", str(tmp_path_factory.mktemp("runs")), str(answers)]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **mine}, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        log_lines = {number: json.loads((answers / f"{number}.json").read_text()) for number in NUMBERS}
        assert log_lines == {number: [] for number in NUMBERS}
        s3 = boto3.client(
            "s3",
            endpoint_url=store["AWS_ENDPOINT_URL"],
            region_name=store["AWS_DEFAULT_REGION"],
            aws_access_key_id=store["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=store["AWS_SECRET_ACCESS_KEY"],
        )
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        from mlflow import MlflowClient

        yield (
            MlflowClient(tracking_uri=mine["MLFLOW_TRACKING_URI"]),
            [o["Key"] for p in pages for o in p["Contents"]],
            place,
        )


def test_every_command_has_its_run_in_one_experiment_with_all_it_logged(filled):
    client, stored, place = filled
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.artifact_location.startswith(place)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {f"{kind} {number}" for kind in ("command", "teacher") for number in NUMBERS}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for number in NUMBERS:
        parent, stage = runs[f"command {number}"], runs[f"teacher {number}"]
        assert parent.data.tags["number"] == number
        assert stage.data.tags["mlflow.parentRunId"] == parent.info.run_id
        losses = {m.step: m.value for m in client.get_metric_history(stage.info.run_id, "loss")}
        assert losses == pytest.approx({step: int(number) + 1 / step for step in range(1, STEPS + 1)})
        (dataset,) = stage.inputs.dataset_inputs
        assert f"/shards/{number}" in dataset.dataset.source
        assert any(parent.info.run_id in key and key.endswith("config.yaml") for key in stored)
        pictures = [key for key in stored if stage.info.run_id in key and "images" in key and key.endswith(".png")]
        assert len(pictures) == 2


def test_every_checkpoint_is_a_version_of_its_own(filled):
    client, _, _ = filled
    versions = client.search_model_versions(f"name='{MODEL}'")
    assert sorted(int(v.version) for v in versions) == list(range(1, WRITERS + 1))
    assert sorted(v.tags["number"] for v in versions) == NUMBERS
    for version in versions:
        logged = client.get_logged_model(version.tags["model_id"])
        number = version.tags["number"]
        assert (logged.tags["uri"], logged.source_run_id) == (f"/weights/{number}", version.run_id)
        assert {m.key: m.value for m in logged.metrics} == {"final/epe": float(number)}
    assert client.get_model_version_by_alias(MODEL, "candidate").version in {v.version for v in versions}
