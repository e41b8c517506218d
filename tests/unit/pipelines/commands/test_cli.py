"""The command line: mistakes end with status 2 before anything starts; make runs all goals in one command."""

from __future__ import annotations

import subprocess

import pytest

from infra.files import CHECKOUT
from pipelines.commands import cli


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["data", "--preset", "nona"], "preset: 'nona' does not exist"),
        (["data", "teachr"], "unknown target teachr"),
        (["teacher.steps=3"], "no target"),
        (["data", "teacher.stps=3", "student.window=-1"], "has 2 problems"),
    ],
)
def test_mistakes_stop_before_anything_starts(words, part, tmp_path, capsys):
    assert cli.main([*words, "--runs", str(tmp_path / "runs")]) == cli.BAD_CONFIG
    assert part in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_config_prints_the_resolved_configuration(capsys):
    assert cli.main(["config", "--preset", "debug", "teacher.steps=9"]) == cli.OK
    assert "steps: 9" in capsys.readouterr().out


def test_a_source_that_does_not_exist_is_one_line(tmp_path, capsys):
    words = ["data", "--preset", "debug", "--src", str(tmp_path / "no"), "--runs", str(tmp_path / "runs")]
    assert cli.main(words) == cli.FAILED
    captured = capsys.readouterr()
    assert "no such folder" in captured.err
    assert "Traceback" not in captured.err


def test_a_source_that_holds_the_results_is_refused(tmp_path, capsys):
    """Else the clips made by one run would be videos of the next."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    words = ["data", "--preset", "debug", "--src", str(tmp_path), "--runs", str(tmp_path / "deep" / "runs")]
    assert cli.main(words) == cli.FAILED
    assert "holds RUNS" in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("src", ["/no films/**/*.mp4", "s3://bucket/[ab]*/?.mp4", "films.csv", "a b.txt"])
def test_make_hands_a_source_on_as_it_is(src):
    words = ["make", "-s", "-o", ".venv/.stamp", "data", "PY=printf '<%s>'", f"SRC={src}"]
    out = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert out.endswith(f"<--src><{src}>")


def make(*words: str) -> list[str]:
    """What make would run, environment set-up aside."""
    out = subprocess.run(["make", "-n", *words], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return [" ".join(line.split()) for line in out.splitlines() if "-m pipelines" in line]


def test_make_runs_all_goals_in_one_command():
    found = make("data", "teacher", "distill", "eval", "PRESET=debug", "ARGS=a.b=1 c=2", "SRC=/my films")
    assert found == [
        ".venv/bin/python -m pipelines data teacher distill eval --preset 'debug' --runs 'runs' --src '/my films' a.b=1 c=2"
    ]


def test_make_plan_only_plans():
    assert make("plan", "data") == [".venv/bin/python -m pipelines plan data --preset 'nano' --runs 'runs'"]


def test_a_report_goes_no_further_than_data(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"x")
    words = ["teacher", "data.report_only=true", "--preset", "debug", "--src", str(tmp_path / "v")]
    assert cli.main([*words, "--runs", str(tmp_path / "runs")]) == cli.FAILED
    assert "data.report_only packs nothing" in capsys.readouterr().err
