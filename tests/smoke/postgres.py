"""A Postgres of one's own in a temporary folder, without a port: reached through a socket."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl, or None where there is no Postgres."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return next((path.parent for path in sorted(DEBIAN.glob("*/bin/initdb"), reverse=True)), None)


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Its address, as SQLAlchemy reads it. It refuses to run as root, so it then runs as the user that its package made."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # sockets: at most 107 bytes
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")

    def run(*words: str) -> None:
        done = subprocess.run([*user, *words], cwd="/", capture_output=True, text=True, timeout=600, check=False)
        log = folder / "log"
        assert done.returncode == 0, done.stderr + (log.read_text()[-2000:] if log.exists() else "")

    cluster = ["-D", str(folder / "data")]
    try:
        run(str(programs / "initdb"), *cluster, "-U", "team", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-F -c listen_addresses= -c unix_socket_directories={folder}"
        run(str(programs / "pg_ctl"), *cluster, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://team@/postgres?host={folder}"
        finally:
            run(str(programs / "pg_ctl"), *cluster, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
