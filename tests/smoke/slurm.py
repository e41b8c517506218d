"""A Slurm of one's own here: munge, slurmctld, and two slurmd, each a node, with eight GPUs that are only counted."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "scancel")
SBIN = "/usr/sbin"  # of Debian's daemons; not in every user's PATH
CONFIGURATION = """\
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=10
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=15
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory=4000 Gres=gpu:8
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def missing() -> list[str]:
    """Programs that are not here."""
    return [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")]


class Slurm:
    """environment: for Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:{SBIN}",
        }
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        first = _free_ports(3)
        host = socket.gethostname().split(".")[0]
        places = {"folder": self.folder, "host": host, "controller": first, "first": first + 1, "last": first + 2}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**places, cpus=os.cpu_count()))
        for number in range(8):  # where a GPU's device file would be
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={self.folder}/gpu[0-7]\n")
        (self.folder / "key").write_bytes(os.urandom(128))
        (self.folder / "key").chmod(0o400)
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir()
        files = {
            "socket": "munge",
            "key-file": "key",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "seed",
        }
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self.daemon("munged", "--foreground", "--force", *options)
        until(lambda: (self.folder / "munge").exists(), "munged")
        self.daemon("slurmctld", "-D", "-i")
        for node in ("n1", "n2"):
            self.start_node(node)
        until(lambda: self.run("sinfo", "-h", "-o", "%T %D").strip() == "idle 2", "both nodes")

    def start_node(self, name: str) -> None:
        self.daemon(name, "slurmd", "-D", "-N", name)

    def daemon(self, name: str, *words: str) -> None:
        command = list(words) if words and not words[0].startswith("-") else [name, *words]
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, cwd=self.folder
            )

    def run(self, *words: str, cwd: Path | None = None) -> str:
        done = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def submit(self, cwd: Path, *words: str) -> str:
        return self.run("sbatch", "--parsable", *words, cwd=cwd).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of it: JobState, Restarts and so on."""
        pairs = (
            word.split("=", 1) for word in self.run("scontrol", "-o", "show", "job", number).split() if "=" in word
        )
        return dict(pairs)

    def stop(self) -> None:
        for daemon in reversed(list(self.daemons.values())):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()


def until(true: Callable[[], bool], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)


def _free_ports(count: int) -> int:
    """The first of so many in a row."""
    for first in range(17000, 19000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets: at most 107 bytes
    made = Slurm(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
