"""Reading shards back: verified against the index, so that a damaged shard is an error that names it."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from stages.data.video import read_container, read_frames, read_timestamps
from stages.records import ShardSet

INDEX = "index.json"
NEEDED = ("json", "txt", "mp4", "tracks.npz", "latents.npz")


@dataclass(frozen=True)
class Sample:
    """One clip, read in full.

    frames: T h w 3 uint8. xy_px: T n 2 float32. visible: T n bool. latents, image: c t h w float32. text: l c float32.
    meta: the clip's record without its folder.
    """

    key: str
    frames: np.ndarray
    xy_px: np.ndarray
    visible: np.ndarray
    latents: Tensor
    image: Tensor
    text: Tensor
    caption: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """An entry of an index. kinds: "real" or "rendered", one a sample, in order. tracks: most in one sample."""

    path: Path
    sha256: str
    bytes: int
    kinds: tuple[str, ...]
    tracks: int


def read_index(shard_set: ShardSet) -> list[Shard]:
    """The shards of a set. Raises ValueError where the index is missing or is not the one the record describes."""
    path = Path(shard_set.folder) / INDEX
    if not path.is_file():
        raise ValueError(f"{path} is missing: make the data again (`make data`)")
    text = path.read_text()
    if hashlib.sha256(text.encode()).hexdigest() != shard_set.digest:
        raise ValueError(f"{path} was changed since it was written: make the data again (`make data`)")
    return [
        Shard(path.parent / e["url"], e["sha256"], e["bytes"], tuple(e["kinds"]), e["tracks"])
        for e in json.loads(text)["shards"]
    ]


def verify(shard: Shard) -> None:
    """Raises ValueError naming the shard where it is missing, cut short or altered."""
    mend = "copy it again or make the data again (`make data`)"
    if not shard.path.is_file():
        raise ValueError(f"shard {shard.path} is missing: {mend}")
    size = shard.path.stat().st_size
    if size != shard.bytes:
        raise ValueError(f"shard {shard.path} has {size} bytes, its index says {shard.bytes}: {mend}")
    with open(shard.path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if digest != shard.sha256:
        raise ValueError(f"shard {shard.path} has SHA-256 {digest[:16]}, its index says {shard.sha256[:16]}: {mend}")


def read_members(shard: Shard) -> list[Mapping[str, Any]]:
    """Verified samples in the order of the index: {"__key__", "json": bytes, ...}. Raises ValueError naming the shard."""
    verify(shard)
    samples = list(wds.WebDataset(str(shard.path), shardshuffle=False, nodesplitter=None, workersplitter=None))
    for sample in samples:
        if missing := [m for m in NEEDED if m not in sample]:
            raise ValueError(f"shard {shard.path}: sample {sample['__key__']} lacks {', '.join(missing)}")
    if len(samples) != len(shard.kinds):
        raise ValueError(f"shard {shard.path} holds {len(samples)} samples, its index says {len(shard.kinds)}")
    return samples


def arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as f:
        return {name: f[name] for name in f.files}


def read_samples(shard_set: ShardSet) -> list[Sample]:
    """Every sample of a set, in order of key, in memory: for held-out sets and small ones."""
    samples = [_sample(members) for shard in read_index(shard_set) for members in read_members(shard)]
    return sorted(samples, key=lambda s: s.key)


def _sample(members: Mapping[str, Any]) -> Sample:
    tracks, latents = arrays(members["tracks.npz"]), arrays(members["latents.npz"])
    frames = arrays(members["frames.npz"])["frames"] if "frames.npz" in members else decode_mp4(members["mp4"])
    return Sample(
        key=members["__key__"],
        frames=frames,
        xy_px=tracks["xy_px"],
        visible=tracks["visible"],
        latents=torch.from_numpy(latents["latents"]).float(),
        image=torch.from_numpy(latents["image"]).float(),
        text=torch.from_numpy(latents["text"]).float(),
        caption=members["txt"].decode(),
        meta=json.loads(members["json"]),
    )


def decode_mp4(data: bytes) -> np.ndarray:
    """H.264 bytes -> T h w 3 uint8, as compressed."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as f:
        f.write(data)
        f.flush()
        count = len(read_timestamps(f.name))
        return np.stack(list(read_frames(f.name, read_container(f.name), range(count))))
