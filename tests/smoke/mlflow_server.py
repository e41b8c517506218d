"""compose.yaml's MLflow on this machine: its bucket service, its server and its health check, word for word but for the port
and the number of workers, with what they find in the environment there, but for addresses and keys."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from infra.files import CHECKOUT

COMPOSE = CHECKOUT / "infra" / "docker" / "compose.yaml"
PORT = "5000"
PROGRAMS = Path(sys.executable).parent
START_SECONDS = 600
FEWER = ["--workers", "2"]  # of four by default, each of which imports for seconds


class Composed:
    """The services `bucket` and `mlflow`. here: address of the database, and of the store with its keys."""

    def __init__(self, here: Mapping[str, str], log: Path) -> None:
        self.service, self.bucket = (
            yaml.safe_load(COMPOSE.read_text())["services"][name] for name in ("mlflow", "bucket")
        )
        self.here, self.log = here, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """From health check to the end of all its processes."""
        server = self.start()
        try:
            self.wait(server)
            yield server
        finally:
            self.kill(server)

    def make_bucket(self) -> None:
        subprocess.run(self._words(self.bucket["command"]), env=self._environment(self.bucket), check=True, timeout=600)

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self._words(self.service["command"]), *FEWER],
                env=self._environment(self.service),
                cwd=self.log.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, server: subprocess.Popen[bytes]) -> None:
        check = self._words(self.service["healthcheck"]["test"][1:])  # [CMD, program, words]
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(check, capture_output=True).returncode:
            in_time = server.poll() is None and time.monotonic() < deadline
            assert in_time, f"the server does not start: {self.log.read_text()[-3000:]}"
            time.sleep(0.5)

    @staticmethod
    def kill(server: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    def _words(self, command: list[str]) -> list[str]:
        program, *words = command
        path = sys.executable if program == "python3" else str(PROGRAMS / program)
        return [path, *(word.replace(PORT, self.port) for word in words)]

    def _environment(self, service: Mapping[str, object]) -> dict[str, str]:
        """What the service names and nothing else that MLflow or an S3 client reads."""
        named = service["environment"]
        assert isinstance(named, dict) and set(self.here) <= set(named), named
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_"))}
        return kept | named | dict(self.here)
