"""Results are found by what they are: the type of their record, in the step that made them, oldest first."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.codec import Codec
from infra.results import published
from infra.store import Store


@dataclass(frozen=True)
class Weights:
    name: str
    folder: str
    digest: str = ""


@dataclass(frozen=True)
class Other:
    text: str
    made_from: Weights | None = None


def finish(root: Path, stage: str, finished: str, *names: str, mentions: Weights | None = None) -> list[Weights]:
    """A finished step of the stage with a record of each name, and perhaps one that another step made."""
    store = Store(root, Codec((Weights, Other), root))
    step = store.step(stage, 1, None, (names, finished), 0)
    made = []
    for name in names:
        (step.folder / name).mkdir(parents=True)
        made.append(Weights(name, str(step.folder / name), name + finished))
    step.folder.mkdir(parents=True, exist_ok=True)
    store.publish(step, {"made": made, "about": [Other("x", mentions)]}, 1.0, provenance={"finished": finished})
    return made


def test_records_are_found_whichever_stage_made_them_oldest_first(tmp_path):
    (new,) = finish(tmp_path, "a", "2026-03-01", "student")
    old = finish(tmp_path, "b", "2026-01-01", "student", "critic")
    found = published(tmp_path, Weights)
    assert [p.record for p in found] == [*old, new]
    assert [p.manifest["stage"] for p in found] == ["b", "b", "a"]
    assert published(tmp_path / "empty", Weights) == []


def test_a_record_counts_where_it_was_made_and_only_while_it_is_there(tmp_path):
    (made,) = finish(tmp_path, "a", "2026-01-01", "student")
    finish(tmp_path, "report", "2026-02-01", mentions=made)
    assert [p.manifest["stage"] for p in published(tmp_path, Weights)] == ["a"]
    shutil.rmtree(made.folder)
    assert published(tmp_path, Weights) == []


def test_records_of_types_that_are_not_known_here_do_not_matter_and_a_damaged_manifest_does(tmp_path):
    finish(tmp_path, "a", "2026-01-01", "student")
    (path,) = tmp_path.glob("a/*/manifest.json")
    path.write_text(path.read_text().replace('"@": "Other"', '"@": "OfALaterVersion"'))
    assert len(published(tmp_path, Weights)) == 1
    path.write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        published(tmp_path, Weights)
