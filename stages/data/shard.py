"""Stage SHARD (per item): writes one WebDataset tar, so that packing is parallel and a killed run continues with the next.

The same clips give the same bytes: fixed times, owners and order. A sample's key is its clip_id, which has no dot
(WebDataset ends a key at the first). Members: mp4, json, txt, tracks.npz, latents.npz and, for lossless frames, frames.npz.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.contracts import Context, Resources, Stage
from stages.data.catalogue import sample_json
from stages.records import Clip


@dataclass(frozen=True)
class ShardRun:
    """Settings of SHARD. lossless_frames: whether samples also hold frames.npz."""

    lossless_frames: bool


@dataclass(frozen=True)
class ShardPlan:
    """Lists the clips of one shard, in order. name: of its file."""

    name: str
    split: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class ShardFile:
    """Describes a written shard, as its entry in the index does. kinds, clip_ids: one a sample, in order."""

    path: str
    name: str
    split: str
    sha256: str
    bytes: int
    kinds: tuple[str, ...]
    clip_ids: tuple[str, ...]
    tracks: int
    trackers: tuple[str, ...]


def plan_shards(clips: Sequence[Clip], split: str, clips_per_shard: int) -> list[ShardPlan]:
    """Divides a split's clips into shards, in the order of a hash of their id, so that each shard mixes scenes.

    If some clips are generated, real and synthetic ones (generated or rendered) get shards of their own, so that training can
    read one kind alone.
    """
    mine = sorted((c for c in clips if c.split == split), key=lambda c: hashlib.sha256(c.clip_id.encode()).digest())
    apart = any(c.kind == "generated" for c in mine)
    parts = [[c for c in mine if (c.kind != "real") == synthetic] for synthetic in (False, True)] if apart else [mine]
    groups = [part[i : i + clips_per_shard] for part in parts for i in range(0, len(part), clips_per_shard)]
    return [ShardPlan(f"shard-{number:06d}.tar", split, tuple(group)) for number, group in enumerate(groups)]


def run(cfg: ShardRun, item: ShardPlan, ctx: Context) -> ShardFile:
    """Writes the tar to a temporary name and renames it, so that a full disk or a kill leaves no partial shard."""
    path = ctx.workdir / item.name
    aside = path.with_name(item.name + ".part")
    try:
        write_tar(aside, item.clips, cfg.lossless_frames)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    os.replace(aside, path)
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return ShardFile(
        path=str(path),
        name=item.name,
        split=item.split,
        sha256=digest,
        bytes=path.stat().st_size,
        kinds=tuple(c.kind for c in item.clips),
        clip_ids=tuple(c.clip_id for c in item.clips),
        tracks=max(c.tracks for c in item.clips),
        trackers=tuple(sorted({c.tracker for c in item.clips})),
    )


def write_tar(path: Path, clips: Sequence[Clip], lossless: bool) -> None:
    """Writes the samples of clips as a tar file. lossless: whether frames.npz goes in too."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for clip in clips:
            for ending, data in members(clip, lossless):
                info = tarfile.TarInfo(f"{clip.clip_id}.{ending}")
                info.size = len(data)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(data))


def members(clip: Clip, lossless: bool) -> Iterator[tuple[str, bytes]]:
    """Yields (ending, bytes) of one sample. No content depends on the folder of the run."""
    folder = Path(clip.folder)
    recipe = folder / "recipe.json"
    yield "json", sample_json(clip, recipe.read_text() if recipe.is_file() else "")
    if lossless:
        yield "frames.npz", (folder / "clip.npz").read_bytes()
    yield "latents.npz", (folder / "latents.npz").read_bytes()
    yield "mp4", (folder / "frames.mp4").read_bytes()
    yield "tracks.npz", (folder / "tracks.npz").read_bytes()
    yield "txt", clip.caption.encode()


SHARD = Stage("shard", 1, "per_item", run, Resources(cpus=1.0))
