"""Stage PACK (once): collects the shards of each split in a folder with an index, and writes catalogue, rejected.csv and card.

The same clips give the same bytes. Stage SHARD writes the shards, which are hard-linked here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from msmodel.config import OPTION, ClipConfig
from stages.contracts import Context, Stage, StageError
from stages.data.card import card
from stages.data.catalogue import write_catalogue, write_rejected
from stages.data.contact_sheets import clips_contact_sheet
from stages.data.files import link
from stages.data.gates import GateConfig
from stages.data.shard import ShardFile
from stages.data.shards import INDEX
from stages.records import Clip, Rejected, ShardSet

SPLITS = ("train", "heldout")
PARTS = ("train_real", "train_synthetic")


@dataclass(frozen=True)
class PackRun:
    """Settings of PACK: the clips' size, the gates to list, and the width of CLIP's tokens (0 for none)."""

    clip: ClipConfig
    gates: GateConfig
    clip_dim: int = field(default=0, metadata=OPTION)


@dataclass(frozen=True)
class PackInputs:
    """Inputs of PACK. clips: those in the shards. rejected: inputs and clips that are not, with the reason. dropped: the clips
    among these that a gate dropped."""

    clips: tuple[Clip, ...]
    rejected: tuple[Rejected, ...]
    dropped: tuple[Clip, ...]
    shards: tuple[ShardFile, ...]


@dataclass(frozen=True)
class PartsInputs:
    """Inputs of PACK_PARTS. shards: all; one of train holds real clips only or none (shard.plan_shards). catalogue: its
    path."""

    shards: tuple[ShardFile, ...]
    catalogue: str


def require_splits(clips: Sequence[Clip]) -> None:
    """Raises StageError if a split has no clip or two clips share an id."""
    if len({c.clip_id for c in clips}) != len(clips):
        raise StageError("pack: two clips have the same id")
    for split in SPLITS:
        if not any(c.split == split for c in clips):
            raise StageError(
                f"pack: no {split} clip; give more or longer videos, or render scenes (data.{split}_scenes)"
            )


def run(cfg: PackRun, inputs: PackInputs, ctx: Context) -> tuple[ShardSet, ShardSet]:
    """Packs both splits: returns (train, heldout). Raises StageError as `require_splits` does."""
    require_splits(inputs.clips)
    catalogue = ctx.workdir / "catalogue.parquet"
    out = []
    for split in SPLITS:
        mine = [c for c in inputs.clips if c.split == split]
        shards = [s for s in inputs.shards if s.split == split]
        folder = ctx.workdir / split
        digest = write_index(cfg.clip, shards, folder)
        real, rendered = (sum(c.kind == kind for c in mine) for kind in ("real", "rendered"))
        names = tuple(s.name for s in shards)
        out.append(ShardSet(str(folder), split, names, len(mine), real, rendered, digest, str(catalogue)))
        ctx.image(f"clips_{split}", clips_contact_sheet(mine))
    shard_of = {clip_id: s.name for s in inputs.shards for clip_id in s.clip_ids}
    write_catalogue(catalogue, inputs.clips, inputs.rejected, shard_of, inputs.dropped)
    write_rejected(ctx.workdir / "rejected.csv", inputs.rejected)
    size = (cfg.clip.frames, cfg.clip.height, cfg.clip.width)
    text = card(inputs.clips, inputs.rejected, size, cfg.clip.fps, cfg.gates, cfg.clip_dim)
    (ctx.workdir / "README.md").write_text(text, encoding="utf-8")
    for name in ("README.md", "rejected.csv"):
        ctx.artifact(ctx.workdir / name)
    counts = {f"{s.split}_{kind}": n for s in out for kind, n in (("real", s.real), ("rendered", s.rendered))}
    ctx.emit(0, {**{k: float(v) for k, v in counts.items()}, "rejected": float(len(inputs.rejected))})
    return out[0], out[1]


def run_parts(cfg: PackRun, inputs: PartsInputs, ctx: Context) -> tuple[ShardSet, ShardSet]:
    """Packs the shards of train as two sets: returns (real, synthetic)."""
    out = []
    for split in PARTS:
        mine = [s for s in inputs.shards if s.split == "train" and ("real" in s.kinds) == (split == PARTS[0])]
        kinds = [kind for s in mine for kind in s.kinds]
        real, rendered = kinds.count("real"), kinds.count("rendered")
        assert real in (0, len(kinds)), "shards of mixed clips: plan_shards separates them if any is generated"
        folder, names = ctx.workdir / split, tuple(s.name for s in mine)
        digest = write_index(cfg.clip, mine, folder)
        out.append(ShardSet(str(folder), split, names, len(kinds), real, rendered, digest, inputs.catalogue))
    return out[0], out[1]


def write_index(clip: ClipConfig, shards: Sequence[ShardFile], folder: Path) -> str:
    """Links the shards into `folder` and writes index.json next to them. Returns the SHA-256 of the index."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for shard in shards:
        link(Path(shard.path), folder / shard.name)
        entry = {"url": shard.name, "nsamples": len(shard.kinds)}
        entries.append(entry | {k: vars(shard)[k] for k in ("sha256", "bytes", "kinds", "tracks", "trackers")})
    text = json.dumps({"schema": 1, "clip": asdict(clip), "shards": entries}, sort_keys=True, indent=1)
    (folder / INDEX).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


PACK = Stage("pack", 2, "once", run)
PACK_PARTS = Stage("pack_parts", 1, "once", run_parts)
