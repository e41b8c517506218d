"""Eight commands of a team that log at the same moment. python -m tests.smoke.team RUNS FOLDER_OF_ANSWERS."""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np

from infra.tracking import TrackedModel, Tracking, tracking_uri

WRITERS, STEPS = 8, 300
SLOW_TO_IMPORT = ("mlflow.data.meta_dataset", "PIL.Image", "git", "IPython")  # once, before the forks
DIRECT = (
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("mlflow.store.artifact.s3_artifact_repo", "boto3", "psycopg"),
)
THROUGH_A_SERVER = (
    *("mlflow.store.tracking.rest_store", "mlflow.store.model_registry.rest_store"),
    "mlflow.store.artifact.mlflow_artifacts_repo",
)
NOT_AT_A_CLIENT = ("boto3", "botocore", "psycopg", "psycopg2")
EXPERIMENT, MODEL = "motionstream", "motionstream-teacher"


def write(number: int, runs: Path, answers: Path, start) -> None:
    """One command of one stage: its run in the parent's, with curves, pictures, a data set, and a registered checkpoint."""
    logged: list[str] = []
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    tracking = Tracking(runs, EXPERIMENT, f"command {number}", logged.append)
    tracking.describe({"number": str(number)}, {"config.yaml": f"seed: {number}\n"})
    start.wait()  # so that all find nothing, and make the experiment
    stage = tracking.stage(f"teacher {number}", {"step_key": str(number)})
    if stage is not None:
        stage.dataset("train", f"/shards/{number}", digest, "train")
        for step in range(1, STEPS + 1):
            stage.metrics(step, {"loss": number + 1 / step})
        for step in (1, 2):
            stage.image("held/out", np.full((8, 8, 3), number, np.uint8), step)
        stage.flush()
    start.wait()  # so that all register at the same moment
    if stage is not None:
        weights = TrackedModel("teacher", f"/weights/{number}", STEPS, digest, {"epe": float(number)},
                               {"number": str(number)}, MODEL, "train", digest)  # fmt: skip
        stage.checkpoint(weights)
        stage.finish()
    tracking.finish("FINISHED")
    (answers / f"{number}.json").write_text(json.dumps(logged))


if __name__ == "__main__":
    server = tracking_uri(Path(sys.argv[1])).startswith("http")
    for module in NOT_AT_A_CLIENT if server else ():
        sys.modules[module] = None  # type: ignore[assignment]  # whoever imports it fails
    for module in (*SLOW_TO_IMPORT, *(THROUGH_A_SERVER if server else DIRECT)):
        importlib.import_module(module)
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(WRITERS, timeout=1200)
    folders = Path(sys.argv[1]), Path(sys.argv[2])
    writers = [fork.Process(target=write, args=(number, *folders, barrier)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    sys.exit(max(writer.exitcode or 0 for writer in writers))
