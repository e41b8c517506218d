"""Logs to MLflow: one parent run per command, one nested run per executed stage, and checkpoints as registered models.

A failing tracker never stops the work: its failures are counted, and the first one is logged. Everything that MLflow
shows is also stored on disk.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.files import FolderLock

PRIMARY_METRIC = "rendered/student/epe"
EXPERIMENT_TAGS = {
    "mlflow.experiment.primaryMetric.name": PRIMARY_METRIC,
    "mlflow.experimentKind": "custom_model_development",  # otherwise MLflow shows the experiment as a chat application
}
FLUSH_METRICS = 200
FLUSH_SECONDS = 5.0
BATCH = 1000  # points of one request: MLflow's limit
PARAM_BATCH, PARAM_CHARACTERS = 100, 500  # settings of one request, and length of a value: MLflow's limits
KEPT_METRICS = 100_000  # points buffered while MLflow does not answer: about 20 MB
REST = 9  # after a failed call, calls pause for this many times its duration
# With MLflow's defaults (7 and 120) one call blocks for 4 minutes where the connection is refused, and for 20 where the
# server does not answer: longer than the ranks of a distributed job wait for each other. With these values it blocks for
# half a minute, which is enough for a server's restart, and for 6 minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
ALIAS_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds before each further try to set an alias
DIGEST_LENGTH = 36  # MLflow's limit
CHILD_RUN = "mlflow.parentRunId"
ADDRESS = "MLFLOW_TRACKING_URI"
POSTGRES_LOCK = 0x4D6F74696F6E  # key of the advisory lock: any constant
HOST, PID = "driver_host", "driver_pid"  # tags of every run: the process that made it


@dataclass(frozen=True)
class RunAddress:
    """The address of one MLflow run: tracking URI and run id. It can be pickled for workers."""

    uri: str
    run_id: str


def tracking_uri(runs: Path) -> str:
    """Returns MLFLOW_TRACKING_URI if it is set, else the address of the sqlite file mlflow.db in the runs folder."""
    return os.environ.get(ADDRESS) or f"sqlite:///{runs.resolve() / 'mlflow.db'}"


def prepare_database(uri: str, runs: Path) -> None:
    """Creates MLflow's tables in an empty database under a lock, because concurrent creation leaves it broken.

    An embedded database (sqlite) is also upgraded. A shared one must be upgraded by its owner, together with all
    clients.
    """
    if uri.startswith("sqlite:///"):
        _prepare_sqlite(uri, runs)
    elif uri.startswith("postgresql"):
        _prepare_postgres(uri)


def _prepare_sqlite(uri: str, runs: Path) -> None:
    from mlflow.version import VERSION

    runs.mkdir(parents=True, exist_ok=True)
    stamp = Path(uri.removeprefix("sqlite:///")).with_suffix(".version")
    with FolderLock(runs):
        if stamp.is_file() and stamp.read_text() == VERSION and Path(uri.removeprefix("sqlite:///")).is_file():
            return
        _upgrade(uri)
        stamp.write_text(VERSION)


def _prepare_postgres(uri: str) -> None:
    """Creates the tables under an advisory lock of the database, which also holds between machines."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRES_LOCK})
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            _upgrade(uri)
    engine.dispose()


def _upgrade(uri: str) -> None:
    """Runs `mlflow db upgrade`. The address, which may hold a password, goes through the environment, hidden from
    `ps`."""
    call = f"import os; from mlflow.db import upgrade; upgrade.callback(os.environ['{ADDRESS}'])"
    done = subprocess.run(
        [sys.executable, "-c", call], env={**os.environ, ADDRESS: uri}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"mlflow db upgrade failed: {done.stderr.strip()[-500:]}")


def _mine() -> dict[str, str]:
    """Returns the tags that name this process and its machine."""
    return {HOST: os.uname().nodename, PID: str(os.getpid())}


