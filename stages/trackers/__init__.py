"""Point trackers behind one Protocol: CoTracker3 on the full presets, Lucas-Kanade or DIS without weights, exact tracks."""

from __future__ import annotations

from functools import lru_cache

from stages.trackers.base import COTRACKER, Tracker, TrackerConfig, Tracks, inside, uniform_grid
from stages.trackers.flow import DisFlow
from stages.trackers.lucas_kanade import LucasKanade

__all__ = [
    "COTRACKER",
    "Tracker",
    "TrackerConfig",
    "Tracks",
    "inside",
    "make_tracker",
    "shared_tracker",
    "uniform_grid",
]


def make_tracker(cfg: TrackerConfig, device: str = "cpu") -> Tracker:
    """The tracker that cfg.name asks for; device is for those that run a network. Raises ValueError listing what is wrong
    with cfg."""
    if problems := cfg.problems():
        raise ValueError("; ".join(problems))
    if cfg.name in COTRACKER:
        from stages.trackers.cotracker import CoTracker  # imports torch: late

        return CoTracker(cfg, device)
    return DisFlow(cfg) if cfg.name == "dis" else LucasKanade(cfg)


@lru_cache(maxsize=2)
def shared_tracker(cfg: TrackerConfig, device: str) -> Tracker:
    """The same tracker for the same settings: weights are loaded once a process, and a batch that was halved stays so."""
    return make_tracker(cfg, device)
