"""Checks the versions of libraries whose private attributes are used: only tested versions are started.

A private attribute may be renamed or change its meaning in any release. Trainings would then fail late or block for
minutes, instead of stopping at once.
"""

from __future__ import annotations

from importlib import metadata

from packaging.specifiers import SpecifierSet

# The same ranges as in pyproject.toml; a test compares the two.
TESTED = {"deepspeed": ">=0.19.8,<0.20", "ray": ">=2.60,<2.61"}


def require_tested(name: str) -> None:
    """Raises ValueError where the package `name` is not installed, or its version is outside the tested range."""
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        found = ""
    if found and SpecifierSet(TESTED[name]).contains(found, prereleases=True):
        return
    problem = f"{name} {found} is installed" if found else f"{name} is not installed"
    raise ValueError(
        f"{problem}. This project uses private attributes of {name} and was tested with {name}{TESTED[name]} only. "
        f"Install the pinned versions: bash infra/env/setup.sh"
    )