def close_abandoned(client: Any, experiment: str) -> None:
    """Marks as killed the open runs of this machine whose process no longer exists (kill -9, power cut)."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if tags.get(HOST) == os.uname().nodename and not Path(f"/proc/{tags.get(PID)}").exists():
            client.set_terminated(run.info.run_id, "KILLED")


class BestEffort:
    """Runs tracking calls so that none of them can stop the work.

    The first failure is logged, and every failure is counted. Calls that can be delayed or skipped are not made while
    `resting`, so that an unreachable tracker takes at most a tenth of a training's time.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self.failures = 0
        self._rests_until = 0.0

    @property
    def resting(self) -> bool:
        """Tells whether calls that can wait should be left out, because a call has failed recently."""
        return time.monotonic() < self._rests_until

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        except Exception as error:  # MLflow raises database, network, file and its own errors; none may stop training
            now = time.monotonic()
            self._rests_until = now + REST * (now - started)
            self.failures += 1
            if self.failures == 1:
                self.log(f"MLflow: {what} failed ({type(error).__name__}: {str(error)[:300]}); the work goes on")


def _client(uri: str) -> Any:
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@dataclass(frozen=True)
class TrackedModel:
    """One checkpoint to log in MLflow. registered_as: name in the model registry; "" for an intermediate checkpoint."""

    name: str
    folder: str
    step: int
    digest: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    registered_as: str = ""
    dataset: str = ""
    dataset_digest: str = ""

    def all_tags(self) -> dict[str, str]:
        """Returns the tags of the model, with its step, folder and digest."""
        return {"step": str(self.step), "uri": self.folder, "digest": self.digest, **self.tags}


@contextlib.contextmanager
def _tracking_uri(uri: str) -> Iterator[None]:
    """Sets MLflow's global tracking URI inside the block, for its fluent calls and models:/ addresses, and restores it.

    set_tracking_uri also sets MLFLOW_TRACKING_URI, and get_tracking_uri makes up a database in the working directory
    where no address is set. The previous address is therefore read from the environment; None removes both.
    """
    import mlflow

    previous = os.environ.get(ADDRESS)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(previous)  # type: ignore[arg-type]


