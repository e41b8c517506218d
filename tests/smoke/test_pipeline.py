"""The whole pipeline at the debug preset, from the command line, as a user runs it: once, and again.

In one process, without Ray: that is in test_rehearsal.py, with a kill -9 in the training (in the data:
test_resume_after_kills.py).
"""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("data", "teacher", "distill", "eval")
LOCAL = "compute.executor=local"
COMMAND = (sys.executable, "-m", "pipelines", *TARGETS, "--preset", "debug", LOCAL)
LIMIT_SECONDS = 3600  # for a hang: five minutes on two quiet cores


def call(runs: Path, *extra: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, "--runs", str(runs), *extra],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        **options,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A finished run, with everything below it."""
    folder = tmp_path_factory.mktemp("runs")
    finished = call(folder)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_SECONDS)
def test_report_is_published_with_measured_values(runs):
    report = json.loads((runs / "debug" / "report" / "report.json").read_text())
    html = (runs / "debug" / "report" / "report.html").read_text()
    assert report["preset"] == "debug"
    assert report["dataset"]["clips"] > 0
    for kind in ("rendered", "real"):
        for model in ("teacher", "student"):
            assert report[kind][model]["epe"] > 0
        assert report[kind]["ratios"]["student_fps_over_teacher"] > 0
    assert set(report["seconds"]) == set(TARGETS)
    assert all(s > 0 for s in report["seconds"].values())
    assert "data:video/mp4;base64," in html


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_SECONDS)
def test_repeating_does_nothing_quickly_and_says_so(runs):
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("manifest.json")}
    again = call(runs)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert "starting Ray" not in again.stdout
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("manifest.json")} == before


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_SECONDS)
def test_tracker_holds_one_tree_and_the_registered_models(runs):
    base = sqlite3.connect(runs / "mlflow.db")
    children = base.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
    aliases = dict(base.execute("select name, alias from registered_model_aliases"))
    assert children >= 10
    assert aliases == {"motionstream-teacher": "candidate", "motionstream-student": "candidate"}


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_SECONDS)
def test_changing_the_student_keeps_data_and_teacher(runs):
    plan = subprocess.run(
        [sys.executable, "-m", "pipelines", "plan", "--preset", "debug", "--runs", str(runs), "student.sink=0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert plan.returncode == 0, plan.stderr
    rows = {
        line.split()[1]: line
        for line in plan.stdout.splitlines()
        if len(line.split()) > 2 and line.split()[0] in TARGETS
    }
    assert "cached" in rows["teacher"]
    assert "would run" in rows["adapt"]


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_SECONDS)
def test_sweep_and_bench_leave_their_figures(runs):
    command = [sys.executable, "-m", "pipelines", "sweep", "bench", "--preset", "debug", "--runs", str(runs), LOCAL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads((runs / "debug" / "sweep" / "sweep.json").read_text())
    assert list(found["students"]) == ["c1s1w1", "c1s0w2ak1"]
    assert all(row["epe"] > 0 and row["fps"] > 0 for row in found["students"].values())
    assert (runs / "debug" / "sweep" / "sweep.png").is_file()
    base = sqlite3.connect(runs / "mlflow.db")
    names = {row[0] for row in base.execute("select name from runs where name like 'eval_sweep c1%'")}
    assert names == {"eval_sweep c1s1w1", "eval_sweep c1s0w2ak1"}
    pairs = json.loads(next(runs.glob("debug/eval_bench/*/bench.json")).read_text())["pairs"]
    assert pairs["recomputed_over_cached"]["ratio"] > 0
