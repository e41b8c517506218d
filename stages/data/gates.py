"""Quality gates: what a real clip must be like to be used. Rendered clips are as they should be by construction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GateConfig:
    """Each names a figure of the catalogue and the least or most that is let through. The defaults let through what any tool
    would; 0 (or 1 for a share) turns a gate off."""

    min_brightness: float = 0.04  # mean luma, 0 black to 1 white
    max_brightness: float = 0.98
    min_sharpness: float = 0.0  # variance of the Laplacian of luma (0..255) at clip size, median over frames
    max_letterbox: float = 0.12  # share of the picture taken by black bars
    max_overlay: float = 1.0  # share of the picture under still text or logos while the rest moves
    min_moving_share: float = 0.0  # of tracks: those whose path while visible is longer than 2% of the frame's width
    min_moving_px: float = 0.0  # median path length, pixels at clip size
    min_visible_share: float = 0.2  # of tracks and frames
    max_back_px: float = 0.0  # mean forward-backward error of visible points; trackers without that check pass
    max_duplicate_bits: int = 6  # of 192: clips of different videos whose hashes differ in no more are one; -1 is off
