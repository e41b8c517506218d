"""Finds finished results in a run's folder by record type, independent of the stage that made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from infra.codec import Codec
from infra.files import read_json
from msmodel.io.weights import read_config


class InFolder(Protocol):
    """A record whose content lies in a folder."""

    @property
    def folder(self) -> str: ...


class Named(InFolder, Protocol):
    """A record of a model's weights."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=InFolder)
M = TypeVar("M", bound=Named)


@dataclass(frozen=True)
class Published(Generic[T]):
    """One record with the manifest (decoded JSON) of the step that made it; {} for a record from outside the run."""

    record: T
    manifest: dict[str, Any]


def published(root: Path, kind: type[T]) -> list[Published[T]]:
    """Returns every record of type `kind` that a finished step made in the run's folder, oldest first.

    root: RUNS/PRESET. kind: a record type with a `folder`. A record is returned only with the step that made it, not
    with later steps that mention it, and not where its folder no longer exists. Raises ValueError for a damaged
    manifest.
    """
    codec = Codec((kind,), root)
    found: list[Published[T]] = []
    for folder, manifest in manifests(root):
        for data in _records(manifest["records"], kind.__name__):
            record = codec.decode(data)
            place = Path(record.folder)
            if place.is_relative_to(folder) and place.is_dir():
                found.append(Published(record, manifest))
    return found


def published_models(root: Path, kind: type[M], name: str, model: type) -> list[Published[M]]:
    """Returns the records of that name whose config.json names the class `model`, oldest first, whichever stage made them."""
    found = (p for p in published(root, kind) if p.record.name == name)
    return [p for p in found if read_config(p.record.folder).get("class") == model.__name__]


def manifests(root: Path, stage: str = "*") -> list[tuple[Path, dict[str, Any]]]:
    """Returns folder and manifest (decoded JSON) of every finished step in the run's folder, or of one stage, oldest first.

    Raises ValueError for a damaged manifest.
    """
    found = [(path.parent, read_json(path)) for path in sorted(root.glob(f"{stage}/*/manifest.json"))]
    finished = [(folder, manifest) for folder, manifest in found if manifest is not None]
    return sorted(finished, key=lambda step: step[1]["provenance"]["finished"])


def _records(data: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yields every encoded record of the named type in the JSON of a manifest."""
    if isinstance(data, dict):
        if data.get("@") == name:
            yield data
        else:
            for value in data.values():
                yield from _records(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from _records(value, name)
