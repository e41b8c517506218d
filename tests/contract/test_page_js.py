"""The page's JavaScript passes eslint and the type checker, and both would catch a mistake. They run where node is present and
`make js-check` has installed them (tests/browser/js/node_modules)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from infra.files import CHECKOUT

TOOLS = CHECKOUT / "tests" / "browser" / "js"
PAGE = Path("demo") / "page" / "js"
pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (TOOLS / "node_modules").is_dir(),
    reason="node or its modules are missing here: `make js-check` installs the modules",
)


def check(root: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = ["npm", "run", "--silent", script]
    folder = root / "tests" / "browser" / "js"
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The page's modules and the checkers' settings, elsewhere."""
    shutil.copytree(CHECKOUT / PAGE, tmp_path / PAGE)
    target = tmp_path / TOOLS.relative_to(CHECKOUT)
    shutil.copytree(TOOLS, target, ignore=shutil.ignore_patterns("node_modules"))
    (target / "node_modules").symlink_to(TOOLS / "node_modules")
    return tmp_path


@pytest.mark.parametrize("script", ["lint", "types"])
def test_the_page_passes(script: str) -> None:
    done = check(CHECKOUT, script)
    assert done.returncode == 0, done.stdout + done.stderr


ACK = """/** @param {import("./session.js").Session} session */\nexport const planted = (session) => session.ack("one", 2);"""


@pytest.mark.parametrize(("script", "line"), [("lint", "var planted = 1;"), ("types", ACK)])
def test_a_mistake_is_caught(copy: Path, script: str, line: str) -> None:
    with open(copy / PAGE / "stream.js", "a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = check(copy, script)
    assert done.returncode != 0 and "stream.js" in done.stdout, done.stdout + done.stderr
