"""Reading video files: facts from the container (ffmpeg), timestamps and pixels (decord), ffmpeg where decord is wrong.

decord ignores or mangles rotated, very small and damaged files; those go through ffmpeg's own decoder, which applies rotation.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import decord
import imageio_ffmpeg
import numpy as np

decord.logging.set_level(decord.logging.QUIET)  # reasons go to the user as Unreadable, not as lines on stderr

DECODE_GROUP = 8  # frames held at once: a 1080p frame is 6 MB
TIMEOUT_SECONDS = 60  # for ffmpeg to find out what a file is


class Unreadable(ValueError):
    """A file that cannot be used as a video; the message is the reason a user reads."""


@dataclass(frozen=True)
class Container:
    """Facts of the first video stream. width, height: as shown, rotation (degrees, multiple of 90) applied."""

    width: int
    height: int
    rotation: int

    def scaled_to(self, side: int) -> Container:
        """The same with a shorter side of `side` px, aspect kept, sizes even; itself where it is not larger than that."""
        ratio = side / min(self.width, self.height)
        if ratio >= 1:
            return self
        width, height = (max(2, round(n * ratio / 2) * 2) for n in (self.width, self.height))
        return Container(width, height, self.rotation)


def read_container(path: str) -> Container:
    """Asks ffmpeg, decodes nothing. Raises Unreadable with the reason."""
    if not Path(path).stat().st_size:
        raise Unreadable("empty file")
    try:
        text = subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-i", path],
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        ).stderr.decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        raise Unreadable(f"ffmpeg found no end in {TIMEOUT_SECONDS} s") from None
    streams = [line for line in text.splitlines() if re.match(r"\s*Stream #\d+:\d+.*: Video: ", line)]
    if not streams:
        raise Unreadable(_why_no_video(path, text))
    if re.search(r"Input #0, (image2|\w+_pipe)", text):
        raise Unreadable("one frame only: a picture, not a video")
    size = re.search(r", (\d{1,6})x(\d{1,6})\b", streams[0])
    if not size:
        raise Unreadable("the video stream has no size: truncated file?")
    turned = re.search(r"rotation of (-?[\d.]+) degrees", text)
    rotation = round(float(turned[1])) % 360 if turned else 0
    width, height = int(size[1]), int(size[2])
    if rotation % 180:
        width, height = height, width
    return Container(width, height, rotation)


def _why_no_video(path: str, text: str) -> str:
    with open(path, "rb") as f:
        head = f.read(4096)
    if re.search(r"Stream #\d+:\d+.*: Audio: ", text):
        return "audio only, no video stream"
    if head[4:8] == b"ftyp" and "moov atom not found" in text:
        return "truncated file: its index (moov atom) is missing"
    if b"\0" not in head:
        try:
            head.decode("utf-8", "strict" if len(head) < 4096 else "ignore")
            return "text, not a video"
        except UnicodeDecodeError:
            pass
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"not a video that ffmpeg can open ({lines[0] if lines else 'no message'})"[:300]


def read_timestamps(path: str) -> np.ndarray:
    """Presentation time of every frame in seconds, from 0: N float64. Decodes nothing. Raises Unreadable."""
    try:
        reader = decord.VideoReader(path, num_threads=1)
        stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)
    except (decord.DECORDError, RuntimeError, IndexError) as e:
        raise Unreadable("damaged: no frame can be read") from e
    if stamps.ndim != 2 or not len(stamps):
        raise Unreadable("holds no frame")
    return stamps[:, 0] - stamps[0, 0]


def frame_rate(stamps: np.ndarray) -> float:
    """Mean frames per second; 0 where time does not advance."""
    span = float(stamps[-1] - stamps[0]) if len(stamps) > 1 else 0.0
    rate = (len(stamps) - 1) / span if span > 0 else 0.0
    return rate if math.isfinite(rate) else 0.0


def read_frames(path: str, container: Container, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames h w 3 uint8 at strictly rising indices, one by one, upright, resized while decoding where container is scaled.

    Raises Unreadable where a frame cannot be decoded.
    """
    wanted = list(indices)
    done = 0
    if not container.rotation:
        try:
            for frame in _decord_frames(path, container, wanted):
                yield frame
                done += 1
            return
        except (decord.DECORDError, RuntimeError, IndexError, _WrongShape):
            pass  # ffmpeg goes on from the first frame that is still missing
    yield from _ffmpeg_frames(path, container, wanted[done:])


class _WrongShape(Exception):
    """decord returned frames of another size than the container states."""


def _decord_frames(path: str, container: Container, indices: Sequence[int]) -> Iterator[np.ndarray]:
    reader = decord.VideoReader(path, num_threads=1, width=container.width, height=container.height)
    for start in range(0, len(indices), DECODE_GROUP):
        frames = reader.get_batch(list(indices[start : start + DECODE_GROUP])).asnumpy()
        if frames.shape[1:] != (container.height, container.width, 3):
            raise _WrongShape(f"{frames.shape[1:]}")
        yield from frames


def _ffmpeg_frames(path: str, container: Container, indices: Sequence[int]) -> Iterator[np.ndarray]:
    if not indices:
        return
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", path, "-map", "0:v:0"]
    command += ["-vf", f"scale={container.width}:{container.height}:flags=area"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    size = container.height * container.width * 3
    wanted = set(indices)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            for index in range(max(indices) + 1):
                data = process.stdout.read(size)
                if len(data) < size:
                    raise Unreadable(f"damaged: only {index} frames can be decoded, frame {max(indices)} is needed")
                if index in wanted:
                    yield np.frombuffer(data, np.uint8).reshape(container.height, container.width, 3)
        finally:
            process.kill()
