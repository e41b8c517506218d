"""Writes the dataset card: Markdown with Hugging Face's front matter, so that `datasets.load_dataset(folder)` finds the
splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from stages.data.catalogue import COLUMNS, in_order, kinds_of
from stages.data.gates import GateConfig, dropped_by, thresholds
from stages.records import Clip, Rejected

SPLITS = ("train", "heldout")
MOST_SOURCES, MOST_REJECTED = 200, 50  # rows shown; the catalogue has all
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
OVER_ALL_SIZES = "1M<n<10M"

FRONT = """---
license: other
pretty_name: Clips with point tracks and latents
task_categories: [image-to-video]
tags: [webdataset, point-tracks, motion-control, video]
size_categories: [{size}]
configs:
- config_name: default
  data_files:
  - split: train
    path: train/*.tar
  - split: heldout
    path: heldout/*.tar
---"""

SAMPLES = """## Samples

Members of a sample, whose key is the clip's id: `.mp4` (H.264), `.json` (its row of the catalogue; `quality` and `motion`
are JSON as text), `.txt` caption, `.tracks.npz` {xy_px float32 T n 2, x first, origin top-left, pixel centres at +0.5;
visible bool T n}, `.latents.npz` {latents c t h w, image c t h w, text l c; float16} and, where chosen, `.frames.npz`
{frames T h w 3 uint8}.

```python
webdataset.WebDataset("train/shard-000000.tar", shardshuffle=False).decode()
datasets.load_dataset(folder, split="train", streaming=True).cast_column("mp4", datasets.Video(decode=False))
pandas.read_parquet("catalogue.parquet")
```"""

TOKENS = "`.latents.npz` also holds {{clip m {width}; float16}}: CLIP's tokens of the first frame, for Wan 2.1's image branch."

MADE = """## How it was made

Videos are checked, cut where the picture changes, and cropped and resized to clips of one size and rate, which never
span a cut. Training clips are also varied (`recipe`). Scenes are rendered from stills of the real clips of their own split,
with exact tracks; they carry those licences. A point tracker labels real clips from a uniform grid on the first
frame. Real clips then pass the gates below; of clips of different videos that show the same, one is kept, a held-out one
first. All clips of one video are in one split."""

REMOVAL = """## Removal

To have a clip or a source removed, open an issue of the project with its name (column `name` or `source` of the catalogue)."""


def card(
    clips: Sequence[Clip],
    rejected: Sequence[Rejected],
    size: tuple[int, int, int],
    fps: float,
    gates: GateConfig | None = None,
    clip_dim: int = 0,
) -> str:
    """Returns the card's text. size: frames, height, width. gates: the thresholds to list. clip_dim: width of CLIP's tokens in
    the samples, 0 for none."""
    made = f"{size[0]} frames of {size[1]} x {size[2]} pixels at {fps:g} fps. Two sets of WebDataset shards."
    named = next((name for most, name in SIZES if len(clips) < most), OVER_ALL_SIZES)
    counts = Counter((c.split, c.kind) for c in clips)
    kinds = kinds_of(clips)
    table = [f"| split | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    table += [f"| {s} | {' | '.join(str(counts[s, kind]) for kind in kinds)} |" for s in SPLITS]
    parts = [
        FRONT.format(size=named),
        "# Clips with point tracks and latents",
        made,
        "\n".join(table),
        SAMPLES,
        *([TOKENS.format(width=clip_dim)] if clip_dim else []),
        MADE,
        _sources(clips),
        _tracks(clips),
        _gates(rejected, gates),
        _columns(),
        _left_out(rejected),
        REMOVAL,
    ]
    return "\n\n".join(parts) + "\n"


def _sources(clips: Sequence[Clip]) -> str:
    videos = [c for c in clips if c.kind != "rendered"]
    lines = [
        "## Sources and licences",
        "",
        f"| licence | {' and '.join(k for k in kinds_of(clips) if k != 'rendered')} clips |",
    ]
    lines += ["|---|---|"]
    lines += [f"| {_cell(name)} | {n} |" for name, n in sorted(Counter(c.licence for c in videos).items())]
    lines += ["", "| source | licence | split | clips |", "|---|---|---|---|"]
    rows = sorted(Counter((c.source, c.licence, c.split) for c in videos).items())
    lines += [
        f"| {_cell(src)} | {_cell(licence)} | {split} | {n} |" for (src, licence, split), n in rows[:MOST_SOURCES]
    ]
    if len(rows) > MOST_SOURCES:
        lines.append(f"\nand {len(rows) - MOST_SOURCES} more, in the catalogue.")
    by_split = [{c.source for c in videos if c.kind == "real" and c.split == s} for s in SPLITS]
    both = sorted(by_split[0] & by_split[1])
    lines += ["", f"Split by time, not by source: {', '.join(both)}." if both else "No file serves both splits."]
    return "\n".join(lines)


def _tracks(clips: Sequence[Clip]) -> str:
    lines = ["## Tracks", "", "Name, version, licence and thresholds of each point tracker:", ""]
    return "\n".join(
        lines + [f"- {tracker}: {n} clips" for tracker, n in sorted(Counter(c.tracker for c in clips).items())]
    )


def _gates(rejected: Sequence[Rejected], gates: GateConfig | None) -> str:
    dropped = dropped_by(rejected)
    lines = ["## Gates", "", "Gates apply to real clips only. A clip may fail several.", ""]
    limits = thresholds(gates) if gates else dict.fromkeys(dropped, "")
    lines += ["| gate | threshold | dropped |", "|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {limit} | {dropped[name]} |" for name, limit in limits.items()])


def _columns() -> str:
    lines = ["## Columns of the catalogue", "", "| column | meaning |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {meaning} |" for name, (_, meaning) in COLUMNS.items()])


def _left_out(rejected: Sequence[Rejected]) -> str:
    lines = [f"## Left out: {len(rejected)}", "", "All of them are in `rejected.csv`.", ""]
    listed = in_order(rejected)
    lines += [f"- {_line(r.name)} ({r.stage}): {_line(r.reason)}" for r in listed[:MOST_REJECTED]]
    if len(rejected) > MOST_REJECTED:
        lines.append(f"- and {len(rejected) - MOST_REJECTED} more")
    return "\n".join(lines)


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
