"""infra/cluster/slurm.sh under a real Slurm of two nodes: `make slurm-check`, which takes minutes: not in `make test`."""

from __future__ import annotations

import os

import psutil
import pytest

from infra.files import CHECKOUT
from tests.smoke.slurm import missing, slurm, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("MS_SLURM"), reason="minutes: make slurm-check"),
    pytest.mark.skipif(bool(missing()), reason=f"no Slurm here ({', '.join(missing())}): apt-get install slurm-wlm"),
]


@pytest.fixture(scope="module")
def cluster():
    with slurm() as made:
        yield made


@pytest.fixture
def submitted(cluster, tmp_path):
    """(number, log) of a job over both nodes that makes data, from the moment on that its first step has begun."""
    log = tmp_path / "log"
    words = ["--nodes=2", "--cpus-per-task=2", f"--output={log}", "infra/cluster/slurm.sh"]
    job = cluster.submit(CHECKOUT, *words, "data", "PRESET=debug", f"RUNS={tmp_path}/runs")
    until(lambda: log.exists() and "\n== " in log.read_text(), "the first step")
    return job, log


def test_a_job_at_its_time_limit_goes_back_into_the_queue_and_on_from_there(cluster, submitted, tmp_path):
    job, log = submitted
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what Slurm sends by the script's --signal
    until(lambda: (cluster.job(job)["JobState"], cluster.job(job)["Restarts"]) == ("PENDING", "1"), "the requeue")
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    until(lambda: cluster.job(job)["JobState"] == "COMPLETED", "the end")
    logged = log.read_text()
    assert logged.count("Ray on 2 nodes: n1 n2\n") == 2 and logged.count("back into the queue") == 1, logged
    assert list((tmp_path / "runs" / "debug").rglob("shard-*.tar"))


def test_a_cancelled_job_stays_away_and_leaves_nothing_running(cluster, submitted):
    job, log = submitted
    cluster.run("scancel", job)
    until(lambda: cluster.job(job)["JobState"] == "CANCELLED", "the end")
    until(lambda: not _rays(job), "the end of Ray")
    assert cluster.job(job)["Restarts"] == "0" and "back into the queue" not in log.read_text()


def _rays(job: str) -> list[str]:
    """Command lines of the job's Ray that are still running."""
    lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if f"/tmp/ray-{job}/" in line]
