"""Shots and windows of a video, decided while its frames arrive: where it is cut, and which frames make which clip.

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

DETECT_SIDE = 144  # px, shorter side: cuts show at any size, small is quick
NEAR = 1.25  # a picture up to this much larger is as good as one of that size


class ShotFinder:
    """PySceneDetect's adaptive content detector, fed frame by frame."""

    def __init__(self, threshold: float, min_content: float, min_seconds: float, fps: float):
        self.fps = fps
        self.read = 0
        self._detector = AdaptiveDetector(
            adaptive_threshold=threshold,
            min_scene_len=max(1, round(min_seconds * fps)),
            min_content_val=min_content,
        )

    def add(self, frame: np.ndarray) -> list[int]:
        """frame h w 3 uint8 -> the first frames of shots that are known now and were not before, rising."""
        bgr = cv2.cvtColor(_small(frame), cv2.COLOR_RGB2BGR)
        cuts = self._detector.process_frame(FrameTimecode(self.read, self.fps), bgr)
        self.read += 1
        return [c.frame_num for c in cuts if c.frame_num > 0]

    @property
    def settled(self) -> int:
        """Of so many frames it is known whether a shot begins there: the detector looks ahead."""
        return max(0, self.read - self._detector.event_buffer_length)


def _small(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    ratio = DETECT_SIDE / min(height, width)
    if ratio * NEAR >= 1:
        return frame
    return cv2.resize(frame, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_AREA)


def nearest(stamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Index of the frame shown nearest to each time; handles variable frame rates. stamps N rising, times T -> T int."""
    right = np.clip(np.searchsorted(stamps, times), 1, max(len(stamps) - 1, 1))
    right = np.minimum(right, len(stamps) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(times - stamps[left] <= stamps[right] - times, left, right)


@dataclass(frozen=True)
class Window:
    """One clip to be: the frames nearest to its times, and those of the clip at twice the speed (none where not wanted).

    plain, fast: T int. plain_reach, fast_reach: the frame that a shot must hold for the clip to fit (half a frame of the
    clip is tolerated), N where the video ends before.
    """

    start: float
    plain: np.ndarray
    fast: np.ndarray
    plain_reach: int
    fast_reach: int

    @property
    def decided(self) -> int:
        """Once the shot is known to hold so many frames, no later one changes anything."""
        return 1 + max(int(i) for i in (self.plain_reach, *self.plain[-1:], self.fast_reach, *self.fast[-1:]))

    def wants(self, index: int) -> bool:
        return index in self.plain or index in self.fast

    def ended_at(self, end: int) -> Window:
        """The same where the shot's last frame is end - 1: it stands for those after it."""
        return Window(
            self.start,
            np.minimum(self.plain, end - 1),
            np.minimum(self.fast, end - 1),
            self.plain_reach,
            self.fast_reach,
        )


def windows(clip: ClipConfig, overlap: float, fast: bool, stamps: np.ndarray, first: int) -> Iterator[Window]:
    """Every window of a shot from frame `first` on, without end: the caller stops at the shot's. stamps: N."""
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
