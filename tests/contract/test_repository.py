"""The files that a hosting service and contributors read: valid by their published schemas, and true of this project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra.files import CHECKOUT

SCHEMAS = {
    ".github/workflows/ci.yml": "github-workflows",
    ".github/workflows/full.yml": "github-workflows",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    "CITATION.cff": "citation-file-format",
}
MISTAKES = {
    ".github/workflows/ci.yml": ("runs-on:", "run-on:"),
    ".github/workflows/full.yml": ("pull_request:", "pull_requests:"),
    ".github/ISSUE_TEMPLATE/bug.yml": ("type: textarea", "type: text"),
    "CITATION.cff": ("title:", "heading:"),
}


def check(file: Path, schema: str) -> subprocess.CompletedProcess[str]:
    """The published schema comes with check-jsonschema: no network."""
    program = Path(sys.executable).parent / "check-jsonschema"
    command = [str(program), "--builtin-schema", f"vendor.{schema}", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_all_of_them_are_checked():
    found = {str(f.relative_to(CHECKOUT)) for f in (CHECKOUT / ".github").rglob("*.yml")}
    assert found == {name for name in SCHEMAS if name.startswith(".github")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_it_follows_its_published_schema(name):
    done = check(CHECKOUT / name, SCHEMAS[name])
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(name, tmp_path):
    old, new = MISTAKES[name]
    text = (CHECKOUT / name).read_text()
    assert old in text
    wrong = tmp_path / Path(name).name
    wrong.write_text(text.replace(old, new))
    assert check(wrong, SCHEMAS[name]).returncode == 1


def steps(workflow: str) -> list[str]:
    """The commands of a workflow."""
    jobs = yaml.safe_load((CHECKOUT / ".github" / "workflows" / workflow).read_text())["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def events(workflow: str) -> set[str]:
    read = yaml.safe_load((CHECKOUT / ".github" / "workflows" / workflow).read_text())
    return set(read[True])  # YAML 1.1 reads the key `on` as true


def test_a_push_runs_the_fast_loop_and_a_pull_request_and_the_night_run_everything():
    assert "make check" in steps("ci.yml") and "push" in events("ci.yml")
    assert steps("full.yml") == [".ci/run"]
    assert {"schedule", "pull_request"} <= events("full.yml")
    assert (CHECKOUT / ".ci" / "run").stat().st_mode & 0o100


def test_the_hooks_are_valid_and_run_the_linters_of_make_lint():
    program = Path(sys.executable).parent / "pre-commit"
    file = CHECKOUT / ".pre-commit-config.yaml"
    done = subprocess.run([program, "validate-config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (local, _) = yaml.safe_load(file.read_text())["repos"]
    hooks = {hook["entry"].split()[0] for hook in local["hooks"]}
    recipe = (CHECKOUT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert hooks == set(re.findall(r"\.venv/bin/[\w-]+", recipe))


def test_only_shipped_weights_and_pictures_may_be_large():
    (hook,) = [
        hook
        for repository in yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repository["hooks"]
        if hook["id"] == "check-added-large-files"
    ]
    most = 1024 * int(re.search(r"--maxkb=(\d+)", hook["args"][0])[1])
    command = ["git", "-C", str(CHECKOUT), "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    present = [name for name in files if (CHECKOUT / name).is_file()]
    large = [name for name in present if (CHECKOUT / name).stat().st_size > most]
    assert [name for name in large if not re.search(hook["exclude"], name)] == []


def test_the_files_that_contributing_names_exist():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:stages|tests|configs|pipelines|infra|docs|msmodel|\.ci)/[\w./-]*)`", text))
    assert len(named) > 10
    assert sorted(name for name in named if not (CHECKOUT / name).exists()) == []


def test_the_version_is_one():
    version = re.search(r'^version = "(.*)"', (CHECKOUT / "pyproject.toml").read_text(), re.M)[1]
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert citation["version"] == version
    released = version.partition(".dev")[0]
    changes = (CHECKOUT / "CHANGELOG.md").read_text()
    assert f"## [{released}]" in changes or (".dev" in version and f"Version {released}." in changes)
