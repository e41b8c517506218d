"""Finds the shots of a video and the windows that become clips, while its frames arrive.

Legend: T frames of a clip, N frames of a video. Frames are counted from the first one given; times are seconds from the
video's first frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, FrameTimecode

from msmodel.config import ClipConfig

DETECT_SIDE = 144  # px, shorter side: cuts are visible at any size, and a small one is fast
NEAR = 1.25  # a picture up to this many times larger is used as it is


class ShotFinder:
    """Runs PySceneDetect's adaptive content detector frame by frame."""

    def __init__(self, threshold: float, min_content: float, min_seconds: float, fps: float):
        self.fps = fps
        self.read = 0
        self._detector = AdaptiveDetector(
            adaptive_threshold=threshold,
            min_scene_len=max(1, round(min_seconds * fps)),
            min_content_val=min_content,
        )

    def add(self, frame: np.ndarray) -> list[int]:
        """Takes the next frame, h w 3 uint8; returns the first frames of shots that are newly known, rising."""
        bgr = cv2.cvtColor(_small(frame), cv2.COLOR_RGB2BGR)
        cuts = self._detector.process_frame(FrameTimecode(self.read, self.fps), bgr)
        self.read += 1
        return [c.frame_num for c in cuts if c.frame_num > 0]

    @property
    def settled(self) -> int:
        """Returns for how many frames it is known whether a shot begins there: the detector looks ahead."""
        return max(0, self.read - self._detector.event_buffer_length)


def _small(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    ratio = DETECT_SIDE / min(height, width)
    if ratio * NEAR >= 1:
        return frame
    return cv2.resize(frame, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_AREA)


def nearest(stamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns the index of the frame nearest to each time, also at a variable rate. stamps N rising, times T -> T int."""
    right = np.clip(np.searchsorted(stamps, times), 1, max(len(stamps) - 1, 1))
    right = np.minimum(right, len(stamps) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(times - stamps[left] <= stamps[right] - times, left, right)


@dataclass(frozen=True)
class Window:
    """Describes a clip before it is written: its frames, and those of its variant at twice the speed (none if not wanted).

    plain, fast: T int, the frames nearest to the clip's times. plain_reach, fast_reach: the frame that a shot must contain for
    the clip to fit (with a tolerance of half a frame of the clip), N if the video ends before.
    """

    start: float
    plain: np.ndarray
    fast: np.ndarray
    plain_reach: int
    fast_reach: int

    @property
    def decided(self) -> int:
        """Returns the number of frames of the shot after which no later frame changes the clip."""
        return 1 + max(int(i) for i in (self.plain_reach, *self.plain[-1:], self.fast_reach, *self.fast[-1:]))

    def wants(self, index: int) -> bool:
        """Returns whether the clip or its variant uses this frame."""
        return index in self.plain or index in self.fast

    def ended_at(self, end: int) -> Window:
        """Returns the window for a shot whose last frame is end - 1, which replaces the frames after it."""
        return Window(
            self.start,
            np.minimum(self.plain, end - 1),
            np.minimum(self.fast, end - 1),
            self.plain_reach,
            self.fast_reach,
        )


def windows(clip: ClipConfig, overlap: float, fast: bool, stamps: np.ndarray, first: int) -> Iterator[Window]:
    """Yields the windows of a shot from frame `first` on, endlessly: the caller stops at the end of the shot. stamps: N."""
    steps = np.arange(clip.frames) / clip.fps
    stride = clip.frames / clip.fps * (1.0 - overlap)
    late = stamps + 0.5 / clip.fps
    count = 0
    while True:
        start = float(stamps[first]) + count * stride
        nothing = np.zeros(0, np.int64)
        yield Window(
            start=start,
            plain=nearest(stamps[first:], start + steps) + first,
            fast=nearest(stamps[first:], start + 2 * steps) + first if fast else nothing,
            plain_reach=int(np.searchsorted(late, start + (clip.frames - 1) / clip.fps)),
            fast_reach=int(np.searchsorted(late, start + 2 * steps[-1])) if fast else 0,
        )
        count += 1
