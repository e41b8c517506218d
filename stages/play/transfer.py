"""Motion transfer: tracks the user's video from the training grid, at the clip's size and frame rate.

Legend: T frames, n points. Clip pixels, pixel centres at +0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msmodel.config import ClipConfig
from msmodel.points import uniform_grid
from msmodel.tracks import resize_px
from stages.data.cut import crop_box
from stages.data.shots import nearest
from stages.data.video import Container, frame_rate, read_container, read_frames, read_timestamps
from stages.trackers.base import Tracker

TRACKED_SIDE = 192  # a small clip's motion is tracked at up to this height, where more detail is left


@dataclass(frozen=True)
class TransferLimits:
    """Limits of a video. seconds: of its length. pixels: of a frame as shown."""

    seconds: float = 12.0
    pixels: int = 3840 * 2160


def motion_of_clip(
    path: str, clip: ClipConfig, grid: tuple[int, int], tracker: Tracker, limits: TransferLimits
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a video's tracks from a grid (rows, columns) on its first frame: xy_px T n 2 float32, visible T n.

    They have the clip's size and rate; the picture is cropped to the clip's aspect at its centre. Raises ValueError for a file
    that is no video, or is too long, too large or too short.
    """
    container, stamps = _probe(path, limits)
    seconds = float(stamps[-1]) + 1 / (frame_rate(stamps) or clip.fps)
    count = int(seconds * clip.fps + 1e-6)
    if count < 2:
        raise ValueError(f"{seconds:.2f} s of video are less than two frames at {clip.fps:g} fps: choose a longer one")
    wanted = nearest(stamps, np.arange(count) / clip.fps)
    frames = _cut(path, container.scaled_to(max(clip.height, TRACKED_SIDE)), wanted, clip)
    size = (frames.shape[1], frames.shape[2])
    found = tracker.track(frames, uniform_grid(*size, *grid))
    if not found.visible[1:].any():
        raise ValueError("no point of the first frame could be followed: take a clip with more texture and less motion")
    return resize_px(found.xy_px, size, (clip.height, clip.width)), found.visible


def _probe(path: str, limits: TransferLimits) -> tuple[Container, np.ndarray]:
    """Reads facts and the time of each frame, and checks the limits before anything is decoded."""
    container = read_container(path)
    if container.width * container.height > limits.pixels:
        raise ValueError(
            f"frames of {container.width}x{container.height} have more than {limits.pixels / 1e6:.1f} megapixels: "
            "make it smaller"
        )
    if container.seconds > limits.seconds:
        raise ValueError(f"{container.seconds:.1f} s of video; at most {limits.seconds:g} s are accepted: shorten it")
    stamps = read_timestamps(path)
    if stamps[-1] > limits.seconds:  # its header does not state it
        raise ValueError(f"{stamps[-1]:.1f} s of video; at most {limits.seconds:g} s are accepted: shorten it")
    return container, stamps


def _cut(path: str, container: Container, wanted: np.ndarray, clip: ClipConfig) -> np.ndarray:
    """Reads the frames `wanted`, cropped to the clip's aspect at the centre: T h w 3 uint8."""
    left, top, w, h = crop_box(container.width, container.height, clip)
    each = np.unique(wanted)
    cut = {
        int(index): frame[top : top + h, left : left + w].copy()
        for index, frame in zip(each, read_frames(path, container, each.tolist()), strict=True)
    }
    return np.stack([cut[int(index)] for index in wanted])
