"""The import contracts hold, and would catch a breach."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.files import CHECKOUT

PACKAGES = ("msmodel", "stages", "infra", "configs", "demo", "pipelines")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [*command, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path):
    """The four packages' sources and the contracts, elsewhere."""
    for package in PACKAGES:
        for source in (CHECKOUT / package).rglob("*.py"):
            target = tmp_path / source.relative_to(CHECKOUT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    shutil.copyfile(CHECKOUT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def test_contracts_hold(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("msmodel/flow.py", "import ray"),
        ("stages/contracts.py", "import mlflow"),
        ("stages/records.py", "import infra.store"),
        ("infra/store.py", "import stages.records"),
        ("msmodel/config.py", "import stages.records"),
        ("demo/server/app.py", "import pipelines.results"),
        ("pipelines/run.py", "import demo.client"),
    ],
)
def test_a_planted_breach_is_caught(copy, file, line):
    with open(copy / file, "a") as f:
        f.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout
