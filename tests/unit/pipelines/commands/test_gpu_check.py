"""`make gpu-check` keeps what it has measured, whatever happens to a check."""

from __future__ import annotations

import argparse
import json
import sys

import pytest
import torch

from pipelines.commands import gpu_check
from pipelines.commands.gpu_check import Check, run_checks


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_results_are_kept_after_every_check_whatever_happens_to_the_next(tmp_path):
    path = tmp_path / "out" / "gpu-check.json"
    write = f"import json, pathlib; pathlib.Path({str(path.parent)!r}, 'a.json').write_text(json.dumps({{'fps': 2}}))"
    see = f"import json, sys; sys.exit(json.load(open({str(path)!r}))['checks']['figures']['figures']['fps'] != 2)"
    found = run_checks(
        [
            Check("figures", python(write), 60, reads="a.json"),
            Check("sees", python(see), 60),
            Check("breaks", python("print('cause'); raise SystemExit(3)"), 60),
            Check("hangs", python("import time; time.sleep(600)"), 0.5),
            Check("absent", python("pass"), 60, needs=("no_such_package",)),
        ],
        {"gpu": "none"},
        path,
        600,
    )
    assert json.loads(path.read_text()) == found
    states = {name: result["state"] for name, result in found["checks"].items()}
    assert states == {
        "figures": "passed",
        "sees": "passed",
        "breaks": "failed",
        "hangs": "ran out of time",
        "absent": "left out",
    }
    assert found["checks"]["breaks"]["output"] == ["cause"]
    assert found["checks"]["absent"]["reason"] == "not installed: no_such_package"


def test_a_check_beyond_the_time_for_all_is_left_out(tmp_path):
    times = iter([0.0, 0.0, 7.0])
    given = [Check(name, python("pass"), 60) for name in ("first", "second")]
    found = run_checks(given, {}, tmp_path / "r.json", 10, lambda: next(times))
    assert found["checks"]["first"]["state"] == "passed"
    assert found["checks"]["second"] == {"state": "left out", "reason": "the 10 s for all checks were over"}


def test_processes_that_a_check_started_end_with_it(tmp_path):
    code = f"import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 1; touch {tmp_path}/late']); time.sleep(600)"
    gpu_check.run_check(Check("hangs", python(code), 1), 0.5, tmp_path)
    assert not (tmp_path / "late").exists()


def test_its_commands_exist(tmp_path):
    for check in gpu_check.checks(tmp_path):
        if "pytest" in check.command:
            assert (gpu_check.CHECKOUT / check.command[-1]).is_file()
        else:
            assert check.command[3] in ("rehearse", "run")
    assert sum(c.seconds for c in gpu_check.checks(tmp_path)[:-1]) <= gpu_check.TOTAL_SECONDS + 90


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(capsys):
    assert gpu_check.execute(argparse.Namespace(runs="runs", seconds=1.0)) == 1
    assert "sees no CUDA device here" in capsys.readouterr().err
