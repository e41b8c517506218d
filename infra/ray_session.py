"""Starts Ray when the first stage needs it: it joins the cluster at RAY_ADDRESS, else it runs on this machine."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.config import ComputeConfig
from infra.files import CHECKOUT
from infra.shared import last_line, require_shared, runtime_env
from infra.versions import require_tested


class RaySession:
    """Holds one connection to Ray for a whole command. runs: the folder that all nodes must share."""

    def __init__(self, compute: ComputeConfig, log: Callable[[str], None], runs: Path) -> None:
        self.compute, self.log, self.runs = compute, log, runs
        self._ray: Any = None

    @property
    def remote(self) -> bool:
        """Tells whether RAY_ADDRESS names a cluster other than this machine."""
        return bool(os.environ.get("RAY_ADDRESS")) and os.environ["RAY_ADDRESS"] != "local"

    def start(self) -> Any:
        """Returns the connected `ray` module, and connects it at the first call.

        Raises ValueError where Ray or DeepSpeed has an untested version, Ray cannot be started or reached, or a node
        does not share `runs`.
        """
        if self._ray is not None:
            return self._ray
        require_tested("ray")
        if self.compute.engine == "deepspeed":
            require_tested("deepspeed")
        _set_environment()
        import ray

        quiet()
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.remote:
            options["runtime_env"] = runtime_env(os.environ)
        else:
            options |= {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": self.compute.object_store_mb * 2**20,
            }
        self.log(f"starting Ray ({os.environ['RAY_ADDRESS'] if self.remote else 'on this machine'})")
        try:
            ray.init(**options)
            if self.remote:
                require_shared(ray, self.runs)
                self._warn_of_sqlite(ray)
        except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            ray.shutdown()
            raise ValueError(f"Ray cannot be started or reached: {last_line(error)}") from error
        except ValueError:
            ray.shutdown()
            raise
        self._ray = ray
        return ray

    def _warn_of_sqlite(self, ray: Any) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI") and sum(node["Alive"] for node in ray.nodes()) > 1:
            self.log(
                f"note: several nodes write to {self.runs}/mlflow.db, which not every shared file system bears: set "
                f"MLFLOW_TRACKING_URI to a server (docs/GPU.md)"
            )

    def resources(self) -> tuple[float, float]:
        """Returns the (CPUs, GPUs) of the cluster that a command may use: at most compute.gpus of its GPUs."""
        total = self.start().cluster_resources()
        return total.get("CPU", 1.0), min(total.get("GPU", 0.0), self.compute.gpus or math.inf)

    def stop(self) -> None:
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None


def _set_environment() -> None:
    """Sets environment variables that Ray reads when it is imported; workers inherit them."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # by default ray.train waits two seconds a report
    os.environ.setdefault("RAY_TMPDIR", "/tmp")  # holds sockets, whose paths are limited to 107 bytes
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths refer to the user's working directory
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    Path(os.environ["RAY_TMPDIR"]).mkdir(parents=True, exist_ok=True)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(CHECKOUT) not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *filter(None, known)])


def quiet() -> None:
    """Restricts Ray's logging to errors. Must be called again after importing `ray.data` or `ray.train`, which reset
    their levels."""
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)


def set_threads(threads: int) -> None:
    """Sets the number of threads of torch and OpenCV in this process, at most the number of cores.

    Ray sets OMP_NUM_THREADS=1 for its workers whatever CPUs they have, and OpenCV, which has its own thread pool,
    ignores that variable.
    """
    import cv2
    import torch

    threads = max(1, min(threads, os.cpu_count() or 1))
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
