"""Checks that a test run leaves the checkout as it was: `python -m tests.worktree save FILE`, then `... check FILE`.

Uncommitted edits from before are no failure: the lists of `git status` before and after are compared. Ignored files count too,
except for the environment and the caches of the tools.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infra.files import CHECKOUT

CACHES = {".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".import_linter_cache", ".pytest_cache"}


def status(folder: Path) -> list[str] | None:
    """The lines of `git status`, ignored files included and caches left out; None outside of a git checkout."""
    command = ["git", "-C", str(folder), "status", "--porcelain", "--ignored"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if done.returncode:
        return None
    return [line for line in done.stdout.splitlines() if not _is_cache(line[3:])]


def _is_cache(name: str) -> bool:
    return any(part in CACHES or part.endswith(".egg-info") for part in Path(name.strip('"')).parts)


def new_lines(before: list[str], after: list[str]) -> list[str]:
    """What `git status` lists now and did not list before."""
    return [line for line in after if line not in before]


def main(action: str, file: str) -> int:
    """Saves the list, or compares with the saved one. Returns the exit status: 1 where files were left."""
    lines = status(CHECKOUT)
    if lines is None:
        print(f"{CHECKOUT} is no git checkout: whether the tests leave files in it is not checked")
        return 0
    if action == "save":
        Path(file).write_text("\n".join(lines))
        return 0
    left = new_lines(Path(file).read_text().splitlines(), lines)
    if left:
        print(
            "The tests changed the checkout; a test writes into tmp_path only. New in `git status --porcelain --ignored`"
        )
        print("(with your own edits made while the tests ran):", *left, sep="\n  ")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
