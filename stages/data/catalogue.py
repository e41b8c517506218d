"""Writes the catalogue (Parquet, one row a clip and one a rejected input or clip), the table of rejected inputs, and the JSON
of a sample. The same clips give the same bytes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.records import Clip, Rejected

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "name": (pa.string(), "the clip's id, also the sample's key; of a rejected input its name"),
    "status": (pa.string(), "kept or rejected"),
    "stage": (pa.string(), "rejected: where; `gates` are clips that a quality gate dropped"),
    "reason": (pa.string(), "rejected: why, with value and threshold"),
    "split": (pa.string(), "train or heldout"),
    "kind": (pa.string(), "real, rendered, or generated (a video that a model made)"),
    "scene": (pa.string(), "clips of one video, or with one first frame"),
    "segment": (pa.int32(), "part of a long video"),
    "recipe": (pa.string(), "motion of a rendered clip, or how a real clip was varied; empty for a plain one"),
    "caption": (pa.string(), "text in words"),
    "source": (pa.string(), "file or address it is from"),
    "licence": (pa.string(), "of the source"),
    "start_seconds": (pa.float64(), "where in the source it starts"),
    "clip_seconds": (pa.float64(), "time of the source that it shows"),
    "tracker": (pa.string(), "name, version, licence and thresholds of the point tracker"),
    "tracks": (pa.int32(), "points"),
    "visible_share": (pa.float32(), "share of points and frames in which they are visible"),
    "moving_px": (pa.float32(), "median length of the paths while visible, pixels at clip size"),
    "moving_share": (pa.float32(), "share of tracks whose path is longer than 2% of the frame's width"),
    "back_px": (pa.float32(), "mean forward-backward error of visible points, pixels at clip size"),
    "confidence": (pa.float32(), "the point tracker's own, mean, 0 to 1"),
    "brightness": (pa.float32(), "mean luma, 0 to 1"),
    "sharpness": (pa.float32(), "variance of the Laplacian of luma (0 to 255), median over frames"),
    "letterbox": (pa.float32(), "share of the picture taken by black bars"),
    "overlay": (pa.float32(), "share of the picture under corners that do not move while the rest does (text, logos)"),
    "phash": (pa.string(), "192-bit perceptual hash of the first, middle and last frame, hexadecimal"),
    "notes": (pa.list_(pa.string()), "remarks on the source: HDR, interlaced, damaged..."),
    "shard": (pa.string(), "file of its split that holds the sample"),
}
FIGURES = tuple(name for name, (kind, _) in COLUMNS.items() if kind == pa.float32())
KINDS = ("real", "rendered")
CLIP_FIELDS = tuple(name for name in COLUMNS if name in Clip.__dataclass_fields__)


def kinds_of(clips: Iterable[Clip]) -> tuple[str, ...]:
    """Returns the kinds of clips that a table shows: "generated" only if some are."""
    return (*KINDS, "generated") if any(c.kind == "generated" for c in clips) else KINDS


def write_catalogue(
    path: Path,
    clips: Sequence[Clip],
    rejected: Sequence[Rejected],
    shard_of: Mapping[str, str],
    dropped: Sequence[Clip] = (),
) -> None:
    """Writes the Parquet file to a temporary name and renames it.

    shard_of: clip_id -> shard. dropped: clips that a gate rejected (each has its id as the name of one of `rejected`), so that
    their rows show their figures too. A column without a value in a row is null. Figures of `quality` that COLUMNS does not
    list become columns of their own.
    """
    more = sorted({name for c in (*clips, *dropped) for name in c.quality} - set(COLUMNS))
    schema = pa.schema([(n, kind) for n, (kind, _) in COLUMNS.items()] + [(n, pa.float32()) for n in more])
    rows = [
        {"name": c.clip_id, "status": "kept", "shard": shard_of[c.clip_id]} | _facts(c)
        for c in sorted(clips, key=lambda c: c.clip_id)
    ]
    facts = {c.clip_id: _facts(c) for c in dropped}
    rows += [
        facts.get(r.name, {}) | {"name": r.name, "status": "rejected", "stage": r.stage, "reason": r.reason}
        for r in in_order(rejected)
    ]
    aside = path.with_name(path.name + ".part")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside, write_statistics=True)
    os.replace(aside, path)


def _facts(clip: Clip) -> dict[str, object]:
    """Returns the columns that a clip's record fills."""
    return {name: vars(clip)[name] for name in CLIP_FIELDS} | {"phash": clip.phash or None} | clip.quality


def write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """Writes a CSV (UTF-8) of name, stage and reason, to a temporary name, and renames it."""
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("name", "stage", "reason"))
        writer.writerows((r.name, r.stage, r.reason) for r in in_order(rejected))
    os.replace(aside, path)


def in_order(rejected: Sequence[Rejected]) -> list[Rejected]:
    """Sorts rejected inputs by name, stage and reason, as every table shows them."""
    return sorted(rejected, key=lambda r: (r.name, r.stage, r.reason))


def sample_json(clip: Clip, motion: str) -> bytes:
    """Returns the .json member of a sample: the clip's record without its folder, and a rendered clip's motion (JSON, or "").

    quality and motion are JSON as text, notes are one text: Hugging Face `datasets` infers the fields of all samples from the
    first five, and fails on or drops those that only later samples have.
    """
    meta = {k: v for k, v in asdict(clip).items() if k != "folder"}
    meta |= {"quality": json.dumps(clip.quality, sort_keys=True), "notes": "; ".join(clip.notes), "motion": motion}
    return json.dumps(meta, sort_keys=True, ensure_ascii=False).encode()
