"""Versions of the libraries whose private attributes are used: no other than the tested ones are started.

A private attribute may be renamed or change its meaning in any release, and then trainings fail late or wait for minutes
instead of stopping at once.
"""

from __future__ import annotations

from importlib import metadata

from packaging.specifiers import SpecifierSet

# As in pyproject.toml; a test compares the two.
TESTED = {"deepspeed": ">=0.19.8,<0.20", "ray": ">=2.60,<2.61"}


def require_tested(name: str) -> None:
    """Raises ValueError where the installed version of `name` is missing or outside the range that was tested."""
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
