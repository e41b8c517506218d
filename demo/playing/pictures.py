"""First frames to choose from: held-out ones of the run, else those that ship. None was seen in training."""

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
from pipelines.results import newest_data
from stages.data.files import write_png
from stages.data.pack import PACK
from stages.data.shards import arrays, decode_mp4, read_sample
from stages.records import ShardSet

SHIPPED = CHECKOUT / "msmodel" / "assets" / "nano" / "pictures"
MOST = 12  # half of them real, as far as there are


@dataclass(frozen=True)
class Still:
    """A picture and where it is from. kind: "real" or "rendered"."""

    picture: Picture
    kind: str
    source: str
    licence: str


def pictures(cfg: Config, size: tuple[int, int]) -> list[Picture]:
    """Those of the run, else those that ship, of the size (height, width); the run's may be of another size than the
    student's."""
    made = any((cfg.root / PACK.name).glob("*/manifest.json"))
    found = [still.picture for still in of_run(cfg)] if made else []
    fitting = [p for p in found if p.frame.shape[:2] == size] or shipped()
    return [p for p in fitting if p.frame.shape[:2] == size]


def of_run(cfg: Config) -> list[Still]:
    """At most MOST held-out first frames of the run's newest data. ValueError where there are none."""
    heldout = next(s for s in newest_data(cfg.root) if s.split == "heldout")
    rows = pq.read_table(heldout.catalogue, filters=[("split", "=", "heldout"), ("status", "=", "kept")]).to_pylist()
    return [_still(row, heldout) for row in choose(rows)]


def choose(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Real clips, scenes taking turns, then rendered scenes, those with the fewest objects first. A scene's clips share
    its first frame where it is rendered, so one is enough: the one with the shortest caption, which tells of no
    motion."""
    real = sorted((r for r in rows if r["kind"] == "real"), key=lambda r: r["name"])
    turns = {r["name"]: sum(o["scene"] == r["scene"] and o["name"] < r["name"] for o in real) for r in real}
    first = sorted(real, key=lambda r: (turns[r["name"]], r["name"]))[: MOST // 2]
    plain: dict[str, dict[str, Any]] = {}
    for row in sorted((r for r in rows if r["kind"] == "rendered"), key=lambda r: (len(r["caption"]), r["name"])):
        plain.setdefault(row["scene"], row)
    fewest = sorted(plain.values(), key=lambda r: (_objects(r["caption"]), r["name"]))
    return first + fewest[: MOST - len(first)]


def _objects(caption: str) -> int:
    """Of a rendered scene: "a grey blob and an oval over a street, ..." has two."""
    return caption.split(" over ")[0].count(" and ") + 1


def _still(row: dict[str, Any], heldout: ShardSet) -> Still:
    members = read_sample(Path(heldout.folder) / row["shard"], row["name"])
    frames = arrays(members["frames.npz"])["frames"] if "frames.npz" in members else decode_mp4(members["mp4"])
    caption = row["caption"]
    return Still(Picture(row["name"], caption, caption, frames[0]), row["kind"], row["source"], row["licence"])


def write(stills: Sequence[Still], folder: Path) -> None:
    """PNGs, and pictures.json with captions, sources and licences."""
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
    """The pictures in msmodel/assets/nano/pictures."""
    out = []
    for entry in json.loads((folder / "pictures.json").read_text()):
        picture = cv2.imread(str(folder / f"{entry['id']}.png"), cv2.IMREAD_COLOR)
        assert picture is not None, f"{entry['id']}.png is missing beside pictures.json"
        frame = np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        out.append(Picture(entry["id"], entry["title"], entry["prompt"], frame))
    return out
