"""Writes videos of a stream as H.264 while frames come, so that none stays in memory, and draws tracks over them.

Legend: T frames, n tracks, H W pixels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from stages.data.drawing import TRAIL, draw_trails, enlarge

VIDEO_HEIGHT = 320  # px: smaller frames are enlarged by a whole number, which keeps their pixels and colours
MOST_TRACKS = 60  # drawn over one frame
FFMPEG_SECONDS = 600  # for ffmpeg to finish: far more than it needs, also on a busy machine


class VideoWriter:
    """Writes one H.264 video: `push` frames of one size, then `finish`. More may be pushed after that, and finished again.

    Raises OSError with ffmpeg's message if it cannot be written (disk full); the writer cannot be used after that. `discard`
    removes temporary files and ends ffmpeg; it may always be called.
    """

    def __init__(self, folder: Path, name: str, fps: float) -> None:
        self._stream, self._piece = folder / f".{name}.h264", folder / f".{name}.piece.h264"
        self._fps = fps
        self._process: subprocess.Popen[bytes] | None = None

    def push(self, frames: np.ndarray) -> None:
        """Adds frames, T H W 3 uint8, H and W even."""
        if self._process is None:
            self._process = self._encoder(*frames.shape[1:3])
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frames.tobytes())
        except OSError as error:
            raise OSError(f"ffmpeg could not write {self._piece}: {self._end() or error}") from None

    def finish(self, path: Path) -> None:
        """Writes all frames so far as an mp4 that browsers play, to a temporary name, and renames it."""
        if self._process is not None:
            words = self._end()
            if words:
                raise OSError(f"ffmpeg could not write {self._piece}: {words}")
            with open(self._stream, "ab") as whole, open(self._piece, "rb") as piece:
                shutil.copyfileobj(piece, whole)
            self._piece.unlink()
        aside = path.with_name(f".{path.stem}.part.mp4")
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "h264", "-framerate", f"{self._fps:g}"]
        command += [
            "-i",
            str(self._stream),
            "-c",
            "copy",
            "-movflags",
            "+faststart",
            "-fflags",
            "+bitexact",
            str(aside),
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            aside.unlink(missing_ok=True)
            raise OSError(f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace').strip()}")
        os.replace(aside, path)

    def discard(self) -> None:
        """Ends ffmpeg and removes the temporary files."""
        if self._process is not None:
            self._process.kill()
            self._end()
        for file in (self._stream, self._piece):
            if file.exists():
                file.unlink()

    def _encoder(self, height: int, width: int) -> subprocess.Popen[bytes]:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += [
            "-s",
            f"{width}x{height}",
            "-r",
            f"{self._fps:g}",
            "-i",
            "-",
            "-c:v",
            "libx264",
            "-pix_fmt",
            "yuv420p",
        ]
        command += ["-crf", "18", "-preset", "superfast", "-tune", "zerolatency", "-threads", "1", "-g", "48"]
        command += ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-f", "h264", str(self._piece)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def _end(self) -> str:
        """Waits for ffmpeg to end; returns its error message, "" if it succeeded."""
        process, self._process = self._process, None
        assert process is not None
        try:
            _, words = process.communicate(timeout=FFMPEG_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"it did not end within {FFMPEG_SECONDS} s"
        return words.decode(errors="replace").strip() or (f"status {process.returncode}" if process.returncode else "")


def enlarged(frames: np.ndarray) -> np.ndarray:
    """Enlarges frames (T h w 3) to about VIDEO_HEIGHT px, or keeps a larger height: T H W 3 uint8 with even sizes."""
    height = frames.shape[1] * max(1, round(VIDEO_HEIGHT / frames.shape[1]))
    large = np.stack([enlarge(frame, height) for frame in frames])
    return large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]


class TrailPainter:
    """Draws the tracks of a stream chunk by chunk; trails continue from the chunk before."""

    def __init__(self) -> None:
        self._xy, self._visible = np.zeros((0, 0, 2), np.float32), np.zeros((0, 0), bool)

    def draw(self, frames: np.ndarray, xy_px: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Draws tracks (T n 2, T n) over the next frames (T h w 3 uint8): T H W 3 uint8, sized as by `enlarged`."""
        large = enlarged(frames)
        xy = joined(self._xy, xy_px * (large.shape[1] / frames.shape[1]))
        seen = joined(self._visible, visible)
        shown = np.flatnonzero(seen.any(axis=0))
        shown = shown[:: max(1, -(-len(shown) // MOST_TRACKS))]
        for t, picture in enumerate(large, start=len(self._xy)):
            draw_trails(picture, xy[:, shown], seen[:, shown], t, most=MOST_TRACKS)
        self._xy, self._visible = xy[-TRAIL:], seen[-TRAIL:]
        return large


def joined(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Concatenates tracks or flags (T n ...) in time; missing tracks of the shorter one are zeros (not visible)."""
    n = max(before.shape[1], after.shape[1])
    return np.concatenate([np.pad(x, [(0, 0), (0, n - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]) for x in (before, after)])
