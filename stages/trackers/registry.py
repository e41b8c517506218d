"""The list of point trackers. stages/trackers/__init__.py describes how to add one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class TrackerEntry:
    """Names a tracker's class. network: whether it runs a neural network, and so takes a device and may use a GPU.

    The module is imported when a tracker is made: settings are read without torch.
    """

    module: str
    cls: str
    network: bool = False

    def make(self, cfg: Any, device: str) -> Any:
        """Returns a Tracker. cfg: a TrackerConfig."""
        made = getattr(import_module(self.module), self.cls)
        return made(cfg, device) if self.network else made(cfg)


TRACKERS: dict[str, TrackerEntry] = {
    "cotracker3_offline": TrackerEntry("stages.trackers.cotracker", "CoTracker", network=True),
    "cotracker3_online": TrackerEntry("stages.trackers.cotracker", "CoTracker", network=True),
    "lucas_kanade": TrackerEntry("stages.trackers.lucas_kanade", "LucasKanade"),
    "dis": TrackerEntry("stages.trackers.flow", "DisFlow"),
}
