"""Point trackers behind one Protocol: CoTracker3 on the full presets, Lucas-Kanade or DIS without weights, exact tracks."""

from __future__ import annotations

from stages.trackers.base import COTRACKER, Tracker, TrackerConfig, Tracks, inside, uniform_grid
from stages.trackers.flow import DisFlow
from stages.trackers.lucas_kanade import LucasKanade

__all__ = ["Tracker", "TrackerConfig", "Tracks", "inside", "make_tracker", "uniform_grid"]


def make_tracker(cfg: TrackerConfig) -> Tracker:
    """The tracker that cfg.name asks for. Raises ValueError listing what is wrong with cfg."""
    if problems := cfg.problems():
        raise ValueError("; ".join(problems))
    if cfg.name in COTRACKER:
        from stages.trackers.cotracker import CoTracker  # imports torch: late

        return CoTracker(cfg)
    return DisFlow(cfg) if cfg.name == "dis" else LucasKanade(cfg)
