"""Draws tracks over frames, for videos that people watch.

Legend: T frames, n tracks.
"""

from __future__ import annotations

import cv2
import numpy as np

TRAIL = 8  # frames that a trail reaches back


def enlarge(frame: np.ndarray, height: int) -> np.ndarray:
    """Resizes a frame (h w 3) to `height`: by nearest neighbour if that is a multiple of h, so that pixels stay pixels."""
    h, w = frame.shape[:2]
    width = round(w * height / h)
    how = cv2.INTER_NEAREST if height % h == 0 else cv2.INTER_AREA if height < h else cv2.INTER_LINEAR
    return cv2.resize(frame, (width, height), interpolation=how)


def draw_trails(frame: np.ndarray, xy: np.ndarray, visible: np.ndarray, t: int, most: int = 60) -> None:
    """Draws onto `frame`, in place, the trails of visible tracks over the last TRAIL frames, and a dot where each is at t.

    frame: an enlarged frame, H W 3 uint8. xy: T n 2 in its pixels. visible: T n bool. most: tracks drawn, evenly thinned.
    """
    n = xy.shape[1]
    for k in range(0, n, max(1, -(-n // most))):
        if not visible[t, k]:
            continue
        colour = tuple(int(c) for c in _colour(k / max(1, n)))
        trail = [_fixed_point(xy[s, k]) for s in range(max(0, t - TRAIL), t + 1) if visible[s, k]]
        for a, b in zip(trail[:-1], trail[1:], strict=True):
            cv2.line(frame, a, b, colour, 1, cv2.LINE_AA, shift=3)
        cv2.circle(frame, trail[-1], 16, colour, -1, cv2.LINE_AA, shift=3)


def _fixed_point(xy: np.ndarray) -> tuple[int, int]:
    """Converts to OpenCV's coordinates in eighths of a pixel, where pixel centres lie at whole numbers."""
    x, y = np.round((xy - 0.5) * 8).astype(int)
    return int(x), int(y)


def _colour(share: float) -> np.ndarray:
    hsv = np.array([[[int(share * 170), 220, 255]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
