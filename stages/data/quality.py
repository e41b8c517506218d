"""Computes the figures of a clip's picture, which need no tracks, and its perceptual hash.

Legend: T frames, h w frame size. Luma is 0 to 255.
"""

from __future__ import annotations

import cv2
import numpy as np

MOST_FRAMES = 16  # examined for what does not move: evenly spread, to save time and memory on full-size clips

BAR_LUMA = 24.0  # black in limited range that was not widened is 16
BAR_DEVIATION = 2.5  # of a row of a bar, over its width and all frames: noise of the codec, no picture
EDGE_ROWS = 3  # inside a bar's edge: resizing mixes the first with the bar
LIT_SHARE = 0.5  # of a bar's edge along which the picture must be lit: the outline of a dark object is not straight

CORNER = 5e-3  # least eigenvalue of the gradients' covariance (luma 0 to 1): a letter's corner, no soft texture
MOST_STILL = 0.5  # share of single frames' corners: if more do not move, the camera does not either
MOVING_DEVIATION = 4.0  # of a pixel over time, median over the picture: above what grain and codec do

HASH_ROWS, HASH_COLUMNS = 8, 8
HASH_MARGIN = 1.0  # luma: else the bits of flat parts would be noise


def picture_quality(frames: np.ndarray) -> dict[str, float]:
    """Returns the figures of the picture by name, from frames T h w 3 uint8.

    brightness: mean luma, 0 to 1. sharpness: variance of the Laplacian of luma, median over frames. letterbox: share of the
    picture taken by black bars. overlay: share of the picture under corners that stand still (letters, logos) while the rest
    moves; 0 where nothing moves.
    """
    luma = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames])
    spread = luma[np.linspace(0, len(luma) - 1, min(MOST_FRAMES, len(luma))).round().astype(int)]
    sharpness = [cv2.Laplacian(f, cv2.CV_32F).var() for f in luma]
    return {
        "brightness": float(luma.mean() / 255),
        "sharpness": float(np.median(sharpness)),
        "letterbox": letterbox(spread),
        "overlay": overlay(spread),
    }


def letterbox(luma: np.ndarray) -> float:
    """Returns the share of the picture (luma T h w uint8) taken by black bars.

    A bar touches a side of the frame, is dark and even over its length and the whole clip, and has a straight edge to the
    picture. 0 if everything is dark.
    """
    height, width = luma.shape[1:]
    top, bottom = _bar(luma), _bar(luma[:, ::-1])
    if top + bottom >= height:
        return 0.0
    inner = luma[:, top : height - bottom].transpose(0, 2, 1)
    left, right = _bar(inner), _bar(inner[:, ::-1])
    if left + right >= width:
        return 0.0
    return 1.0 - (height - top - bottom) * (width - left - right) / (height * width)


def _bar(luma: np.ndarray) -> int:
    """Returns the rows of a black bar at the top of luma T h w; 0 if there is none, or everything is dark."""
    peak, deviation = np.percentile(luma, 99, axis=(0, 2)), luma.std(axis=(0, 2))
    picture = np.flatnonzero((peak > BAR_LUMA) | (deviation > BAR_DEVIATION))
    if not len(picture):
        return 0
    rows = int(picture[0])
    lit = luma[:, rows : rows + EDGE_ROWS].max(axis=(0, 1)) > BAR_LUMA
    return rows if lit.mean() >= LIT_SHARE else 0


def overlay(luma: np.ndarray) -> float:
    """Returns the share of the picture (luma T h w uint8) under corners that survive averaging over time, if most of it moves.

    Corners are used because a straight edge that slides along itself looks still. If most corners of single frames do not move,
    the camera is fixed and the result is 0. An object that the camera follows counts too: a figure near 0 means that there is
    no overlay, a larger one only that there may be.
    """
    still = _corners(luma.mean(axis=0, dtype=np.float32))
    single = np.mean([_corners(f.astype(np.float32)).mean() for f in (luma[0], luma[len(luma) // 2], luma[-1])])
    covered = cv2.dilate(still.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    rest = luma.std(axis=0)[~covered]
    if not rest.size or np.median(rest) < MOVING_DEVIATION or still.mean() > MOST_STILL * single:
        return 0.0
    return float(covered.mean())


def _corners(luma: np.ndarray) -> np.ndarray:
    """Returns where a picture (h w float32) has corners: h w bool."""
    return cv2.cornerMinEigenVal(luma / 255, blockSize=3, ksize=3) > CORNER


def perceptual_hash(frames: np.ndarray) -> str:
    """Returns 192 bits as 48 hexadecimal digits: the difference hashes of the first, middle and last of frames T h w 3 uint8.

    A difference hash (dHash) says which of 8 x 9 cells are lighter than their left neighbour. Copies of another size or coding
    differ in few bits.
    """
    bits = []
    for index in (0, len(frames) // 2, len(frames) - 1):
        luma = cv2.cvtColor(frames[index], cv2.COLOR_RGB2GRAY).astype(np.float32)
        cells = cv2.resize(luma, (HASH_COLUMNS + 1, HASH_ROWS), interpolation=cv2.INTER_AREA)
        bits.append(np.diff(cells, axis=1) > HASH_MARGIN)
    return np.packbits(np.stack(bits)).tobytes().hex()
