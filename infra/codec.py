"""Encodes records and configs as canonical JSON, and decodes them. A record is {"@": type name, field: value...}."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from msmodel.config import OPTION

# Placeholders for the run's folder and the Python environment, so that both can be moved without a change of keys.
RUN_MARK, ENVIRONMENT_MARK = "@run/", "@env/"


IDENTITY = ("digest", "name", "split")  # fields that identify a record with a digest: its content and its role


class Codec:
    """Encodes and decodes values. It is given the record types, and the run's folder, to which stored paths are
    relative."""

    def __init__(self, record_types: Iterable[type], root: Path) -> None:
        self.types = {t.__name__: t for t in record_types}
        self.root = str(root)
        self.places = {RUN_MARK: f"{root}/", ENVIRONMENT_MARK: f"{Path(sys.prefix).resolve()}/"}

    def encode(self, value: Any) -> Any:
        """Returns `value` as plain JSON data. Raises ValueError for a value that is no dataclass, container or
        scalar."""
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, (str, Path)):
            text = str(value)
            for mark, place in self.places.items():
                if text.startswith(place):
                    return mark + text[len(place) :]
            return text
        if is_dataclass(value) and not isinstance(value, type):
            return {"@": type(value).__name__} | {n: self.encode(vars(value)[n]) for n in _counted(value)}
        if isinstance(value, Mapping):
            return {str(k): self.encode(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.encode(v) for v in value]
        raise ValueError(f"a {type(value).__name__} cannot go into a record or a step's key: {value!r}")

    def decode(self, value: Any, hint: Any = None) -> Any:
        """Returns the value that `encode` was given. Records are rebuilt by type name; sequences become tuples unless
        the type `hint` is a list. Raises ValueError for an unknown record type or field."""
        if isinstance(value, str):
            mark = value[: len(RUN_MARK)]
            return self.places[mark] + value[len(mark) :] if mark in self.places else value
        if isinstance(value, list):
            item = _item_hint(hint)
            return (list if get_origin(hint) is list else tuple)(self.decode(v, item) for v in value)
        if isinstance(value, dict) and "@" in value:
            return self._record(value)
        if isinstance(value, dict):
            arguments = get_args(hint)
            return {k: self.decode(v, arguments[1] if len(arguments) == 2 else None) for k, v in value.items()}
        if isinstance(value, int) and hint is float:
            return float(value)
        return value

    def _record(self, data: Mapping[str, Any]) -> Any:
        name = data["@"]
        if name not in self.types:
            raise ValueError(f"unknown record type {name!r}: these are known: {', '.join(sorted(self.types))}")
        kind = self.types[name]
        hints = get_type_hints(kind)
        known = {f.name for f in fields(kind)}
        unknown = sorted(set(data) - known - {"@"})
        if unknown:
            raise ValueError(f"record {name} on disk has fields this version does not know: {', '.join(unknown)}")
        return kind(**{k: self.decode(v, hints[k]) for k, v in data.items() if k != "@"})

    def identity(self, value: Any) -> Any:
        """Returns JSON data that identifies `value` independently of its place on disk: like `encode`, but a record
        with a digest of its content is reduced to the fields in IDENTITY."""
        if is_dataclass(value) and not isinstance(value, type):
            kept = IDENTITY if vars(value).get("digest") else _counted(value)
            return {"@": type(value).__name__} | {n: self.identity(vars(value)[n]) for n in kept if n in vars(value)}
        if isinstance(value, Mapping):
            return {str(k): self.identity(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.identity(v) for v in value]
        return self.encode(value)

    def digest(self, value: Any) -> str:
        """Returns the SHA-256 of the canonical JSON of `identity(value)`, which does not depend on the run's folder."""
        text = json.dumps(self.identity(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def paths(self, encoded: Any) -> Iterable[Path]:
        """Yields every path under the run's folder that the encoded records name."""
        if isinstance(encoded, str) and encoded.startswith(RUN_MARK):
            yield Path(self.root) / encoded[len(RUN_MARK) :]
        elif isinstance(encoded, dict):
            for v in encoded.values():
                yield from self.paths(v)
        elif isinstance(encoded, list):
            for v in encoded:
                yield from self.paths(v)


def _counted(value: Any) -> list[str]:
    """Returns the names of the fields that are written and hashed: all except options at their default value
    (msmodel.config.OPTION), so that adding an option does not change the keys of configurations that do not use it."""
    off = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(value)
        if f.metadata == OPTION
    }
    return [f.name for f in fields(value) if f.name not in off or vars(value)[f.name] != off[f.name]]


def _item_hint(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return None
    arguments = [a for a in get_args(hint) if a is not Ellipsis]
    return arguments[0] if arguments else None
