"""motionstream gpu-check: everything worth knowing on a machine with one GPU, without a network, in nine minutes.

Each check is a command of its own with a share of the time. After every check the results are written again, so that a
check that hangs, a package that is missing or a machine that is lost costs only what had not run yet.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from infra.files import CHECKOUT, git_sha
from pipelines.commands.options import FAILED, OK

TOTAL_SECONDS = 540.0
TAIL = 40  # last lines of a check's output that are kept
ONE_GPU = ("compute.workers=1", "compute.precision=auto")


@dataclass(frozen=True)
class Check:
    """One check. seconds: the most that it may take. needs: packages without which it is left out. reads: a JSON file of
    figures that it leaves, below RUNS."""

    name: str
    command: Sequence[str]
    seconds: float
    needs: tuple[str, ...] = ()
    reads: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def checks(runs: Path) -> list[Check]:
    """Returns the checks in the order in which they run: the cheap and the most telling first."""
    python = sys.executable
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    here = {"RUNS": str(runs)}

    def rehearsal(preset: str) -> list[str]:
        return [python, "-m", "pipelines", "rehearse", "--preset", preset, "--runs", str(runs), *ONE_GPU]

    return [
        Check("numbers", [*tests, "tests/gpu/test_gpu.py"], 90, ("pytest",)),
        Check("full-size", [*tests, "-s", "tests/gpu/test_full_size.py"], 180, ("pytest",), "gpu-bench.json", here),
        Check("rehearsal-wan21", rehearsal("wan21-1.3b"), 180),
        Check("rehearsal-wan22", rehearsal("wan22-5b"), 180),
        Check(
            "nano",
            [python, "-m", "pipelines", "run", "data", "teacher", "distill", "eval", "--runs", str(runs), *ONE_GPU[1:]],
            TOTAL_SECONDS,
            reads="nano/report/report.json",
        ),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, default=TOTAL_SECONDS, metavar="S", help="for all checks (default: %(default)g)"
    )


def execute(options: argparse.Namespace) -> int:
    """Runs the checks. Returns 1 where there is no GPU or a check failed, else 0."""
    if not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} sees no CUDA device here", file=sys.stderr)
        return FAILED
    runs = Path(options.runs).expanduser().resolve() / "gpu-check"
    results = run_checks(checks(runs), machine(), runs / "gpu-check.json", options.seconds)
    return OK if all(r["state"] == "passed" for r in results["checks"].values()) else FAILED


def machine() -> dict[str, Any]:
    """Returns what the figures depend on: GPU, memory, versions, commit."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "flash_attn": importlib.util.find_spec("flash_attn") is not None,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "git_sha": git_sha(),
    }


def run_checks(
    given: Sequence[Check],
    about: Mapping[str, Any],
    path: Path,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Runs the checks within `seconds` in all and returns their results, which are in `path` after every check."""
    results: dict[str, Any] = {"machine": dict(about), "checks": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    started = clock()
    for check in given:
        left = seconds - (clock() - started)
        missing = [name for name in check.needs if importlib.util.find_spec(name) is None]
        if missing:
            result: dict[str, Any] = {"state": "left out", "reason": f"not installed: {', '.join(missing)}"}
        elif left < 5:
            result = {"state": "left out", "reason": f"the {seconds:g} s for all checks were over"}
        else:
            result = run_check(check, min(check.seconds, left), path.parent)
        results["checks"][check.name] = result
        _write(path, results)
        print(f"gpu-check: {check.name}: {result['state']} {result.get('reason', '')}".rstrip(), flush=True)
    print(f"gpu-check: results in {path}")
    return results


def run_check(check: Check, seconds: float, runs: Path) -> dict[str, Any]:
    """Runs one check and returns its state, its time, the end of its output, and the figures that it left."""
    started = time.monotonic()
    log = runs / f"{check.name}.log"
    with open(log, "w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            check.command,
            cwd=CHECKOUT,
            env=os.environ | dict(check.environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            state = "failed" if process.wait(seconds) else "passed"
        except subprocess.TimeoutExpired:
            state = "ran out of time"
        finally:
            _end(process)
    result: dict[str, Any] = {"state": state, "seconds": round(time.monotonic() - started, 1)}
    if state != "passed":
        result["output"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    figures = runs / check.reads
    if check.reads and figures.is_file():
        result["figures"] = json.loads(figures.read_text())
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a check with all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _write(path: Path, results: Mapping[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    aside.replace(path)
