"""The import contracts hold, and would catch a breach; no module imports itself through others."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from infra.files import CHECKOUT

PACKAGES = ("msmodel", "stages", "infra", "configs", "demo", "pipelines")
BREACHES = [
    ("msmodel/flow.py", "import ray"),
    ("stages/contracts.py", "import mlflow"),
    ("stages/records.py", "import infra.store"),
    ("infra/store.py", "import stages.records"),
    ("infra/engine.py", "import stages.train.loop"),
    ("msmodel/config.py", "import stages.records"),
    ("configs/tree.py", "import pipelines.data"),
    ("demo/server/app.py", "import pipelines.results"),
    ("pipelines/run.py", "import demo.client"),
]


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


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The packages' sources and the contracts, elsewhere."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        for source in (CHECKOUT / package).rglob("*.py"):
            target = folder / source.relative_to(CHECKOUT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    shutil.copyfile(CHECKOUT / "pyproject.toml", folder / "pyproject.toml")
    return folder


@pytest.fixture(scope="module")
def whole(copy):
    """What the linter answers to the sources as they are."""
    return lint(copy)


@pytest.fixture(scope="module")
def breached(copy, whole):
    """What the linter answers to the sources with every breach planted in them."""
    for file, line in BREACHES:
        with open(copy / file, "a") as f:
            f.write(f"\n{line}\n")
    return lint(copy)


def test_contracts_hold(whole):
    assert whole.returncode == 0, whole.stdout + whole.stderr


@pytest.mark.parametrize(("file", "line"), BREACHES)
def test_a_planted_breach_is_caught(breached, file, line):
    assert breached.returncode == 1, breached.stdout + breached.stderr
    assert "BROKEN" in breached.stdout
    importer = file.removesuffix(".py").replace("/", ".")
    imported = line.removeprefix("import ")
    assert re.search(rf"-\s+{re.escape(importer)} -> {re.escape(imported)} \(l\.", breached.stdout), breached.stdout


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    files = (f for package in PACKAGES for f in (CHECKOUT / package).rglob("*.py"))
    return {".".join(f.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """Yields the project's modules that a source imports anywhere: late, and for types only (TYPE_CHECKING), too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
            yield from submodules
            if node.module in known and len(submodules) < len(node.names):
                yield node.module


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Returns the groups of modules that import each other: those that stay when modules which import none, or which none
    imports, are taken away again and again."""
    left = {module: set(targets) for module, targets in graph.items()}
    while ends := [m for m, targets in left.items() if not targets or not any(m in t for t in left.values())]:
        left = {m: t.difference(ends) for m, t in left.items() if m not in ends}
    return [[m, *sorted(t)] for m, t in sorted(left.items())]


def test_no_module_imports_itself_through_others():
    known = modules()
    graph = {name: set(imported(ast.parse(file.read_text()), known)) - {name} for name, file in known.items()}
    assert len(graph) > 100 and any(graph.values())
    assert cycles(graph) == []


def test_a_cycle_is_found():
    known = {"a": Path(), "b": Path(), "c": Path(), "d": Path()}
    sources = {
        "a": "if TYPE_CHECKING:\n  from b import x",
        "b": "import c",
        "c": "def f():\n  import a",
        "d": "import a",
    }
    graph = {name: set(imported(ast.parse(sources[name]), known)) for name in known}
    assert cycles(graph) == [["a", "b"], ["b", "c"], ["c", "a"]]
