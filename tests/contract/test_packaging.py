"""The packages are importable from any folder, a wheel holds their data, and the commands need no test dependency."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from infra.files import CHECKOUT

PACKAGES = ("configs", "demo", "infra", "msmodel", "pipelines", "stages")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    """A distribution's name as the package index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    """The names in requirement lines."""
    return {canonical(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in requirements}


def sources() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((CHECKOUT / package).rglob("*.py"))]


def imported(file: Path) -> set[str]:
    """Top-level modules that a file imports, also late."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def test_the_packages_are_importable_from_any_folder(tmp_path):
    code = f"import {', '.join(PACKAGES)}; print(msmodel.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(CHECKOUT / "msmodel" / "__init__.py")


def test_the_console_script_names_a_function():
    (script,) = metadata.distribution("motionstream").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("motionstream", PROJECT["scripts"]["motionstream"])
    assert callable(script.load())
    assert (Path(sys.executable).parent / "motionstream").is_file()


DEVELOPMENT = {"demo/record_pictures.py: playwright"}  # `make pictures` is for developers


@pytest.mark.slow
def test_every_module_that_the_commands_import_is_a_declared_runtime_dependency():
    runtime = declared(PROJECT["dependencies"])
    distributions = metadata.packages_distributions()
    missing = {
        f"{file.relative_to(CHECKOUT)}: {module}"
        for file in sources()
        for module in imported(file) - set(PACKAGES) - set(sys.stdlib_module_names)
        if not runtime & {canonical(name) for name in distributions.get(module, [module])}
    }
    assert missing - DEVELOPMENT == set()


def test_no_dependency_is_declared_twice_and_all_are_pinned():
    runtime, dev = declared(PROJECT["dependencies"]), declared(PROJECT["optional-dependencies"]["dev"])
    assert runtime & dev == set()
    pins = declared((CHECKOUT / "infra" / "env" / "constraints.txt").read_text().split())
    assert (runtime | dev) - pins == set()


@pytest.mark.slow
def test_a_wheel_holds_every_tracked_file_of_the_packages_and_the_licences(tmp_path):
    command = ["git", "-C", str(CHECKOUT), "ls-files", "pyproject.toml", "LICENSE", "NOTICE", *PACKAGES]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / name, tmp_path / "source" / name)
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    (tmp_path / "wheels").mkdir()
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path / "wheels")],
        cwd=tmp_path / "source",
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "wheels").iterdir()
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in files if "/" in name} - held == set()
    assert {Path(name).name for name in held if "/licenses/" in name} == {"LICENSE", "NOTICE"}
