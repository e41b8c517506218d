"""The catalogue (Parquet, one row a clip and one a rejected input) and the dataset card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.records import Clip, Rejected

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("status", pa.string()),  # "kept" | "rejected"
        ("stage", pa.string()),  # rejected: where
        ("reason", pa.string()),  # rejected: why
        ("split", pa.string()),
        ("kind", pa.string()),
        ("scene", pa.string()),
        ("recipe", pa.string()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("start_seconds", pa.float64()),
        ("clip_seconds", pa.float64()),
        ("tracker", pa.string()),
        ("tracks", pa.int32()),
        ("visible_share", pa.float32()),
        ("moving_px", pa.float32()),
        ("shard", pa.string()),
    ]
)
CLIP_FIELDS = (
    "split",
    "kind",
    "scene",
    "recipe",
    "caption",
    "source",
    "licence",
    "start_seconds",
    "clip_seconds",
    "tracker",
    "tracks",
    "visible_share",
    "moving_px",
)


def write_catalogue(
    path: Path, clips: Sequence[Clip], rejected: Sequence[Rejected], shard_of: Mapping[str, str]
) -> None:
    """shard_of: clip_id -> shard. Columns a row has no value for are null."""
    rows: list[dict[str, object]] = [
        {"name": c.clip_id, "status": "kept", "shard": shard_of[c.clip_id]} | {f: vars(c)[f] for f in CLIP_FIELDS}
        for c in sorted(clips, key=lambda c: c.clip_id)
    ]
    rows += [{"name": r.name, "status": "rejected", "stage": r.stage, "reason": r.reason} for r in rejected]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def card(clips: Sequence[Clip], rejected: Sequence[Rejected], size: tuple[int, int, int], fps: float) -> str:
    """The dataset card, Markdown with Hugging Face's front matter. size: frames, height, width."""
    real = [c for c in clips if c.kind == "real"]
    counts = Counter((c.split, c.kind) for c in clips)
    splits = {s: sorted({c.source for c in real if c.split == s}) for s in ("train", "heldout")}
    lines = [
        "---",
        "license: other",
        "task_categories: [image-to-video]",
        "tags: [webdataset, point-tracks, motion-control]",
        "---",
        "",
        "# Clips with point tracks and latents",
        "",
        f"{size[0]} frames of {size[1]} x {size[2]} pixels at {fps:g} fps. Two sets of WebDataset shards.",
        "",
        "| split | real | rendered |",
        "|---|---|---|",
    ]
    lines += [f"| {s} | {counts[s, 'real']} | {counts[s, 'rendered']} |" for s in ("train", "heldout")]
    lines += ["", "## Sources and licences", "", "| source | licence | split | clips |", "|---|---|---|---|"]
    for (source, licence, split), n in sorted(Counter((c.source, c.licence, c.split) for c in real).items()):
        lines.append(f"| {source} | {licence} | {split} | {n} |")
    both = sorted(set(splits["train"]) & set(splits["heldout"]))
    lines += [
        "",
        "Rendered scenes are cut from stills of the real clips of their own split and carry those licences.",
        "",
    ]
    lines += ["No file serves both splits."] if not both else [f"Split by time, not by source: {', '.join(both)}."]
    lines += ["", "## Tracks", ""]
    lines += [f"- {tracker}: {n} clips" for tracker, n in sorted(Counter(c.tracker for c in clips).items())]
    lines += ["", "`xy_px` float32 T n 2, x first, origin top-left, pixel centres at +0.5; `visible` bool T n.", ""]
    lines += ["## Samples", ""]
    lines += [
        "`.mp4` for people, `.json` metadata, `.txt` caption, `.tracks.npz` {xy_px, visible[, confidence]}, `.latents.npz`"
    ]
    lines += ["{latents, image, text} float16 and, where chosen, `.frames.npz` {frames} uint8."]
    lines += ["", f"## Left out: {len(rejected)}", ""]
    lines += [f"- {r.name} ({r.stage}): {r.reason}" for r in rejected]
    lines += ["", "To have a clip removed, open an issue of the project with its name."]
    return "\n".join(lines) + "\n"