@contextlib.contextmanager
def _made_before() -> Iterator[None]:
    """Ignores the error that the object exists already: another command may have made it, even at the same moment."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _may_pass(error: Any) -> bool:
    """Tells whether another command may have caused the error, so that a second try may succeed. The codes are broad,
    because a server reports a database's error as its own and names the error's class only in the message."""
    return error.error_code in ("BAD_REQUEST", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "RESOURCE_ALREADY_EXISTS")


class RunLogger:
    """Logs to one MLflow run, with a buffer for metrics.

    Points at or before the last step that the run already holds of a metric are dropped, so that a resumed worker logs
    no step twice. Points that cannot be sent are kept and sent later.
    """

    def __init__(self, address: RunAddress, log: Callable[[str], None]) -> None:
        self.address = address
        self.best_effort = BestEffort(log)
        self._buffer: list[tuple[str, float, int, int]] = []  # key, value, time in ms, step
        self._last: dict[str, int] = {}
        self._flushed = time.monotonic()
        self._mlflow: Any = None

    @property
    def client(self) -> Any:
        """Returns the MLflow client, which is made at the first use."""
        if self._mlflow is None:
            self._mlflow = _client(self.address.uri)
        return self._mlflow

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Buffers points of metrics, and sends the buffer when it is full or old enough."""
        now = int(time.time() * 1000)
        self._buffer += [(key, float(value), now, step) for key, value in values.items()]
        due = len(self._buffer) >= FLUSH_METRICS or time.monotonic() - self._flushed > FLUSH_SECONDS
        if due and not self.best_effort.resting:
            self.flush()

    def flush(self) -> None:
        """Sends the buffered points and keeps those that cannot be sent. MLflow ignores a point that it already
        holds."""
        self._flushed = time.monotonic()
        failures = self.best_effort.failures
        while self._buffer and self.best_effort.failures == failures:
            with self.best_effort("logging metrics"):
                self._send(self._buffer[:BATCH])
                del self._buffer[:BATCH]
        del self._buffer[:-KEPT_METRICS]

    def _send(self, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        last: dict[str, int] = {}
        new = []
        for point in points:
            key, step = point[0], point[3]
            if step > last.setdefault(key, self._last_step(key)):
                last[key] = step
                new.append(Metric(*point))
        if new:
            self.client.log_batch(self.address.run_id, metrics=new)
        self._last |= last

    def _last_step(self, key: str) -> int:
        if key not in self._last:
            history = self.client.get_metric_history(self.address.run_id, key)
            self._last[key] = max((m.step for m in history), default=-1)
        return self._last[key]

    def image(self, key: str, picture: np.ndarray, step: int) -> None:
        """Logs a picture (h w 3, uint8). It is skipped while MLflow does not answer."""
        if self.best_effort.resting:
            return
        with self.best_effort("logging a picture"):
            self.client.log_image(self.address.run_id, picture, key=key.replace("/", "_"), step=step)

    def artifact(self, path: Path, folder: str = "") -> None:
        with self.best_effort("logging an artifact"):
            log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
            log(self.address.run_id, str(path), folder or None)

    def text(self, text: str, name: str) -> None:
        with self.best_effort("logging a text"):
            self.client.log_text(self.address.run_id, text, name)

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs settings, so that MLflow's pages show in what runs differ. They are fixed for a run: call it once."""
        from mlflow.entities import Param

        settings = [Param(key, str(value)[:PARAM_CHARACTERS]) for key, value in values.items()]
        with self.best_effort("logging settings"):
            for start in range(0, len(settings), PARAM_BATCH):
                self.client.log_batch(self.address.run_id, params=settings[start : start + PARAM_BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        with self.best_effort("tagging"):
            for key, value in values.items():
                self.client.set_tag(self.address.run_id, key, value)

    def dataset(self, name: str, source: str, digest: str, context: str) -> None:
        """Logs a data set by name, folder and digest, without copying its contents. context: what it is used for."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        with self.best_effort("logging a data set"):
            place = CodeDatasetSource({"folder": source})
            made = MetaDataset(place, name=name, digest=digest[:DIGEST_LENGTH])  # type: ignore[abstract]
            tag = InputTag(MLFLOW_DATASET_CONTEXT, context)
            self.client.log_inputs(self.address.run_id, datasets=[DatasetInput(made._to_mlflow_entity(), tags=[tag])])

    def checkpoint(self, model: TrackedModel) -> None:
        """Logs an external LoggedModel (the weights stay in their folder) with its metrics. Where the model has a
        registry name, also registers a version with the alias `candidate`."""
        with self.best_effort("registering a checkpoint"), _tracking_uri(self.address.uri):
            logged = self._log_model(model)
            if model.registered_as:
                self._register(model, logged)

    def _log_model(self, model: TrackedModel) -> str:
        import mlflow

        run_id = self.address.run_id
        experiment = self.client.get_run(run_id).info.experiment_id
        logged = mlflow.create_external_model(
            name=model.name, source_run_id=run_id, tags=model.all_tags(), experiment_id=experiment
        )
        for key, value in model.metrics.items():
            self.client.log_metric(
                run_id,
                f"final/{key}",
                value,
                step=model.step,
                model_id=logged.model_id,
                dataset_name=model.dataset or None,
                dataset_digest=model.dataset_digest[:DIGEST_LENGTH] or None,
            )
        return logged.model_id

    def _register(self, model: TrackedModel, model_id: str) -> None:
        with _made_before():
            self.client.create_registered_model(model.registered_as)
        version = self.client.create_model_version(
            model.registered_as,
            f"models:/{model_id}",
            run_id=self.address.run_id,
            tags={**model.all_tags(), "model_id": model_id},  # the sqlite registry does not keep model_id itself
            model_id=model_id,
        )
        self._set_alias(model.registered_as, "candidate", version.version)

    def _set_alias(self, name: str, alias: str, version: str) -> None:
        """Points the alias at a version; the last command to do so wins.

        MLflow reads the alias and then inserts or updates it. When several commands set a new alias at once, all but
        the first fail; they try again and then update it.
        """
        from mlflow.exceptions import MlflowException

        for pause in ALIAS_PAUSES:
            try:
                self.client.set_registered_model_alias(name, alias, version)
                return
            except MlflowException as error:
                if not _may_pass(error):
                    raise
            time.sleep(pause)
        self.client.set_registered_model_alias(name, alias, version)

    def close(self) -> None:
        """Sends the buffered points, and logs how many could not be sent. A worker calls it last."""
        self.flush()
        if self._buffer:
            self.best_effort.log(f"MLflow: {len(self._buffer)} points of curves could not be logged")
            self._buffer.clear()

    def finish(self, status: str = "FINISHED") -> None:
        self.close()
        with self.best_effort("closing the run"):
            self.client.set_terminated(self.address.run_id, status)


class Tracking:
    """The parent run of one command. It is made when the first stage runs, so that a command with nothing to do makes
    none."""

    def __init__(self, runs: Path, experiment: str, run_name: str, log: Callable[[str], None]) -> None:
        self.runs, self.experiment, self.run_name, self.log = runs, experiment, run_name, log
        self.uri = tracking_uri(runs)
        self.best_effort = BestEffort(log)
        self.parent: RunLogger | None = None
        self._tried = False
        self._about: tuple[dict[str, str], dict[str, str], dict[str, Any]] = ({}, {}, {})

    def describe(
        self, tags: Mapping[str, str], texts: Mapping[str, str], params: Mapping[str, Any] | None = None
    ) -> None:
        """Sets the tags, text artifacts (config, git SHA, lock hash) and settings of the parent run, for when it is made."""
        self._about = (dict(tags), dict(texts), dict(params or {}))

    def stage(self, name: str, tags: Mapping[str, str]) -> RunLogger | None:
        """Returns the logger of a new nested run, or None where MLflow fails; the failure is logged."""
        parent = self._parent()
        if parent is None:
            return None
        with self.best_effort("opening a stage's run"):
            experiment = parent.client.get_run(parent.address.run_id).info.experiment_id
            all_tags = {CHILD_RUN: parent.address.run_id, **_mine(), **tags}
            run = parent.client.create_run(experiment, tags=all_tags, run_name=name)
            return RunLogger(RunAddress(self.uri, run.info.run_id), self.log)
        return None

    def _parent(self) -> RunLogger | None:
        if self.parent is None and not self._tried:
            self._tried = True
            with self.best_effort("opening the run"):
                prepare_database(self.uri, self.runs)
                client = _client(self.uri)
                experiment = self._experiment(client)
                close_abandoned(client, experiment)
                run = client.create_run(experiment, run_name=self.run_name, tags=_mine())
                self.parent = RunLogger(RunAddress(self.uri, run.info.run_id), self.log)
                tags, texts, params = self._about
                self.parent.tags(tags)
                self.parent.params(params)
                for file, text in texts.items():
                    self.parent.text(text, file)
        return self.parent

    def _experiment(self, client: Any) -> str:
        """Returns the experiment's id. One call creates it with its tags, because several commands may do so at
        once."""
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            with _made_before():
                client.create_experiment(self.experiment, self._artifacts(), EXPERIMENT_TAGS)
            found = client.get_experiment_by_name(self.experiment)
        return found.experiment_id

    def _artifacts(self) -> str | None:
        """Returns the address for pictures and texts, or None where the server decides."""
        if self.uri.startswith("http"):
            return None
        root = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT", "")
        return f"{root.rstrip('/')}/{self.experiment}" if root else (self.runs.resolve() / "mlartifacts").as_uri()

    def finish(self, status: str) -> None:
        if self.parent is not None:
            self.parent.finish(status)
