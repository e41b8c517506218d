"""Stores the results of steps on disk. A step is identified by its key; its manifest, written last, marks it as
finished.

The manifest lies at RUNS/PRESET/<stage>/<first 12 characters of the key>/manifest.json. A folder without a manifest
belongs to an unfinished step, which may be resumed.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from infra.codec import Codec
from infra.files import FolderLock, git_sha, read_json, write_atomic

SCHEMA = 1  # of manifest.json
# Part of every key. Increment it where keys must change although no stage's version does: no earlier result is then reused.
# 2: settings and records were renamed to the field's standard terms, and keys hash those names.
KEY_VERSION = 2


@dataclass(frozen=True)
class Step:
    """One execution of a stage that has a key and a folder of its own.

    key: SHA-256 of KEY_VERSION, the stage's name and version, the seed, the config and the inputs.
    """

    stage: str
    key: str
    folder: Path
    config: Any  # encoded, for the manifest

    @property
    def name(self) -> str:
        """Returns the stage and the beginning of the key, as in the folder's path."""
        return f"{self.stage}/{self.key[:12]}"


@dataclass(frozen=True)
class Failure:
    """One item without a result. expected: whether the stage rejected it; otherwise an error occurred (disk, memory, a
    bug), and a later attempt may succeed."""

    name: str
    reason: str
    expected: bool


@dataclass(frozen=True)
class Manifest:
    """The result of a finished step: its records, the items that failed, the seconds of work, and the provenance."""

    stage: str
    key: str
    records: Any
    failures: tuple[Failure, ...]
    seconds: float
    provenance: dict[str, Any]


class Store:
    """Holds the steps of one preset's run folder: computes their keys, and loads and publishes their manifests."""

    def __init__(self, root: Path, codec: Codec) -> None:
        self.root = root
        self.codec = codec

    def step(self, stage: str, version: int, config: Any, inputs: Any, seed: int) -> Step:
        """Returns the step of a stage with this config, these inputs and this seed."""
        encoded = self.codec.encode(config)
        parts = [KEY_VERSION, stage, version, seed, encoded, self.codec.digest(inputs)]
        key = self.codec.digest(parts)
        return Step(stage, key, self.root / stage / key[:12], encoded)

    def item(self, step: Step, version: int, item: Any, seed: int) -> Step:
        """Returns the step of one item of a per-item step. All steps with the same config share the item's folder, so
        that a new video in SRC adds only its own work."""
        key = self.codec.digest([KEY_VERSION, step.stage, version, seed, step.config, self.codec.digest(item)])
        return Step(step.stage, key, self.root / step.stage / "items" / f"{item_name(item)}-{key[:12]}", step.config)

    def load(self, step: Step) -> Manifest | None:
        """Returns the manifest, or None where the step is unfinished or a file that its records name no longer
        exists."""
        data = read_json(step.folder / "manifest.json")
        if data is None or data["schema"] != SCHEMA or data["key"] != step.key:
            return None
        if not all(path.exists() for path in self.codec.paths(data["records"])):
            return None
        failures = tuple(Failure(**f) for f in data["failures"])
        records = self.codec.decode(data["records"])
        return Manifest(data["stage"], data["key"], records, failures, data["seconds"], data["provenance"])

    def publish(
        self,
        step: Step,
        records: Any,
        seconds: float,
        failures: tuple[Failure, ...] = (),
        provenance: dict[str, Any] | None = None,
    ) -> Manifest:
        """Writes the manifest, which marks the step as finished, and returns it as a later run will read it.

        Raises RuntimeError where the records name files that do not exist.
        """
        data = {
            "schema": SCHEMA,
            "stage": step.stage,
            "key": step.key,
            "config": step.config,
            "records": self.codec.encode(records),
            "failures": [vars(f) for f in failures],
            "seconds": round(seconds, 3),
            "provenance": {"git_sha": git_sha(), "finished": _now(), **(provenance or {})},
        }
        write_atomic(step.folder / "manifest.json", json.dumps(data, indent=1, ensure_ascii=False))
        published = self.load(step)
        if published is None:
            missing = [str(p) for p in self.codec.paths(data["records"]) if not p.exists()]
            raise RuntimeError(f"{step.name}: the stage's records name files that do not exist: {missing[:3]}")
        return published

    def lock(self, step: Step, log: Callable[[str], None]) -> FolderLock:
        """Returns the lock of the step's folder. A process that waits for it logs that once."""
        return FolderLock(step.folder, lambda owner: log(f"{step.name}: waiting for {owner}, which is working on it"))


def item_label(item: Any) -> str:
    """Returns a readable label of an item: the first text field of a record (its id), the label of a list's first item,
    else "item"."""
    if is_dataclass(item) and not isinstance(item, type):
        values = (vars(item)[f.name] for f in fields(item))
        return next((v for v in values if isinstance(v, str) and v), None) or next(
            (item_label(vars(item)[f.name]) for f in fields(item) if is_dataclass(vars(item)[f.name])), "item"
        )
    if isinstance(item, (list, tuple)) and item:
        return item_label(item[0])
    return item if isinstance(item, str) and item else "item"


def item_name(item: Any) -> str:
    """Returns the item's label reduced to characters that a folder's name may contain, at most 48."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(item_label(item)).name).strip("-")[:48] or "item"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
