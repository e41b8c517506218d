"""Reads and writes recordings: sessions on disk, with everything that is needed to replay them bit for bit.

A folder holds recording.json, first.png (the picture it began with), tracks.npz {xy_px T n 2 float32 in clip pixels,
visible T n bool: the controls, frame by frame; fps, height, width}, video.mp4, and drawn.mp4 with the tracks over it.
It is written to a temporary name and renamed.

Legend: T frames, n tracks.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stages.data.files import load_npz, save_npz, write_png

FORMAT = 1
ABOUT, FIRST, TRACKS, VIDEO, DRAWN = "recording.json", "first.png", "tracks.npz", "video.mp4", "drawn.mp4"
FILES = (ABOUT, FIRST, TRACKS, VIDEO, DRAWN)


@dataclass(frozen=True)
class Recording:
    """Holds the content of recording.json.

    student: folder of the weights; digest: of them. decoder_digest: of the tiny VAE, "" for the VAE. picture: SHA-256 of the
    first frame's bytes. prompts: (first chunk with it, text). refreshes: chunks before which the sink was refreshed. points:
    number of track ids that were drawn. lengths: pixel frames of each chunk. frames_sha256: of each chunk's frames. ended: why
    the recording is shorter than the session, "" if it is not.
    """

    format: int
    id: str
    title: str
    saved: str
    preset: str
    git_sha: str
    student: str
    digest: str
    decoder: str
    decoder_digest: str
    seed: int
    picture: str
    prompts: tuple[tuple[int, str], ...]
    refreshes: tuple[int, ...]
    hand: dict[str, Any]
    points: int
    threads: int
    device: str
    torch: str
    height: int
    width: int
    fps: float
    lengths: tuple[int, ...]
    frames_sha256: tuple[str, ...]
    ended: str = ""

    @property
    def frames(self) -> int:
        return sum(self.lengths)

    @property
    def prompt(self) -> str:
        """Returns the first prompt."""
        return self.prompts[0][1]

    def summary(self) -> dict[str, Any]:
        """Returns what a gallery shows."""
        shown = ("id", "title", "prompt", "seed", "frames", "saved", "student", "digest", "preset", "ended")
        return {name: getattr(self, name) for name in shown} | {"seconds": self.frames / self.fps}


def digest_of(frames: np.ndarray) -> str:
    """Returns the SHA-256 of uint8 pixels."""
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()


def write_about(folder: Path, recording: Recording) -> None:
    (folder / ABOUT).write_text(json.dumps(asdict(recording), indent=1) + "\n", encoding="utf-8")


def write_first(folder: Path, frame: np.ndarray) -> None:
    write_png(folder / FIRST, frame)


def write_tracks(folder: Path, xy_px: np.ndarray, visible: np.ndarray, fps: float, size: tuple[int, int]) -> None:
    numbers = {"fps": np.float64(fps), "height": np.int64(size[0]), "width": np.int64(size[1])}
    arrays = {"xy_px": xy_px, "visible": visible, **numbers}
    save_npz(folder / TRACKS, arrays, compress=True)  # type: ignore[arg-type]


def read_recording(folder: Path) -> Recording:
    """Reads recording.json. Raises ValueError if it is missing, damaged, incomplete or of another format."""
    path = folder / ABOUT
    again = "record it again, or take another recording"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {ABOUT}, so it is no recording") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {again}") from None
    if not isinstance(values, dict) or "format" not in values:
        raise ValueError(f"{path} is no recording's description: {again}")
    if values["format"] != FORMAT:
        raise ValueError(f"{path} is of format {values['format']}; this version reads {FORMAT}")
    known = {f.name for f in fields(Recording)}
    try:
        if unknown := values.keys() - known:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        recording = Recording(**{name: _tuples(value) for name, value in values.items()})
        _check(recording)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}): {again}") from None
    return recording


def _check(r: Recording) -> None:
    if len(r.lengths) != len(r.frames_sha256) or not r.lengths or not all(n > 0 for n in r.lengths):
        raise ValueError(f"{len(r.lengths)} lengths and {len(r.frames_sha256)} digests of chunks")
    if not r.prompts or r.prompts[0][0] != 0 or not all(isinstance(text, str) for _, text in r.prompts):
        raise ValueError("no prompt for its first chunk")
    if min(r.points, r.threads, r.height, r.width) < 1 or r.seed < 0 or r.fps <= 0:
        raise ValueError("a count, size, rate or seed is out of range")
    for name in ("id", "preset", "student", "digest", "decoder", "picture"):
        if not isinstance(vars(r)[name], str):
            raise ValueError(f"{name} is no text")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def read_first(folder: Path, recording: Recording) -> np.ndarray:
    """Reads the first frame, H W 3 uint8. Raises ValueError if it is missing, or not the picture that was recorded."""
    picture = cv2.imread(str(folder / FIRST), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{folder / FIRST} is missing or damaged: the recording cannot be replayed without it")
    frame = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    if digest_of(frame) != recording.picture:
        raise ValueError(f"{folder / FIRST} is not the picture that was recorded: its pixels have another digest")
    return frame


def read_asked(folder: Path, recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """Reads the controls: xy_px T n 2 float32, visible T n bool. Raises ValueError if they are missing, damaged, or of another
    length."""
    path = folder / TRACKS
    try:
        arrays = load_npz(path)
        xy_px, visible = arrays["xy_px"], arrays["visible"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is missing or damaged ({error})") from None
    if visible.ndim != 2 or xy_px.shape != (*visible.shape, 2) or visible.shape[1] > recording.points:
        raise ValueError(f"{path} holds tracks {xy_px.shape} and {visible.shape}; T n 2 and T n were recorded")
    if len(visible) != recording.frames:
        raise ValueError(f"{path} holds {len(visible)} frames, but {ABOUT} lists {recording.frames}")
    return xy_px.astype(np.float32), visible.astype(bool)


def replay_digest(folder: Path) -> str:
    """Returns the digest of the files that a replay depends on."""
    total = hashlib.sha256()
    for name in (ABOUT, FIRST, TRACKS):
        path = folder / name
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()


def found(root: Path, log: Callable[[str], None]) -> Sequence[Recording]:
    """Returns the readable recordings of a folder, newest first; damaged ones are left out and logged."""
    out = []
    for path in root.glob(f"*/{ABOUT}"):
        if path.parent.name.startswith("."):
            continue
        try:
            out.append(read_recording(path.parent))
        except ValueError as error:
            log(f"left out of the recordings: {error}")
    return sorted(out, key=lambda r: r.saved, reverse=True)
