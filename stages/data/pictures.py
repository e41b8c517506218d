"""Contact sheets: what people look at to judge data. Pictures are h w 3 uint8."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def draw_tracks(
    frames: np.ndarray, xy_px: np.ndarray, visible: np.ndarray, zoom: int = 3, trail: int = 6
) -> np.ndarray:
    """frames T h w 3, tracks T n 2, flags T n -> T (zoom h) (zoom w) 3 with dots where visible and their last steps."""
    out = []
    hues = np.linspace(0, 179, max(xy_px.shape[1], 1), endpoint=False).astype(np.uint8)
    hsv = np.stack([hues, np.full_like(hues, 255), np.full_like(hues, 255)], axis=-1)[None]
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].tolist()
    for t, frame in enumerate(frames):
        picture = cv2.resize(frame, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
        for n in np.flatnonzero(visible[t]):
            steps = [s for s in range(max(0, t - trail), t + 1) if visible[s, n]]
            line = np.round(xy_px[steps, n] * zoom - 0.5).astype(np.int32)
            cv2.polylines(picture, [line.reshape(-1, 1, 2)], False, colours[n], 1, cv2.LINE_AA)
            cv2.circle(picture, tuple(int(v) for v in line[-1]), 1, colours[n], -1)
        out.append(picture)
    return np.stack(out)


def contact_sheet(clips: Sequence[np.ndarray], columns: int = 6) -> np.ndarray:
    """One row a clip (T h w 3 each, all of one size): `columns` frames evenly spaced, first and last among them."""
    rows = []
    for frames in clips:
        index = np.linspace(0, len(frames) - 1, columns).round().astype(int)
        rows.append(np.concatenate([np.pad(frames[i], ((1, 1), (1, 1), (0, 0))) for i in index], axis=1))
    return np.concatenate(rows, axis=0)
