"""docs/GPU.md: its table of settings is that of the full presets, whole and true; its commands name what exists."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.settings import Config, load
from infra.files import CHECKOUT

PAGE = (CHECKOUT / "docs" / "GPU.md").read_text()
PRESETS = ("wan21-1.3b", "wan22-5b")
# Of the nano base, of benchmarks, of planning and exporting, and what the command line sets.
ELSEWHERE = {
    "phase1",
    "phase1_context",
    "base",
    "tiny_base",
    "vae_training",
    "sweep",
    "bench",
    "tracker_bench",
    "bench_data",
    "export",
    "plan",
    "demo",
}
ELSEWHERE |= {"preset", "seed", "runs", "src"}


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted setting -> its value."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        name = f"{prefix}{field.name}"
        out |= leaves(inner, f"{name}.") if dataclasses.is_dataclass(inner) else {name: inner}
    return out


def table() -> dict[str, tuple[str, str]]:
    """Setting -> the two values written."""
    rows: dict[str, tuple[str, str]] = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or not cells[0].startswith("`"):
            continue
        names = re.findall(r"`([^`]+)`", cells[0])
        values = [[part.strip() for part in cell.split(";")] for cell in cells[1:3]]
        assert all(len(v) == len(names) for v in values), line
        assert cells[3], line
        rows |= {name: (values[0][i], values[1][i]) for i, name in enumerate(names)}
    return rows


def same(written: str, value: Any) -> bool:
    if isinstance(value, str):
        return written == value
    read = yaml.safe_load(written)
    if isinstance(value, tuple):
        return list(value) == read
    return float(read) == float(value)


@pytest.fixture(scope="module")
def settings() -> list[dict[str, Any]]:
    return [leaves(load(preset)) for preset in PRESETS]


def test_every_setting_of_the_full_presets_is_in_the_table_with_its_value(settings):
    rows = table()
    wanted = {name for name in settings[0] if name.partition(".")[0] not in ELSEWHERE}
    assert sorted(wanted - set(rows)) == []
    assert sorted(set(rows) - wanted) == []
    wrong = [
        f"{name} in {preset}: {rows[name][i]} written, {settings[i][name]} set"
        for i, preset in enumerate(PRESETS)
        for name in sorted(wanted & set(rows))
        if not same(rows[name][i], settings[i][name])
    ]
    assert wrong == []
    assert {f.name for f in dataclasses.fields(Config)} >= ELSEWHERE


def test_files_and_links_that_the_page_names_are_there():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (CHECKOUT / "docs" / target).resolve().is_file(), target
    for path in re.findall(r"infra/[\w./]+\.(?:sh|yaml)|infra/docker/Dockerfile", PAGE):
        assert (CHECKOUT / path).is_file(), path


def launches() -> list[dict[str, str]]:
    """GPUS and ARGS of every row of the table of numbers of GPUs."""
    section = PAGE.split("### Slurm")[0].split("## Launch")[1]
    spans = [shlex.split(span) for span in re.findall(r"`([^`\n]+)`", section)]
    given = [dict(word.split("=", 1) for word in words if word.startswith(("GPUS=", "ARGS="))) for words in spans]
    return [variables for variables in given if variables]


def test_the_numbers_of_gpus_are_those_of_the_table():
    assert {variables.get("GPUS", "") for variables in launches()} == {"1", "", "64"}


@pytest.mark.slow
@pytest.mark.parametrize("variables", launches(), ids=str)
def test_what_the_page_sets_for_a_number_of_gpus_is_sound(variables):
    gpus = variables.get("GPUS", "")
    for preset in PRESETS:
        cfg = load(preset, variables.get("ARGS", "").split(), gpus=gpus)
        assert cfg.compute.workers == int(gpus or 8)


def test_variables_that_the_page_says_are_passed_are_those_that_are():
    from infra.shared import PASSED, SHIPPED

    line = next(line for line in PAGE.splitlines() if line.startswith("- **The environment**"))
    assert set(re.findall(r"`([A-Z_]+_)`", line)) == set(PASSED)
    line = next(line for line in PAGE.splitlines() if line.startswith("- **The code**"))
    assert set(SHIPPED) <= set(re.findall(r"`(\w+)`", line))
    assert Path(CHECKOUT / "infra" / "docker" / "compose.yaml").is_file()
