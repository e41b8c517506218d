"""TAP-Vid metrics (Doersch et al. 2022): delta_avg, occlusion accuracy (OA), average Jaccard (AJ).

Legend: T frames, n points. Distances are taken on a 256 x 256 raster; thresholds 1, 2, 4, 8, 16 px, strict <.
"""

from __future__ import annotations

import numpy as np

RASTER = 256.0
THRESHOLDS_PX = (1.0, 2.0, 4.0, 8.0, 16.0)


def tapvid(
    true_xy: np.ndarray, true_visible: np.ndarray, xy: np.ndarray, visible: np.ndarray, height: int, width: int
) -> dict[str, float]:
    """Tracks T n 2 in pixels of a height x width frame, flags T n -> delta_avg, oa, aj in [0, 1].

    Frame 0 is the query (mode `first`) and is left out. NaN where no ground-truth point is ever visible.
    """
    scale = np.array([RASTER / width, RASTER / height])
    distance = np.linalg.norm((xy - true_xy)[1:] * scale, axis=-1)
    truth, seen = true_visible[1:], visible[1:]
    if not truth.any():
        return {"delta_avg": float("nan"), "oa": float("nan"), "aj": float("nan")}
    deltas, jaccards = [], []
    for threshold in THRESHOLDS_PX:
        close = distance < threshold
        hit = (close & truth & seen).sum()
        false = (seen & ~(close & truth)).sum()
        deltas.append((close & truth).sum() / truth.sum())
        jaccards.append(hit / (truth.sum() + false))
    return {"delta_avg": float(np.mean(deltas)), "oa": float((truth == seen).mean()), "aj": float(np.mean(jaccards))}
