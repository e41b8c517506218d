"""Reads shards, verified against their index: a damaged shard gives an error that names it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.data.video import read_container, read_frames, read_timestamps
from stages.records import ShardSet

INDEX = "index.json"
NULL_TEXTS = ("empty_text", "negative_text")
NEEDED = ("json", "txt", "mp4", "tracks.npz", "latents.npz")


@dataclass(frozen=True)
class Sample:
    """Holds everything of one clip.

    frames: T h w 3 uint8. xy_px: T n 2 float32. visible: T n bool. latents, image: c t h w float32; image may be of one latent
    frame (msmodel.batch.image_conditioning). text: l c float32.
    meta: the clip's record without its folder. clip: m c float32, CLIP's tokens of the first frame, if they were made.
    empty_text, negative_text: l c float32, embeddings of these prompts, if they were made.
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
    clip: Tensor | None = None
    empty_text: Tensor | None = None
    negative_text: Tensor | None = None


@dataclass(frozen=True)
class Shard:
    """Describes a shard, as its entry in the index does. kinds: one a sample, in order. tracks: the most in one sample."""

    path: Path
    sha256: str
    bytes: int
    kinds: tuple[str, ...]
    tracks: int


class Members(Mapping[str, bytes]):
    """Maps the endings of a sample ("json", "tracks.npz"...) to bytes, which are read from the shard on access."""

    def __init__(self, key: str, path: Path) -> None:
        self.key, self.path = key, path
        self._spans: dict[str, tuple[int, int]] = {}  # offset and size in the shard

    def add(self, ending: str, offset: int, size: int) -> None:
        self._spans[ending] = (offset, size)

    def __getitem__(self, ending: str) -> bytes:
        offset, size = self._spans[ending]
        with open(self.path, "rb") as f:
            f.seek(offset)
            return f.read(size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)


