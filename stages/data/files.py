"""Names and files that several data stages share."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from stages.records import Clip


def slug(name: str, most: int = 40) -> str:
    """A key-safe name: lower-case ASCII letters, digits and hyphens. WebDataset cuts keys at the first dot."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:most].strip("-") or "video"


def save_npz(path: Path, arrays: Mapping[str, np.ndarray], compress: bool = False) -> None:
    """Write aside, then rename: a reader never meets half a file."""
    aside = path.with_name(path.name + ".part")
    with open(aside, "wb") as f:
        (np.savez_compressed if compress else np.savez)(f, **arrays)  # type: ignore[arg-type]
    os.replace(aside, path)


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a npz file; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as f:
        return {name: f[name] for name in f.files}


def write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    """frames T h w 3 uint8 (h, w even) -> H.264, yuv420p, faststart: plays in browsers and in the tracker's viewer."""
    height, width = frames.shape[1:3]
    options = ["-movflags", "+faststart", "-crf", "18", "-preset", "veryfast", "-threads", "1", "-fflags", "+bitexact"]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        output_params=[*options, "-flags:v", "+bitexact"],
        ffmpeg_log_level="error",
    )
    writer.send(None)
    for frame in np.ascontiguousarray(frames):
        writer.send(frame)
    writer.close()
    if not path.is_file() or not path.stat().st_size:
        raise RuntimeError(f"ffmpeg wrote nothing to {path}")


def save_frames(folder: Path, frames: np.ndarray, fps: float) -> None:
    """clip.npz {frames} and frames.mp4 in folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_mp4(folder / "frames.mp4", frames, fps)
    save_npz(folder / "clip.npz", {"frames": frames})


def read_clip_frames(clip: Clip) -> np.ndarray:
    """T h w 3 uint8."""
    return load_npz(Path(clip.folder) / "clip.npz")["frames"]


def inherit(clip: Clip, workdir: Path) -> Clip:
    """The clip in a folder of its own under workdir, its files hard-linked (copied across devices), ready to be added to."""
    folder = workdir / clip.clip_id
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(p.name for p in Path(clip.folder).iterdir() if not p.name.endswith(".part")):
        target = folder / name
        target.unlink(missing_ok=True)
        try:
            os.link(Path(clip.folder) / name, target)
        except OSError:
            shutil.copyfile(Path(clip.folder) / name, target)
    return replace(clip, folder=str(folder))
