"""A world for stages without infra, videos made on the spot, and a small finished data set."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from msmodel.config import ClipConfig
from stages.data import pack, shard
from stages.data.files import save_npz, write_mp4
from stages.data.gates import GateConfig
from stages.data.pack import PackInputs, PackRun
from stages.data.scene import SceneItem, Still
from stages.data.shard import ShardRun, plan_shards
from stages.records import Clip, Rejected, ShardSet
from tests.fakes import FakeContext

CLIP = ClipConfig(height=32, width=48, frames=9, fps=24.0)


def ffmpeg(*arguments: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def make_video(path: Path, seconds: float = 1.0, size: str = "160x96", rate: int = 30, *more: str) -> Path:
    """A test picture that moves, H.264."""
    source = f"testsrc=size={size}:rate={rate}:duration={seconds}"
    ffmpeg("-f", "lavfi", "-i", source, *more, "-pix_fmt", "yuv420p", str(path))
    return path


def noise_picture(path: Path, seed: int, height: int = 120, width: int = 200) -> Path:
    """A smooth random colour picture: textured everywhere, sharp nowhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
    return path


def scene_item(folder: Path, objects: int = 2, seed: int = 7, split: str = "train") -> SceneItem:
    stills = [
        Still(
            str(noise_picture(folder / f"still-{split}-{seed}-{i}.png", 100 * seed + i)), f"video {i}", "MIT", "noise"
        )
        for i in range(objects + 1)
    ]
    return SceneItem(f"scene-{split}-{seed:05d}", split, seed, tuple(stills))


@lru_cache(maxsize=1)
def some_mp4() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_mp4(Path(folder) / "a.mp4", np.zeros((9, 32, 48, 3), np.uint8), 24.0)
        return (Path(folder) / "a.mp4").read_bytes()


def finished_clip(
    folder: Path, number: int, split: str = "train", kind: str = "rendered", tracks: int = 5, clip_dim: int = 0
) -> Clip:
    """A clip with all its files, of random content that depends on its number alone."""
    generator = np.random.default_rng(number)
    clip_id = f"clip-{split}-{number:03d}"
    home = folder / clip_id
    home.mkdir(parents=True)
    save_npz(home / "clip.npz", {"frames": generator.integers(0, 256, (9, 32, 48, 3)).astype(np.uint8)})
    (home / "frames.mp4").write_bytes(some_mp4())
    xy = generator.uniform(0, 30, (9, tracks, 2)).astype(np.float32)
    save_npz(home / "tracks.npz", {"xy_px": xy, "visible": generator.random((9, tracks)) < 0.8})
    shapes = {"latents": (8, 5, 8, 12), "image": (8, 5, 8, 12), "text": (16, 384)} | (
        {"clip": (5, clip_dim)} if clip_dim else {}
    )
    save_npz(home / "latents.npz", {k: generator.standard_normal(s).astype(np.float16) for k, s in shapes.items()})
    return Clip(
        clip_id=clip_id,
        folder=str(home),
        scene=f"scene-{number // 2}",
        split=split,
        kind=kind,
        caption=f"caption {number}",
        source="a source",
        licence="MIT",
        tracker="ground_truth",
        tracks=tracks,
    )


def packed(
    clips: Sequence[Clip],
    folder: Path,
    rejected: Sequence[Rejected] = (),
    clips_per_shard: int = 4,
    lossless: bool = True,
    dropped: Sequence[Clip] = (),
) -> tuple[ShardSet, ShardSet]:
    """Shards, then the pack, as the pipeline makes them: (train, heldout) in folder."""
    files = []
    for split in pack.SPLITS:
        for plan in plan_shards(clips, split, clips_per_shard):
            work = folder / "items" / split / plan.name
            work.mkdir(parents=True)
            files.append(shard.run(ShardRun(lossless), plan, FakeContext(work)))
    inputs = PackInputs(tuple(clips), tuple(rejected), tuple(dropped), tuple(files))
    return pack.run(PackRun(CLIP, GateConfig()), inputs, FakeContext(folder))
