"""Names and files that several data stages share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
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


def write_mp4(path: Path, frames: np.ndarray, fps: float, crf: int = 18) -> None:
    """frames T h w 3 uint8 (h, w even) -> H.264, yuv420p, faststart: plays in browsers and in the tracker's viewer.

    Written aside and renamed when ffmpeg has ended well. Raises OSError with ffmpeg's words when it has not (disk full).
    """
    height, width = frames.shape[1:3]
    aside = path.with_name(f".{path.stem}.part.mp4")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    command += ["-crf", str(crf), "-preset", "veryfast", "-threads", "1", "-movflags", "+faststart"]
    command += ["-fflags", "+bitexact", "-flags:v", "+bitexact", str(aside)]
    done = subprocess.run(command, input=np.ascontiguousarray(frames).tobytes(), capture_output=True, check=False)
    if done.returncode:
        aside.unlink(missing_ok=True)
        words = done.stderr.decode(errors="replace").strip()
        raise OSError(f"ffmpeg could not write {path} ({frames.shape}): {words}")
    os.replace(aside, path)


def write_png(path: Path, picture: np.ndarray) -> None:
    """picture h w 3 uint8 RGB. Raises OSError when it could not be written (disk full)."""
    aside = path.with_name(f".{path.stem}.part.png")
    if not cv2.imwrite(str(aside), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        aside.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: is the disk full?")
    os.replace(aside, path)


def save_frames(folder: Path, frames: np.ndarray, fps: float) -> None:
    """clip.npz {frames} and frames.mp4 in folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_mp4(folder / "frames.mp4", frames, fps)
    save_npz(folder / "clip.npz", {"frames": frames})


def read_clip_frames(clip: Clip) -> np.ndarray:
    """T h w 3 uint8."""
    return load_npz(Path(clip.folder) / "clip.npz")["frames"]


def link(source: Path, target: Path) -> None:
    """target becomes source: a hard link, across devices a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def inherit(clip: Clip, workdir: Path) -> Clip:
    """The clip in a folder of its own under workdir, its files hard-linked (copied across devices), ready to be added to."""
    folder = workdir / clip.clip_id
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(p.name for p in Path(clip.folder).iterdir() if not p.name.endswith(".part")):
        link(Path(clip.folder) / name, folder / name)
    return replace(clip, folder=str(folder))
