"""Gives all nodes of a cluster the same packages and environment variables, and checks that they share the folder
RUNS."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.files import CHECKOUT

SHIPPED = ("configs", "demo", "infra", "msmodel", "pipelines", "stages")  # folders of the checkout sent to the nodes
# Prefixes of the variables sent to the nodes: addresses and credentials of data, models, tracker and network, and what
# torch and CUDA read, as PYTORCH_CUDA_ALLOC_CONF, CUDA_LAUNCH_BLOCKING and CUBLAS_WORKSPACE_CONFIG.
# CUDA_VISIBLE_DEVICES and Python's paths are set by each node itself.
PASSED = (
    "AWS_",
    "AZURE_STORAGE_",
    "CUBLAS_",
    "CUDA_LAUNCH_",
    "FI_",
    "FSSPEC_",
    "GOOGLE_",
    "HF_",
    "MLFLOW_",
    "NCCL_",
    "PYTORCH_",
    "RAY_TRAIN_",
    "TOKENIZERS_",
    "TORCH_",
)
TOKEN = "token"
ANSWER_SECONDS = 180.0  # the first task on a node also unpacks the checkout


def runtime_env(environ: Mapping[str, str]) -> dict[str, Any]:
    """Returns Ray's runtime_env for workers on other nodes: the packages of this checkout, without anything else in it
    (RUNS, videos), and the environment variables whose names begin with an entry of PASSED."""
    return {
        "working_dir": str(CHECKOUT),
        # The last matching pattern decides; "/." is the checkout itself.
        "excludes": ["/*", "!/.", *(f"!/{name}" for name in SHIPPED), "__pycache__"],
        "env_vars": {name: value for name, value in sorted(environ.items()) if name.startswith(PASSED)},
    }


def require_shared(ray: Any, runs: Path, seconds: float = ANSWER_SECONDS) -> None:
    """Checks that all nodes share the folder `runs`: each reads a file that this process has just written, and writes
    one that this process must then see.

    Raises ValueError that names the nodes that do not see the folder, cannot write into it, or do not answer in
    `seconds`.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    folder, token = runs / f".nodes-{uuid.uuid4().hex}", uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        (folder / TOKEN).write_text(token)
        asked = {}
        for node_id in nodes:
            assert not (folder / node_id).exists()  # NFS may now cache that it does not exist
            here = NodeAffinitySchedulingStrategy(node_id, soft=False)
            task = ray.remote(num_cpus=0, max_retries=0)(answer).options(scheduling_strategy=here)
            asked[task.remote(str(folder), token, node_id)] = node_id
        ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
        problems = {node_id: _problem(ray, task, folder / node_id, seconds) for task, node_id in asked.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lines = "".join(f"\n  {_name(nodes[node_id])}: {problem}" for node_id, problem in problems.items() if problem)
    if lines:
        raise ValueError(
            f"RUNS={runs} must be one folder that all {len(nodes)} nodes of the cluster see and may write:{lines}\nMount "
            f"the shared file system there, or name a folder on it, as in RUNS=/shared/runs"
        )


def answer(folder: str, token: str, node_id: str) -> str:
    """Runs on a node: returns "" if the folder is shared, else a description of the problem."""
    place = Path(folder)
    try:
        if (place / TOKEN).read_text() != token:
            return "another folder of the same name lies there"
        (place / node_id).touch()
    except FileNotFoundError:
        return "does not see it"
    except OSError as error:
        return f"user {os.getuid()} cannot read and write there ({error.strerror})"
    return ""


def _problem(ray: Any, task: Any, written: Path, seconds: float) -> str:
    try:
        said = ray.get(task, timeout=0)
        late = "what it writes is not seen here at once (NFS: mount it with lookupcache=positive)"
        return said or ("" if written.exists() else late)
    except ray.exceptions.GetTimeoutError:
        return f"gave no answer within {seconds:g} s"
    except ray.exceptions.RayError as error:
        return f"cannot run a task: {last_line(error)}"


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def last_line(error: BaseException) -> str:
    """Returns the last non-empty line of an error's text, which names the cause in Ray's errors; else the error's
    type."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
