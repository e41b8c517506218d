"""Reads video files: facts of the container (ffmpeg), timestamps and pixels (decord, or ffmpeg for files that it misreads).

decord misreads rotated, very small and damaged files, and does not deinterlace. Such files are decoded by ffmpeg, which applies
the rotation and can deinterlace.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import decord
import imageio_ffmpeg
import numpy as np

decord.logging.set_level(decord.logging.QUIET)  # the user gets the reason as Unreadable, not as lines on stderr

DECODE_GROUP = 8  # frames held at once: a 1080p frame is 6 MB
TIMEOUT_SECONDS = 60  # for ffmpeg to examine a file
SEEK_FROM = 200  # frames: ffmpeg seeks to a start beyond this; before it, decoding and dropping frames is as fast
UNSTAMPED = 1e9  # seconds: beyond this lies decord's placeholder for times that a file does not state
HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}  # ffmpeg's names of the transfer curves


class Unreadable(ValueError):
    """Raised for a file that cannot be used as a video; the message is the reason for the user."""


@dataclass(frozen=True)
class Container:
    """Holds facts of the first video stream.

    width, height: as shown, after rotation (degrees, a multiple of 90) and with square pixels (pixel_aspect: width over height
    of a stored pixel). seconds: from the header, 0 if it has none. bit_depth: of one colour. hdr: ffmpeg's name of an HDR
    transfer curve, "" for SDR.
    """

    width: int
    height: int
    rotation: int = 0
    pixel_aspect: float = 1.0
    seconds: float = 0.0
    interlaced: bool = False
    bit_depth: int = 8
    hdr: str = ""

    def scaled_to(self, side: int) -> Container:
        """Returns it with a shorter side of `side` px and even sizes, at the same aspect; unchanged if it is not larger."""
        ratio = side / min(self.width, self.height)
        if ratio >= 1:
            return self
        width, height = (max(2, round(n * ratio / 2) * 2) for n in (self.width, self.height))
        return replace(self, width=width, height=height)

    def notes(self) -> tuple[str, ...]:
        """Returns remarks on its pictures for the catalogue."""
        out = []
        if self.interlaced:
            out.append("interlaced: deinterlaced, one frame for two fields")
        if self.hdr:
            out.append(f"HDR ({HDR[self.hdr]}): colours are used as they are")
        if self.bit_depth > 8:
            out.append(f"{self.bit_depth} bits a colour: read as 8")
        if self.pixel_aspect != 1:
            out.append(f"pixels of aspect {self.pixel_aspect:.3g}: resampled to square ones")
        return tuple(out)


def read_container(path: str) -> Container:
    """Reads a file's facts with ffmpeg, without decoding. Raises Unreadable with the reason."""
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
        raise Unreadable(f"ffmpeg needed more than {TIMEOUT_SECONDS} s to examine it") from None
    streams = [line for line in text.splitlines() if re.match(r"\s*Stream #\d+:\d+.*: Video: ", line)]
    if not streams:
        raise Unreadable(_why_no_video(path, text))
    if re.search(r"Input #0, (image2|\w+_pipe)", text):
        raise Unreadable("one frame only: a picture, not a video")
    return _facts(streams[0], text)


def _facts(stream: str, text: str) -> Container:
    """Parses ffmpeg's line on the stream, and its text on the whole file."""
    size = re.search(r", (\d{1,6})x(\d{1,6})\b", stream)
    if not size:
        raise Unreadable("the video stream has no size: truncated file?")
    pixel = re.findall(r"\bSAR (\d+):(\d+)", stream)  # twice where container and codec differ: the container's is last
    aspect = int(pixel[-1][0]) / int(pixel[-1][1]) if pixel and int(pixel[-1][0]) and int(pixel[-1][1]) else 1.0
    width, height = max(1, round(int(size[1]) * aspect)), int(size[2])
    turned = re.search(r"rotation of (-?[\d.]+) degrees", text)
    rotation = round(float(turned[1])) % 360 if turned else 0
    if rotation % 180:
        width, height = height, width
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", text)
    depth = re.search(r"(?:p0?|gray|rgb)(9|10|12|14|16)(?:le|be)\b", stream)
    return Container(
        width=width,
        height=height,
        rotation=rotation,
        pixel_aspect=aspect,
        seconds=int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3]) if length else 0.0,
        interlaced=bool(re.search(r"\b(top|bottom) (coded )?first\b", stream)),
        bit_depth=int(depth[1]) if depth else 8,
        hdr=next((name for name in HDR if name in stream), ""),
    )


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
    """Returns the presentation time of every frame in seconds, from 0: N float64, without decoding. Raises Unreadable."""
    stamps = _decord_timestamps(path)
    return stamps - stamps[0]


