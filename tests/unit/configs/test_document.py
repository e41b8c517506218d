"""docs/settings.md is generated: complete, and as the code has it."""

from __future__ import annotations

import pytest

from configs import document
from configs.document import PAGE, meaning, readers, settings
from tests.golden.test_defaults import defaults

BY_KEY = {setting.key: setting for setting in settings()}


@pytest.mark.slow
def test_the_page_is_what_the_code_gives():
    assert PAGE.read_text() == document.page(), "docs/settings.md is stale: run `python -m configs.document`"


def test_every_setting_is_on_it_with_a_meaning():
    assert set(BY_KEY) == set(defaults())
    assert [key for key, setting in BY_KEY.items() if not meaning(setting)] == []


def test_a_meaning_is_the_comment_else_the_docstrings_entry_else_the_bases():
    assert meaning(BY_KEY["student.window"]).startswith("chunks just before the current one that stay in the cache")
    assert meaning(BY_KEY["demo.margin_ms"]).startswith("how long before it is needed a chunk should arrive")
    assert meaning(BY_KEY["adapt.lr"]) == meaning(BY_KEY["dmd.lr"]) == "learning rate"


@pytest.mark.slow
def test_a_setting_names_the_modules_that_read_it():
    assert "msmodel/cache.py" in readers(BY_KEY["student.window"])
    assert "stages/train/loop.py" in readers(BY_KEY["teacher.log_steps"])
    assert "demo/server/serve.py" in readers(BY_KEY["demo.port"])


@pytest.mark.slow
def test_reads_through_a_local_name_and_in_the_declaring_module_count():
    found = readers(BY_KEY["student.window"])
    assert {"stages/train/context.py", "stages/eval/bench.py", "pipelines/commands/plan/tables.py"} <= set(found)
    assert "msmodel/config.py" not in found  # there it is only checked
    assert readers(BY_KEY["adapt.sinks"]) == readers(BY_KEY["adapt.windows"]) == ["stages/train/adapt.py"]


def test_presets_and_types_are_stated():
    text = document.page()
    row = next(line for line in text.splitlines() if line.startswith("| `clip.height` "))
    assert row.split(" | ")[1:4] == ["int", "`480`", "debug: 32<br>nano: 40<br>wan22-5b: 704"]
    assert "| `dit.patch` | list of 3 int | `[1,2,2]` |" in text
