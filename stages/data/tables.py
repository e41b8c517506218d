"""Reads lists and tables of videos: text files, CSV, TSV and Parquet become rows. A row that cannot be used becomes a BadRow.

To add a format, write a function of (name, bytes) -> (rows, note) and add it to TABLES (or LISTS) under the file's ending.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts import StageError
from stages.data.places import decoded

# A column may have any of these names, in upper or lower case; the first that exists counts. Other columns are not read.
COLUMNS = {
    "path": ("path", "video", "file", "url"),
    "caption": ("caption", "text", "prompt"),
    "start": ("start", "start_seconds"),
    "end": ("end", "end_seconds"),
    "licence": ("licence", "license"),
}
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
EXCEL_HINT = re.compile(r"sep=(.)\r?\n")  # a first line that Excel reads, and other programs write for Excel
LONGEST_CAPTION = 1 << 20  # characters of a CSV field: more is a quote that was never closed
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)")


@dataclass(frozen=True)
class Row:
    """Names one video, or a part of one. number: the row below the header, or the line, from 1. end_seconds: 0 for its end."""

    number: int
    path: str
    caption: str = ""
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    licence: str = ""


@dataclass(frozen=True)
class BadRow:
    """A row that names no usable video, and why."""

    number: int
    path: str
    reason: str


def read_rows(name: str, suffix: str, data: bytes) -> tuple[list[Row | BadRow], str]:
    """Returns (rows, a note on the text's encoding or ""). suffix: the file's ending, one of READERS.

    Raises StageError if the file is not such a table, lacks a column of paths, or holds no row.
    """
    rows, note = READERS[suffix](name, data)
    if not rows:
        raise StageError(f"SRC={name}: holds no row: name a video in each line or row")
    return rows, f"{name}: {note}" if note else ""


def seconds(text: str) -> float:
    """Parses a time: "" is 0, "12.5", "1:02.5", "00:01:02.500". Raises ValueError for anything else, or if it is negative."""
    text = text.strip()
    clock = CLOCK.fullmatch(text)
    if clock:
        hours, minutes, rest = (float(part or 0) for part in clock.groups())
        return 3600 * hours + 60 * minutes + rest
    value = float(text or 0)
    if not math.isfinite(value) or value < 0:
        raise ValueError(text)
    return value


def _lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield Row(number, line.strip())


def _csv_rows(name: str, text: str, delimiter: str) -> Iterator[Row | BadRow]:
    """Yields the rows of a CSV text. delimiter: "" to find it out."""
    csv.field_size_limit(LONGEST_CAPTION)
    if hint := EXCEL_HINT.match(text):
        delimiter, text = delimiter or hint[1], text[hint.end() :]
    delimiter = delimiter or _delimiter(text)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = next(lines, [])
        columns = _columns(name, header)
        number = 0
        for fields in lines:
            if not any(field.strip() for field in fields):
                continue
            number += 1
            if len(fields) != len(header):
                word = DELIMITERS.get(delimiter, delimiter)
                reason = f"{len(fields)} fields where the header has {len(header)}: put quotes around text with {word}"
                yield BadRow(number, "", reason)
            else:
                yield _row(number, {kind: fields[at] for kind, at in columns.items()})
    except csv.Error as error:
        raise StageError(f"SRC={name}: line {lines.line_num} cannot be read as CSV: {error}") from None


def _delimiter(text: str) -> str:
    """Returns the first of DELIMITERS with which the header has a column of paths, else a comma.

    Excel writes semicolons in countries whose decimal mark is a comma.
    """
    header = text.partition("\n")[0].lower()
    for delimiter in DELIMITERS:
        if any(cell.strip().strip('"') in COLUMNS["path"] for cell in header.split(delimiter)):
            return delimiter
    return ","


def _parquet_rows(name: str, data: bytes) -> Iterator[Row | BadRow]:
    try:
        table = pq.ParquetFile(pa.BufferReader(data))
        header = table.schema_arrow.names
        columns = _columns(name, header)
        number = 0
        for batch in table.iter_batches(columns=[header[at] for at in columns.values()]):
            for values in batch.to_pylist():
                number += 1
                yield _row(number, {kind: values[header[at]] for kind, at in columns.items()})
    except pa.ArrowException as error:
        raise StageError(f"SRC={name}: cannot be read as Parquet: {error}") from None


def _columns(name: str, header: Sequence[str]) -> dict[str, int]:
    """Returns the index of each known column. Raises StageError if there is no column of paths."""
    names = [column.strip().lower() for column in header]
    found = {}
    for kind, aliases in COLUMNS.items():
        at = next((names.index(alias) for alias in aliases if alias in names), None)
        if at is not None:
            found[kind] = at
    if "path" not in found:
        shown = ", ".join(header)[:300] or "none"
        if "\0" in shown:
            raise StageError(
                f"SRC={name}: holds NUL characters, as UTF-16 without a byte order mark does: save it as UTF-8"
            )
        raise StageError(
            f"SRC={name}: no column of paths: call it {' or '.join(COLUMNS['path'])}; the columns found are: {shown}"
        )
    return found


def _row(number: int, values: Mapping[str, Any]) -> Row | BadRow:
    text = {kind: "" if values.get(kind) is None else str(values[kind]).strip() for kind in COLUMNS}
    path = text["path"]
    if not path:
        return BadRow(number, "", "no path")
    times = {}
    for kind in ("start", "end"):
        try:
            times[kind] = seconds(text[kind])
        except ValueError:
            return BadRow(number, path, f"{kind} is {text[kind]!r}: give seconds or HH:MM:SS.mmm, not below 0")
    if text["end"] and times["end"] <= times["start"]:
        return BadRow(number, path, f"end {text['end']} is not after start {text['start'] or '0'}")
    return Row(number, path, text["caption"], times["start"], times["end"], text["licence"])


Rows = tuple[list[Row | BadRow], str]


def _read_list(name: str, data: bytes) -> Rows:
    text, note = decoded(data)
    return list(_lines(text)), note


def _read_csv(name: str, data: bytes, delimiter: str = "") -> Rows:
    text, note = decoded(data)
    return list(_csv_rows(name, text, delimiter)), note


def _read_tsv(name: str, data: bytes) -> Rows:
    return _read_csv(name, data, "\t")


def _read_parquet(name: str, data: bytes) -> Rows:
    return list(_parquet_rows(name, data)), ""


LISTS: dict[str, Callable[[str, bytes], Rows]] = {".txt": _read_list, ".lst": _read_list}
TABLES: dict[str, Callable[[str, bytes], Rows]] = {".csv": _read_csv, ".tsv": _read_tsv, ".parquet": _read_parquet}
READERS = LISTS | TABLES
