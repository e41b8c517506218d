"""The first frames that users can choose: held-out ones of the run, else the shipped ones. None was used in training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from configs.settings import Config
from demo.playing.player import Picture
from infra.files import CHECKOUT
from infra.results import published
from stages.data.files import write_png
from stages.data.shards import arrays, decode_mp4, read_sample
from stages.records import ShardSet

SHIPPED = CHECKOUT / "msmodel" / "assets" / "nano" / "pictures"
MAX_PICTURES = 12  # half of them real, if there are enough


@dataclass(frozen=True)
class Still:
    """A picture and its origin. kind: "real" or "rendered"."""

    picture: Picture
    kind: str
    source: str
    licence: str


def pictures(cfg: Config, size: tuple[int, int]) -> list[Picture]:
    """Returns the pictures of a size (height, width): the run's, or the shipped ones where the run has none of that size."""
    fitting = [s.picture for s in of_run(cfg.root) if s.picture.frame.shape[:2] == size] or shipped()
    return [p for p in fitting if p.frame.shape[:2] == size]


def of_run(root: Path, shippable: bool = False) -> list[Still]:
    """Returns at most MAX_PICTURES held-out first frames of the newest data in a run's folder; none where there are no data.

    shippable: leave out the clips whose licence is not known.
    """
    found = [p.record for p in published(root, ShardSet) if p.record.split == "heldout"]
    if not found:
        return []
    heldout = found[-1]
    rows = pq.read_table(heldout.catalogue, filters=[("split", "=", "heldout"), ("status", "=", "kept")]).to_pylist()
    usable = [row for row in rows if not shippable or known_licence(row["licence"])]
    return [_still(row, heldout) for row in choose(usable)]


def known_licence(licence: str) -> bool:
    """Returns whether a licence of the catalogue names the terms of every part: "MIT + unknown (example media)" does not."""
    return "unknown" not in licence.lower()


def choose(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chooses catalogue rows: real clips, one scene after another, then rendered scenes, those with the fewest objects first.
    The clips of a rendered scene share their first frame, so one is taken: the one with the shortest caption, which mentions no
    motion."""
    real = sorted((r for r in rows if r["kind"] == "real"), key=lambda r: r["name"])
    rank = {r["name"]: sum(o["scene"] == r["scene"] and o["name"] < r["name"] for o in real) for r in real}
    first = sorted(real, key=lambda r: (rank[r["name"]], r["name"]))[: MAX_PICTURES // 2]
    plain: dict[str, dict[str, Any]] = {}
    for row in sorted((r for r in rows if r["kind"] == "rendered"), key=lambda r: (len(r["caption"]), r["name"])):
        plain.setdefault(row["scene"], row)
    fewest = sorted(plain.values(), key=lambda r: (_objects(r["caption"]), r["name"]))
    return first + fewest[: MAX_PICTURES - len(first)]


def _objects(caption: str) -> int:
    """Counts the objects in a rendered scene's caption: "a grey blob and an oval over a street, ..." has two."""
    return caption.split(" over ")[0].count(" and ") + 1


def _still(row: dict[str, Any], heldout: ShardSet) -> Still:
    members = read_sample(Path(heldout.folder) / row["shard"], row["name"])
    frames = arrays(members["frames.npz"])["frames"] if "frames.npz" in members else decode_mp4(members["mp4"])
    caption = row["caption"]
    return Still(Picture(row["name"], caption, caption, frames[0]), row["kind"], row["source"], row["licence"])


def write(stills: Sequence[Still], folder: Path) -> None:
    """Writes the pictures as PNGs, and pictures.json with captions, sources and licences."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    entries = []
    for still in stills:
        p = still.picture
        write_png(folder / f"{p.id}.png", p.frame)
        entries.append(
            {"id": p.id, "title": p.title, "prompt": p.prompt, "kind": still.kind, "source": still.source}
            | {"licence": still.licence}
        )
    (folder / "pictures.json").write_text(json.dumps(entries, indent=1) + "\n")


def shipped(folder: Path = SHIPPED) -> list[Picture]:
    """Returns the pictures in msmodel/assets/nano/pictures."""
    out = []
    for entry in json.loads((folder / "pictures.json").read_text()):
        picture = cv2.imread(str(folder / f"{entry['id']}.png"), cv2.IMREAD_COLOR)
        assert picture is not None, f"{entry['id']}.png is missing next to pictures.json"
        frame = np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        out.append(Picture(entry["id"], entry["title"], entry["prompt"], frame))
    return out
