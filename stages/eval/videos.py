"""Videos of the page: tiles side by side with their tracks drawn over them, as H.264 that every browser plays.

Legend: T frames, n tracks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from stages.data.drawing import draw_trails, enlarge
from stages.data.files import write_mp4

LABEL_PX, GAP_PX = 22, 4
PAPER, INK = (24, 26, 31), (228, 230, 235)


@dataclass(frozen=True)
class Tile:
    """A labelled video in a mosaic. video: T h w 3 uint8; None leaves its place empty.

    tracks: (xy_px T n 2 in pixels of the video, visible T n), drawn over it.
    """

    label: str
    video: np.ndarray | None = None
    tracks: tuple[np.ndarray, np.ndarray] | None = None


def mosaic(rows: Sequence[Sequence[Tile]], height: int) -> np.ndarray:
    """Returns tiles in rows with their labels: T H W 3 uint8, sizes even. height: pixels of one tile."""
    some = next(t.video for row in rows for t in row if t.video is not None)
    frames, width = len(some), enlarge(some[0], height).shape[1]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + LABEL_PX + GAP_PX), columns * (width + GAP_PX))
    out = np.empty((frames, shape[0] + shape[0] % 2, shape[1] + shape[1] % 2, 3), np.uint8)
    out[:] = PAPER
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            y, x = r * (height + LABEL_PX + GAP_PX), c * (width + GAP_PX)
            for t in range(frames):
                place = out[t, y : y + LABEL_PX + height, x : x + width]
                cv2.putText(place, tile.label, (3, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
                if tile.video is not None and t < len(tile.video):
                    place[LABEL_PX:] = drawn_frame(tile, t, height)
    return out


def drawn_frame(tile: Tile, t: int, height: int) -> np.ndarray:
    """Returns frame t of a tile, enlarged to `height` pixels, with its tracks. The tile must have a video."""
    assert tile.video is not None
    picture = np.ascontiguousarray(enlarge(tile.video[t], height))
    if tile.tracks is not None:
        xy, visible = tile.tracks
        draw_trails(picture, xy * (height / tile.video.shape[1]), visible, t)
    return picture


def mp4(video: np.ndarray, fps: float) -> bytes:
    """Returns the video as H.264, yuv420p, faststart. video: T H W 3 uint8 with even sizes.

    Raises OSError with ffmpeg's message on failure.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.mp4"
        write_mp4(path, video, fps, crf=23)
        return path.read_bytes()
