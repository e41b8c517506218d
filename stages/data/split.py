"""Split: find the cuts of a video, so that no clip runs across one (PySceneDetect's adaptive content detector)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, FrameTimecode

from stages.data.config import DataConfig
from stages.data.sources import assign_splits as _assign
from stages.data.video import Container, Unreadable, read_frames, read_timestamps
from stages.records import Video
from stages.spec import Context, Reject, Resources, Stage

DETECT_SIDE = 144  # px, shorter side: cuts show at any size, small is quick


@dataclass(frozen=True)
class SplitRun:
    threshold: float
    min_content: float
    min_seconds: float


@dataclass(frozen=True)
class Shots:
    """A video cut into shots. spans: (first frame, one past the last). split: "train" | "heldout", "" until decided."""

    video: Video
    spans: tuple[tuple[int, int], ...]
    split: str = ""


def run(cfg: SplitRun, item: Video, ctx: Context) -> Shots:
    """Video -> Shots. Raises Reject where the file breaks off before its second frame."""
    try:
        return Shots(item, tuple(find_shots(cfg, item)))
    except Unreadable as e:
        raise Reject(f"{item.source}: {e}") from None


def find_shots(cfg: SplitRun, video: Video) -> list[tuple[int, int]]:
    """Spans of frames without a cut. A damaged file gives the shots up to where it breaks off; none readable: Unreadable."""
    count = len(read_timestamps(video.path))
    container = Container(video.width, video.height, video.rotation).scaled_to(DETECT_SIDE)
    small = read_frames(video.path, container, range(count))
    cuts, read = find_cuts(cfg, small, video.fps)
    if read < 2:
        raise Unreadable("damaged: fewer than two frames can be decoded")
    edges = [0, *(c for c in cuts if 0 < c < read), read]
    return list(zip(edges, edges[1:], strict=False))


def find_cuts(cfg: SplitRun, frames: Iterable[np.ndarray], fps: float) -> tuple[list[int], int]:
    """Frames h w 3 uint8 -> (indices of the first frames of new shots, frames read before the end or damage)."""
    detector = AdaptiveDetector(
        adaptive_threshold=cfg.threshold,
        min_scene_len=max(1, round(cfg.min_seconds * fps)),
        min_content_val=cfg.min_content,
    )
    cuts: list[FrameTimecode] = []
    read = 0
    try:
        for frame in frames:
            bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
            cuts += detector.process_frame(FrameTimecode(read, fps), bgr)
            read += 1
    except Unreadable:
        if read < 2:
            raise
    cuts += detector.post_process(FrameTimecode(max(read - 1, 0), fps))
    return sorted({c.frame_num for c in cuts}), read


def with_splits(shots: Iterable[Shots], cfg: DataConfig) -> list[Shots]:
    """Every video's shots marked train or heldout, decided by source."""
    listed = list(shots)
    chosen = _assign([s.video for s in listed], cfg)
    return [replace(s, split=chosen[s.video.video_id]) for s in listed]


SPLIT = Stage("split", 1, "per_item", run, Resources(cpus=1.0))
