"""make inspect CLIP=id: writes a clip of the newest data with its tracks as mp4 and PNG, and prints its catalogue
row."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from configs.settings import Config
from pipelines.commands.options import OK, add_settings, configured
from pipelines.results import newest_data
from stages.data.contact_sheets import contact_sheet, tracked
from stages.data.files import write_mp4, write_png
from stages.data.shards import arrays, decode_mp4, read_sample

VIDEO_HEIGHT, SHEET_HEIGHT = 320, 160  # px: smaller clips are enlarged
SHOWN = 5  # ids listed per kind, or close matches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clip", default="", metavar="ID", help="id of the clip (default: some ids are listed)")
    add_settings(parser)


def execute(options: argparse.Namespace) -> int:
    inspect(configured(options), options.clip)
    return OK


def inspect(cfg: Config, clip_id: str) -> None:
    """Prints a clip's catalogue row and writes its pictures to RUNS/PRESET/inspect.

    For a rejected clip it prints the reason, and without an id it lists some ids. Raises ValueError where there are no
    data, no such clip, or no such shard.
    """
    sets = newest_data(cfg.root)
    catalogue = sets[0].catalogue
    if not clip_id:
        _list_some(catalogue)
        return
    rows = pq.read_table(catalogue, filters=[("name", "=", clip_id)]).to_pylist()
    if not rows:
        raise ValueError(f"no clip {clip_id!r} in {catalogue}{_close(clip_id, catalogue)}")
    for row in rows:
        if row["status"] == "rejected":
            print(f"{clip_id} was rejected by {row['stage']}: {row['reason']}")
            continue
        folder = next(s.folder for s in sets if s.split == row["split"])
        video, sheet = draw(Path(folder) / row["shard"], clip_id, cfg.root / "inspect", cfg.clip.fps)
        width = max(len(name) for name in row)
        print(
            "\n".join(
                f"{name.ljust(width)}  {_cell(value)}" for name, value in row.items() if value not in (None, "", [])
            )
        )
        print(f"video: {video}\ncontact sheet: {sheet}")


def draw(shard: Path, clip_id: str, folder: Path, fps: float) -> tuple[Path, Path]:
    """Writes folder/CLIP.mp4 and folder/CLIP.png from the clip's sample in the shard."""
    members = read_sample(shard, clip_id)
    tracks = arrays(members["tracks.npz"])
    frames = arrays(members["frames.npz"])["frames"] if "frames.npz" in members else decode_mp4(members["mp4"])
    folder.mkdir(parents=True, exist_ok=True)
    video, sheet = folder / f"{clip_id}.mp4", folder / f"{clip_id}.png"
    write_mp4(video, _tracked(frames, tracks, VIDEO_HEIGHT), fps)
    write_png(sheet, contact_sheet([_tracked(frames, tracks, SHEET_HEIGHT)]))
    return video, sheet


def _tracked(frames: np.ndarray, tracks: Mapping[str, np.ndarray], height: int) -> np.ndarray:
    return tracked(frames, tracks["xy_px"], tracks["visible"], max(height, frames.shape[1]))


def _names(catalogue: str, **wanted: str) -> list[str]:
    filters = [(column, "=", value) for column, value in wanted.items()]
    return pq.read_table(catalogue, columns=["name"], filters=filters or None)["name"].to_pylist()


def _list_some(catalogue: str) -> None:
    """Prints some ids of each kind, spread evenly over the catalogue."""
    print("make inspect CLIP=..., for example")
    for kind in ("real", "generated", "rendered"):
        names = _names(catalogue, kind=kind, status="kept")
        if kind == "generated" and not names:
            continue
        print(f"{kind}: {len(names)} clips")
        for i in np.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().astype(int):
            print(f"  {names[i]}")
    rejected = _names(catalogue, status="rejected")
    print(f"rejected: {len(rejected)}" + "".join(f"\n  {name}" for name in rejected[:SHOWN]))


def _close(clip_id: str, catalogue: str) -> str:
    """Returns a hint with the names that contain the id or, if none does, with names of similar spelling."""
    names = _names(catalogue)
    near: Sequence[str] = [n for n in names if clip_id.lower() in n.lower()][:SHOWN]
    near = near or difflib.get_close_matches(clip_id, names, n=SHOWN, cutoff=0.5)
    return "; did you mean" + "".join(f"\n  {name}" for name in near) if near else "; without CLIP some ids are listed"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return ", ".join(value) if isinstance(value, list) else str(value)
