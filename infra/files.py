"""File operations that are safe under kill -9: atomic writes, and locks that end with their process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]


def write_atomic(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically: the file holds either the old content or all of the new, even after a power
    cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: Path) -> Any:
    """Returns the decoded JSON of `path`, or None if the file does not exist. Raises ValueError that names a file
    without valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): delete its folder and run again") from None


class FolderLock:
    """An exclusive lock on a folder, as a context manager. The kernel releases it when its process dies, so that no
    stale lock can remain.

    Entering blocks while another process holds the lock. on_wait: called once while blocked, with the owner's pid and
    host.
    """

    def __init__(self, folder: Path, on_wait: Callable[[str], None] | None = None, poll_seconds: float = 0.2) -> None:
        self.path = folder / ".lock"
        self.on_wait = on_wait
        self.poll_seconds = poll_seconds
        self._fd: int | None = None

    def __enter__(self) -> FolderLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)  # not inherited by child processes (PEP 446)
        reported = False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not reported and self.on_wait is not None:
                    self.on_wait(os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process")
                reported = True
                time.sleep(self.poll_seconds)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def git_sha(checkout: Path = CHECKOUT) -> str:
    """Returns the commit of the checkout, with "+dirty" appended where tracked files differ from it. Outside of git, as
    in a container image, returns the variable GIT_SHA, else "unknown"."""
    try:
        sha = _git(checkout, "rev-parse", "HEAD")
        return sha + ("+dirty" if _git(checkout, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("GIT_SHA", "unknown")


def _git(checkout: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


def lock_hash(checkout: Path = CHECKOUT) -> str:
    """Returns the SHA-256 of the pinned environment: constraints.txt and assets.txt in infra/env."""
    digest = hashlib.sha256()
    for name in ("constraints.txt", "assets.txt"):
        path = checkout / "infra" / "env" / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
