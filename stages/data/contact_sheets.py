"""Contact sheets and pictures of clips with tracks, for people who judge data. Pictures are h w 3 uint8."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np

from stages.data.files import read_clip_frames
from stages.records import Clip
from stages.trackers.ground_truth import read_tracks

SHEET_HEIGHT = 120  # px: a clip that is smaller is enlarged by a whole number, a larger one reduced
MOST_TRACKS = 60  # drawn over one clip
DOT_SHARE = 160  # heights of a picture to the radius of a dot


def data_uri(content: bytes, kind: str) -> str:
    """Encodes a file for an HTML page. kind: its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(picture: np.ndarray) -> bytes:
    """Encodes a picture (H W 3 uint8 RGB) as PNG."""
    ok, coded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert ok, "a uint8 RGB picture can always be coded as PNG"
    return coded.tobytes()


def jpeg(picture: np.ndarray) -> bytes:
    """Encodes a picture (H W 3 uint8 RGB) as JPEG, a tenth of the size of a PNG, for pages that show many frames."""
    ok, coded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert ok, "a uint8 RGB picture can always be coded as JPEG"
    return coded.tobytes()


def tracked(frames: np.ndarray, xy_px: np.ndarray, visible: np.ndarray, height: int = SHEET_HEIGHT) -> np.ndarray:
    """Draws some of a clip's tracks over its frames at about `height` px: T H W 3 uint8, H and W even.

    frames T h w 3 uint8, xy_px T n 2, visible T n.
    """
    h, w = frames.shape[1:3]
    thin = max(1, -(-xy_px.shape[1] // MOST_TRACKS))
    xy_px, visible = xy_px[:, ::thin], visible[:, ::thin]
    if h < height:
        drawn = overlay_tracks(frames, xy_px, visible, zoom=round(height / h))
    else:
        size = (round(w * height / h), height)
        small = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])
        drawn = overlay_tracks(small, xy_px * (height / h), visible, zoom=1)
    return drawn[:, : drawn.shape[1] // 2 * 2, : drawn.shape[2] // 2 * 2]


def clips_contact_sheet(clips: Sequence[Clip], rows: int = 8) -> np.ndarray:
    """Makes a contact sheet of at most `rows` clips, spread evenly over all, with their tracks: h w 3 uint8."""
    ordered = sorted(clips, key=lambda c: (c.kind, c.clip_id))
    chosen = np.linspace(0, len(ordered) - 1, min(rows, len(ordered))).round().astype(int)
    shown = (ordered[i] for i in chosen)
    return contact_sheet([tracked(read_clip_frames(c), *read_tracks(c.folder)) for c in shown])


def overlay_tracks(
    frames: np.ndarray, xy_px: np.ndarray, visible: np.ndarray, zoom: int = 3, trail: int = 6
) -> np.ndarray:
    """Draws a dot for each visible point, and its last `trail` steps, over enlarged frames.

    frames T h w 3, xy_px T n 2, visible T n -> T (zoom h) (zoom w) 3.
    """
    out = []
    hues = np.linspace(0, 179, max(xy_px.shape[1], 1), endpoint=False).astype(np.uint8)
    hsv = np.stack([hues, np.full_like(hues, 255), np.full_like(hues, 255)], axis=-1)[None]
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].tolist()
    for t, frame in enumerate(frames):
        picture = cv2.resize(frame, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
        radius = max(1, round(len(picture) / DOT_SHARE))
        for n in np.flatnonzero(visible[t]):
            steps = [s for s in range(max(0, t - trail), t + 1) if visible[s, n]]
            line = np.round(xy_px[steps, n] * zoom - 0.5).astype(np.int32)
            cv2.polylines(picture, [line.reshape(-1, 1, 2)], False, colours[n], radius, cv2.LINE_AA)
            cv2.circle(picture, tuple(int(v) for v in line[-1]), radius, colours[n], -1)
        out.append(picture)
    return np.stack(out)


def contact_sheet(videos: Sequence[np.ndarray], columns: int = 6, border: int = 1) -> np.ndarray:
    """Lays out videos (T h w 3 uint8 each, all of one frame size), one a row: h w 3 uint8.

    columns: frames a row, evenly spaced, the first and the last among them. border: black pixels around each frame.
    """
    edges = ((border, border), (border, border), (0, 0))
    rows = []
    for frames in videos:
        shown = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
        rows.append(np.concatenate([np.pad(frame, edges) for frame in shown], axis=1))
    return np.concatenate(rows, axis=0)
