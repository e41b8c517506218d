"""Ray and DeepSpeed are started in the tested versions only, and an error names what to type."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from infra import engine, versions
from infra.config import ComputeConfig
from infra.files import CHECKOUT
from infra.ray_session import RaySession
from infra.versions import TESTED, require_tested


@pytest.fixture
def installed(monkeypatch):
    """Replaces the installed version of a package."""

    def replace(name: str, version: str) -> None:
        real = metadata.version
        monkeypatch.setattr(versions.metadata, "version", lambda asked: version if asked == name else real(asked))

    return replace


@pytest.mark.parametrize("name", sorted(TESTED))
def test_what_is_installed_here_is_in_the_tested_range_and_pyproject_asks_for_the_same(name):
    require_tested(name)
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    (wanted,) = [r for r in map(Requirement, project["dependencies"]) if r.name == name]
    assert wanted.specifier == SpecifierSet(TESTED[name])


@pytest.mark.parametrize(("name", "version"), [("ray", "2.61.0"), ("ray", "2.9.3"), ("deepspeed", "0.20.0")])
def test_another_version_is_refused_with_what_was_found_what_was_tested_and_what_to_type(installed, name, version):
    installed(name, version)
    with pytest.raises(ValueError, match=f"{name} {version} is installed") as error:
        require_tested(name)
    assert f"{name}{TESTED[name]}" in str(error.value)
    assert str(error.value).endswith("bash infra/env/setup.sh")
    assert (CHECKOUT / "infra" / "env" / "setup.sh").is_file()


def test_a_patch_release_and_a_local_build_are_accepted(installed):
    installed("ray", "2.60.3+cluster")
    require_tested("ray")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(TESTED, "no-such-package", ">=1")
    with pytest.raises(ValueError, match="no-such-package is not installed"):
        require_tested("no-such-package")


@pytest.mark.parametrize(
    ("name", "training", "refused"),
    [("ray", "torch", True), ("deepspeed", "deepspeed", True), ("deepspeed", "torch", False)],
)
def test_a_session_stops_before_it_starts_ray(installed, monkeypatch, tmp_path: Path, name, training, refused):
    """DeepSpeed is checked with Ray, before the data stages run, but only where the settings use it."""
    lines: list[str] = []
    installed(name, "99.0")
    monkeypatch.setattr("infra.ray_session._set_environment", lambda: lines.append("started"))
    monkeypatch.setattr("ray.init", lambda **options: (_ for _ in ()).throw(ConnectionError("not in this test")))
    with pytest.raises(ValueError, match=f"{name} 99.0" if refused else "not in this test"):
        RaySession(ComputeConfig(engine=training), print, tmp_path).start()
    assert lines == ([] if refused else ["started"])


def test_an_engine_checks_deepspeed_itself(installed):
    installed("deepspeed", "99.0")
    with pytest.raises(ValueError, match=r"deepspeed 99\.0"):
        engine._deepspeed()
