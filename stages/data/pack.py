"""Pack: WebDataset shards with an index, the catalogue and the dataset card. The same clips give the same bytes.

A sample's key is its clip_id, which holds no dot (WebDataset cuts keys at the first). Members of a sample:
mp4, json, txt, tracks.npz, latents.npz and, for lossless frames, frames.npz.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from msmodel.config import ClipConfig
from stages.data.card import card
from stages.data.catalogue import sample_json, write_catalogue, write_rejected
from stages.data.pictures import clip_sheet
from stages.data.shards import INDEX
from stages.records import Clip, Rejected, ShardSet
from stages.spec import Context, Stage, StageError

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class PackRun:
    clip: ClipConfig
    clips_per_shard: int
    lossless_frames: bool


def run(cfg: PackRun, inputs: Sequence[Clip | Rejected], ctx: Context) -> tuple[ShardSet, ShardSet]:
    """Clips and rejected inputs -> (train, heldout). Raises StageError where a split has no clip or two share an id."""
    clips = [r for r in inputs if isinstance(r, Clip)]
    rejected = [r for r in inputs if isinstance(r, Rejected)]
    if len({c.clip_id for c in clips}) != len(clips):
        raise StageError("pack: two clips have the same id")
    for split in SPLITS:
        if not any(c.split == split for c in clips):
            raise StageError(
                f"pack: no {split} clip; give more or longer videos, or render scenes (data.{split}_scenes)"
            )
    shard_of: dict[str, str] = {}
    catalogue = ctx.workdir / "catalogue.parquet"
    out = []
    for split in SPLITS:
        mine = [c for c in clips if c.split == split]
        shards, digest = write_split(cfg, mine, ctx.workdir / split, shard_of)
        real = sum(c.kind == "real" for c in mine)
        folder = str(ctx.workdir / split)
        out.append(ShardSet(folder, split, shards, len(mine), real, len(mine) - real, digest, str(catalogue)))
        ctx.image(f"clips_{split}", clip_sheet(mine))
    write_catalogue(catalogue, clips, rejected, shard_of)
    write_rejected(ctx.workdir / "rejected.csv", rejected)
    size = (cfg.clip.frames, cfg.clip.height, cfg.clip.width)
    (ctx.workdir / "README.md").write_text(card(clips, rejected, size, cfg.clip.fps), encoding="utf-8")
    ctx.artifact(ctx.workdir / "README.md")
    counts = {f"{s.split}_{kind}": n for s in out for kind, n in (("real", s.real), ("rendered", s.rendered))}
    ctx.emit(0, {**{k: float(v) for k, v in counts.items()}, "rejected": float(len(rejected))})
    return out[0], out[1]


def write_split(
    cfg: PackRun, clips: Sequence[Clip], folder: Path, shard_of: dict[str, str]
) -> tuple[tuple[str, ...], str]:
    """Shards and index.json of one split; fills shard_of. Returns the shards' names and the index's SHA-256.

    Clips go in the order of a hash of their id, so that each shard is a mixture of scenes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order = sorted(clips, key=lambda c: hashlib.sha256(c.clip_id.encode()).digest())
    entries = []
    for number, start in enumerate(range(0, len(order), cfg.clips_per_shard)):
        group = order[start : start + cfg.clips_per_shard]
        name = f"shard-{number:06d}.tar"
        write_shard(folder / name, group, cfg.lossless_frames)
        shard_of |= {c.clip_id: name for c in group}
        with open(folder / name, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        entries.append(
            {
                "url": name,
                "sha256": digest,
                "bytes": (folder / name).stat().st_size,
                "nsamples": len(group),
                "kinds": [c.kind for c in group],
                "tracks": max(c.tracks for c in group),
            }
        )
    index = {"schema": 1, "clip": asdict(cfg.clip), "shards": entries}
    text = json.dumps(index, sort_keys=True, indent=1)
    (folder / INDEX).write_text(text)
    return tuple(str(e["url"]) for e in entries), hashlib.sha256(text.encode()).hexdigest()


def write_shard(path: Path, clips: Sequence[Clip], lossless: bool) -> None:
    """A tar with fixed times, owners and order, written aside and renamed."""
    aside = path.with_name(path.name + ".part")
    with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
        for clip in clips:
            for ending, data in members(clip, lossless):
                info = tarfile.TarInfo(f"{clip.clip_id}.{ending}")
                info.size = len(data)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(data))
    os.replace(aside, path)


def members(clip: Clip, lossless: bool) -> Iterator[tuple[str, bytes]]:
    """(ending, bytes) of one sample. Nothing in it depends on where the run lies."""
    folder = Path(clip.folder)
    recipe = folder / "recipe.json"
    yield "json", sample_json(clip, recipe.read_text() if recipe.is_file() else "")
    if lossless:
        yield "frames.npz", (folder / "clip.npz").read_bytes()
    yield "latents.npz", (folder / "latents.npz").read_bytes()
    yield "mp4", (folder / "frames.mp4").read_bytes()
    yield "tracks.npz", (folder / "tracks.npz").read_bytes()
    yield "txt", clip.caption.encode()


PACK = Stage("pack", 1, "once", run)