def _decord_timestamps(path: str) -> np.ndarray:
    """Returns the times as the file states them, which need not start at 0."""
    try:
        reader = decord.VideoReader(path, num_threads=1)
        stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)
    except (decord.DECORDError, RuntimeError, IndexError) as e:
        raise Unreadable("damaged: no frame can be read") from e
    if stamps.ndim != 2 or not len(stamps):
        raise Unreadable("0 seconds: it holds no frame")
    return stamps[:, 0]


def missing_end(container: Container, stamps: np.ndarray) -> str:
    """Returns a message if the header claims a clearly longer video than there are frames for; else "". stamps: as read."""
    seconds = float(stamps[-1]) + 1.0 / (frame_rate(stamps) or 1.0)
    if container.seconds - seconds <= max(1.0, 0.1 * seconds):
        return ""
    return f"its header says {container.seconds:.1f} s, there are pictures for {seconds:.1f} s"


def frame_rate(stamps: np.ndarray) -> float:
    """Returns the mean frames per second; 0 if time does not advance."""
    span = float(stamps[-1] - stamps[0]) if len(stamps) > 1 else 0.0
    rate = (len(stamps) - 1) / span if span > 0 else 0.0
    return rate if math.isfinite(rate) else 0.0


def read_frames(path: str, container: Container, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields frames, h w 3 uint8, at strictly rising indices, upright, and resized while decoding if `container` is scaled.

    Raises Unreadable if a frame cannot be decoded.
    """
    wanted = list(indices)
    done = 0
    if not (container.rotation or container.interlaced):
        try:
            for frame in _decord_frames(path, container, wanted):
                yield frame
                done += 1
            return
        except (decord.DECORDError, RuntimeError, IndexError, _WrongShape):
            pass  # ffmpeg continues from the first missing frame
    yield from _ffmpeg_frames(path, container, wanted[done:])


class _WrongShape(Exception):
    """Raised if decord returns frames of another size than the container states."""


def _decord_frames(path: str, container: Container, indices: Sequence[int]) -> Iterator[np.ndarray]:
    reader = decord.VideoReader(path, num_threads=1, width=container.width, height=container.height)
    for start in range(0, len(indices), DECODE_GROUP):
        frames = reader.get_batch(list(indices[start : start + DECODE_GROUP])).asnumpy()
        if frames.shape[1:] != (container.height, container.width, 3):
            raise _WrongShape(f"{frames.shape[1:]}")
        yield from frames


def _ffmpeg_frames(path: str, container: Container, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields frames until the first error, after which ffmpeg would continue with frames of unknown number."""
    if not indices:
        return
    start, seek = _seek(path, indices[0])
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-nostdin",
        "-xerror",
        *seek,
        "-i",
        path,
        "-map",
        "0:v:0",
    ]
    command += ["-vf", ",".join(_filters(container)), "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    size = container.height * container.width * 3
    wanted = set(indices)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            for index in range(start, max(indices) + 1):
                data = process.stdout.read(size)
                if len(data) < size:
                    raise Unreadable(f"damaged: only {index} frames can be decoded, frame {max(indices)} is needed")
                if index in wanted:
                    yield np.frombuffer(data, np.uint8).reshape(container.height, container.width, 3)
        finally:
            process.kill()


def _seek(path: str, index: int) -> tuple[int, list[str]]:
    """Returns the number of the first frame that ffmpeg gives, and the arguments that make it start there."""
    if index < SEEK_FROM:
        return 0, []
    stamps = _decord_timestamps(path)
    if abs(stamps[0]) > UNSTAMPED:
        return 0, []
    between = (stamps[index - 1] + stamps[index]) / 2
    return index, ["-seek_timestamp", "1", "-ss", f"{between:.6f}"]


def _filters(container: Container) -> list[str]:
    """Returns ffmpeg's filters from a decoded frame to the container's size."""
    deinterlace = ["bwdif=mode=send_frame:deint=interlaced"] if container.interlaced else []
    return [*deinterlace, f"scale={container.width}:{container.height}:flags=area"]
