"""Writes small shard sets in the packer's layout, from clips made up on the spot."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from msmodel.config import ModelConfig
from stages.records import ShardSet
from tests.unit.stages.train.fakes import clips, frame_batch


def shard_set(
    folder: Path,
    model: ModelConfig,
    shards: int = 2,
    per_shard: int = 3,
    split: str = "train",
    prefix: str = "clip",
    lossless: bool = True,
) -> ShardSet:
    """`shards` shards of `per_shard` random clips, whose ids begin with `prefix`. lossless: with their frames."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(shards):
        path = folder / f"shard-{number:06d}.tar"
        with tarfile.open(path, "w") as tar:
            for index in range(per_shard):
                for ending, data in members(model, seed=100 * number + index).items():
                    if ending == "frames.npz" and not lossless:
                        continue
                    info = tarfile.TarInfo(f"{prefix}{number}{index}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        kinds = ["real"] * per_shard
        entries.append({"url": path.name, "sha256": digest, "bytes": len(data), "kinds": kinds, "tracks": 20})
    index = json.dumps({"shards": entries})
    (folder / "index.json").write_text(index)
    names, count = tuple(e["url"] for e in entries), shards * per_shard
    return ShardSet(str(folder), split, names, count, count, 0, hashlib.sha256(index.encode()).hexdigest(), "")


def members(model: ModelConfig, seed: int) -> dict[str, bytes]:
    batch, pixels = clips(model, 1, seed), frame_batch(model, 1, seed)
    return {
        "json": json.dumps({"kind": "real"}).encode(),
        "txt": b"a caption",
        "mp4": b"frames.npz is read instead",
        "frames.npz": _npz(frames=pixels.frames[0].numpy()),
        "tracks.npz": _npz(xy_px=batch.xy_px[0].numpy(), visible=batch.visible[0].numpy()),
        "latents.npz": _npz(
            latents=pixels.latents[0].half().numpy(),
            image=batch.image[0].half().numpy(),
            text=batch.text[0].half().numpy(),
        ),
    }


def _npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()
