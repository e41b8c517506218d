"""Reads the exact tracks that the renderer wrote. This is no Tracker: it needs the clip's folder, not its frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NAME = "ground_truth"


def read_tracks(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Loads xy_px T n 2 float32 and visible T n bool of folder/tracks.npz. Raises ValueError if it is missing."""
    path = Path(folder) / "tracks.npz"
    if not path.is_file():
        raise ValueError(f"{path} is missing: a rendered clip carries its exact tracks, render it again")
    with np.load(path, allow_pickle=False) as f:
        return f["xy_px"], f["visible"]
