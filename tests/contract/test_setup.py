"""The commands install what they need; tests, linters and notebooks add the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.files import CHECKOUT


@pytest.fixture
def folder(tmp_path):
    """A checkout with the script and a fake uv that notes its arguments."""
    (tmp_path / "infra" / "env").mkdir(parents=True)
    (tmp_path / "infra" / "env" / "constraints.txt").write_text("torch==0\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(CHECKOUT / "infra" / "env" / "setup.sh", tmp_path / "infra" / "env")
    for name, line in {"python": "exit 0", "uv": 'echo "$* compile=${UV_COMPILE_BYTECODE:-}" >> calls'}.items():
        (tmp_path / ".venv" / "bin" / name).write_text(f"#!{shutil.which('bash')}\n{line}\n")
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    return tmp_path


def setup(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(folder / "infra" / "env" / "setup.sh"), *words],
        env=os.environ | {"PYTHON": sys.executable, "TORCH_BUILD": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("build", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("words", "project", "stamps"),
    [((), ".", {".stamp"}), (("runtime",), ".", {".stamp"}), (("dev",), ".[dev]", {".stamp", ".stamp-dev"})],
)
def test_each_set_is_installed_with_the_pins_and_leaves_its_stamps(folder, words, project, stamps, build):
    done = setup(folder, *words, TORCH_BUILD=build)
    assert done.returncode == 0, done.stderr
    install, assets = (line.partition(" compile=")[0] for line in (folder / "calls").read_text().splitlines())
    assert install.endswith(f" -e {project}") and "constraints" in install
    assert assets == "pip install --no-deps -r infra/env/assets.txt"
    assert {path.name for path in (folder / ".venv").glob(".stamp*")} == stamps


@pytest.mark.parametrize(
    ("given", "compiled"),
    [
        ({"PYTHONDONTWRITEBYTECODE": "1"}, "1"),
        ({"PYTHONDONTWRITEBYTECODE": "1", "UV_COMPILE_BYTECODE": "0"}, "0"),
        ({}, ""),
    ],
)
def test_packages_are_compiled_once_where_python_may_not_cache_that(folder, monkeypatch, given, compiled):
    for name in ("PYTHONDONTWRITEBYTECODE", "UV_COMPILE_BYTECODE"):
        monkeypatch.delenv(name, raising=False)
    assert setup(folder, **given).returncode == 0
    assert {line.partition(" compile=")[2] for line in (folder / "calls").read_text().splitlines()} == {compiled}


def test_an_unknown_set_is_refused_before_anything_is_installed(folder):
    done = setup(folder, "test")
    assert done.returncode == 2
    assert "infra/env/setup.sh test: the word after it is runtime (as without one) or dev" in done.stderr
    assert not (folder / "calls").exists()


@pytest.mark.parametrize(
    ("target", "set_"),
    [
        *(
            (name, "")
            for name in ("setup", "data", "teacher", "distill", "eval", "plan", "demo", "sweep", "bench", "ui")
        ),
        *(
            (name, " dev")
            for name in ("lint", "test", "test-gpu", "notebooks", "demo-check", "kill-test", "slurm-check")
        ),
    ],
)
def test_a_target_sets_up_what_it_needs(target, set_):
    words = ["make", "-n", "-W", "pyproject.toml", target]
    out = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    called = [line.partition("bash ")[2] for line in out.splitlines() if "infra/env/setup.sh" in line]
    assert called[:1] == [f"infra/env/setup.sh{set_}"]