def read_index(shard_set: ShardSet) -> list[Shard]:
    """Returns the shards of a set. Raises ValueError if the index is missing or is not the one that the record describes."""
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
    """Raises ValueError that names the shard if it is missing, truncated or altered."""
    fix = "copy it again or make the data again (`make data`)"
    if not shard.path.is_file():
        raise ValueError(f"shard {shard.path} is missing: {fix}")
    size = shard.path.stat().st_size
    if size != shard.bytes:
        raise ValueError(f"shard {shard.path} has {size} bytes, its index says {shard.bytes}: {fix}")
    with open(shard.path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if digest != shard.sha256:
        raise ValueError(f"shard {shard.path} has SHA-256 {digest[:16]}, its index says {shard.sha256[:16]}: {fix}")


def read_members(shard: Shard) -> list[Members]:
    """Returns the samples of a shard in the order of its index, after `verify`. Raises ValueError that names the shard."""
    verify(shard)
    return list_members(shard)


def list_members(shard: Shard) -> list[Members]:
    """Returns what `read_members` does from the tar's headers alone, so that the shard's content is not verified."""
    samples: dict[str, Members] = {}
    try:
        with tarfile.open(shard.path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")  # as WebDataset names them
                samples.setdefault(key, Members(key, shard.path)).add(ending, member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"shard {shard.path} cannot be read ({error}): make the data again (`make data`)") from error
    for key, sample in samples.items():
        if missing := [m for m in NEEDED if m not in sample]:
            raise ValueError(f"shard {shard.path}: sample {key} lacks {', '.join(missing)}")
    if len(samples) != len(shard.kinds):
        raise ValueError(f"shard {shard.path} holds {len(samples)} samples, its index says {len(shard.kinds)}")
    return list(samples.values())


def require_shards(shard_set: ShardSet, ranks: int, workers: int) -> None:
    """Raises ValueError if there are fewer shards than reading processes: ranks x loader.workers (0 counts as 1)."""
    require_count(len(shard_set.shards), shard_set.folder, ranks, workers)


def require_count(shards: int, where: str, ranks: int, workers: int) -> None:
    """Raises ValueError as `require_shards` does, for a number of shards. where: their folder, for the message."""
    if shards >= ranks * max(workers, 1):
        return
    readers = f"{ranks} ranks" + (f" x {workers} loader workers" if workers > 1 else "")
    raise ValueError(
        f"{shards} shards in {where} are too few for {readers}: pack smaller shards (data.clips_per_shard), or lower "
        f"compute.workers or loader.workers"
    )


def arrays(data: bytes) -> dict[str, np.ndarray]:
    """Loads the arrays of an npz file from its bytes."""
    with np.load(io.BytesIO(data), allow_pickle=False) as f:
        return {name: f[name] for name in f.files}


@dataclass(frozen=True)
class StoredSample:
    """Describes a sample that lies in a shard, by its metadata; the rest is read when it is asked for.

    meta: the clip's record without its folder.
    """

    key: str
    meta: dict[str, Any]
    shard: Shard
    members: Members

    def load(self) -> Sample:
        """Reads the whole sample and decodes its frames. Raises ValueError that names a damaged shard."""
        _verify_once(self.shard)
        return _sample(self.members, self.meta)

    def tracks(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads the sample's tracks alone: xy_px T n 2 float32, visible T n bool."""
        found = arrays(self.members["tracks.npz"])
        return found["xy_px"], found["visible"]


def list_samples(shard_set: ShardSet) -> list[StoredSample]:
    """Returns every sample of a set by its metadata, in the order of keys: clips are chosen before one is decoded."""
    found = [
        StoredSample(members.key, _meta(members), shard, members)
        for shard in read_index(shard_set)
        for members in list_members(shard)
    ]
    return sorted(found, key=lambda s: s.key)


def read_sample(shard: Path, clip_id: str) -> dict[str, bytes]:
    """Returns {ending: content} of one sample of a shard, without reading the others.

    Raises ValueError naming a shard that cannot be read or does not hold the sample.
    """
    try:
        with tarfile.open(shard) as tar:
            mine = [m for m in tar if m.name.split(".", 1)[0] == clip_id]
            read = {m.name.split(".", 1)[1]: f.read() for m in mine if (f := tar.extractfile(m)) is not None}
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"shard {shard} cannot be read ({error}): make the data again (`make data`)") from None
    if not read:
        raise ValueError(
            f"shard {shard} does not hold {clip_id}, its catalogue says so: make the data again (`make data`)"
        )
    return read


@lru_cache(maxsize=1024)
def _verify_once(shard: Shard) -> None:
    """Raises what `verify` does, and reads a sound shard once however many of its samples are loaded."""
    verify(shard)


def _meta(members: Members) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(members["json"])
    except ValueError as error:
        where = f"shard {members.path}: the json of sample {members.key}"
        raise ValueError(f"{where} cannot be read ({error}): make the data again (`make data`)") from error
    return found


def with_padding(latents: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of latents.npz with NULL_TEXTS, which are stored without padding, as long as `text`."""
    size = len(latents["text"])
    return {k: np.pad(v, ((0, size - len(v)), (0, 0))) if k in NULL_TEXTS else v for k, v in latents.items()}


def _sample(members: Members, meta: dict[str, Any]) -> Sample:
    tracks, latents = arrays(members["tracks.npz"]), with_padding(arrays(members["latents.npz"]))

    def optional(name: str) -> Tensor | None:
        return torch.from_numpy(latents[name]).float() if name in latents else None

    frames = arrays(members["frames.npz"])["frames"] if "frames.npz" in members else decode_mp4(members["mp4"])
    return Sample(
        key=members.key,
        frames=frames,
        xy_px=tracks["xy_px"],
        visible=tracks["visible"],
        latents=torch.from_numpy(latents["latents"]).float(),
        image=torch.from_numpy(latents["image"]).float(),
        text=torch.from_numpy(latents["text"]).float(),
        caption=members["txt"].decode(),
        meta=meta,
        clip=optional("clip"),
        empty_text=optional("empty_text"),
        negative_text=optional("negative_text"),
    )


def decode_mp4(data: bytes, wanted: range | None = None) -> np.ndarray:
    """Decodes H.264 bytes: T h w 3 uint8. wanted: the numbers of the frames to return; None returns all."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as f:
        f.write(data)
        f.flush()
        indices = range(len(read_timestamps(f.name))) if wanted is None else wanted
        return np.stack(list(read_frames(f.name, read_container(f.name), indices)))
