"""Names and files that several data stages share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
from PIL import Image

from stages.records import Clip

WEBP_QUALITIES = (90, 80, 70, 60, 50)


def slug(name: str, most: int = 40) -> str:
    """Makes a name safe for keys: lower-case ASCII letters, digits and hyphens. WebDataset ends a key at the first dot."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:most].strip("-") or "video"


def save_npz(path: Path, arrays: Mapping[str, np.ndarray], compress: bool = False) -> None:
    """Writes to a temporary name and renames it, so that a reader never finds half a file."""
    aside = path.with_name(path.name + ".part")
    with open(aside, "wb") as f:
        (np.savez_compressed if compress else np.savez)(f, **arrays)  # type: ignore[arg-type]
    os.replace(aside, path)


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Loads all arrays of an npz file; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as f:
        return {name: f[name] for name in f.files}


def write_mp4(path: Path, frames: np.ndarray, fps: float, crf: int = 18) -> None:
    """Writes frames (T h w 3 uint8; h, w even) as H.264, yuv420p, faststart, which browsers and MLflow's viewer play.

    The file is renamed when ffmpeg has succeeded. Raises OSError with ffmpeg's message if it fails (disk full).
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
    """Writes a picture (h w 3 uint8 RGB). Raises OSError if it cannot be written (disk full)."""
    aside = path.with_name(f".{path.stem}.part.png")
    if not cv2.imwrite(str(aside), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        aside.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: is the disk full?")
    os.replace(aside, path)


def write_webp(path: Path, frames: Sequence[Image.Image], milliseconds: Sequence[int], most_bytes: int) -> None:
    """Writes an endless animated WebP, at the best of some qualities that fits into `most_bytes`. milliseconds: of each frame.

    Raises ValueError where it is too large at the lowest quality; the file is left there.
    """
    for quality in WEBP_QUALITIES:
        frames[0].save(
            *(path, "WEBP"), save_all=True, append_images=frames[1:], duration=list(milliseconds), loop=0, quality=quality,
            method=4,
        )  # fmt: skip
        if path.stat().st_size <= most_bytes:
            return
    raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {most_bytes}: use fewer or smaller frames")


def save_frames(folder: Path, frames: np.ndarray, fps: float) -> None:
    """Writes clip.npz {frames} and frames.mp4 to `folder`, and makes it if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_mp4(folder / "frames.mp4", frames, fps)
    save_npz(folder / "clip.npz", {"frames": frames})


def read_clip_frames(clip: Clip) -> np.ndarray:
    """Loads a clip's frames, T h w 3 uint8."""
    return load_npz(Path(clip.folder) / "clip.npz")["frames"]


def link(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a copy where they are on different devices."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def inherit(clip: Clip, workdir: Path) -> Clip:
    """Returns the clip in a new folder under workdir that links its files (see `link`), so that files can be added."""
    folder = workdir / clip.clip_id
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(p.name for p in Path(clip.folder).iterdir() if not p.name.endswith(".part")):
        link(Path(clip.folder) / name, folder / name)
    return replace(clip, folder=str(folder))
