"""Point trackers: each follows points through a clip, behind the Protocol `Tracker` (stages/trackers/base.py).

TRACKERS lists them by the name that `data.tracker.name` gives. To add one:

1. Write stages/trackers/NAME.py with a class that has the attributes and the method `track` of `Tracker`; flow.py, of 50
   lines, is the shortest to copy. Its `name` equals its key in TRACKERS. The constructor is called with a TrackerConfig
   (add a field with a default if none fits), and with (cfg, device) if the entry has `network=True`.
2. Add one line to TRACKERS in registry.py: name, module, class, and `network=True` if it runs a neural network. Settings,
   messages, the bench of trackers and the GPU that the stage TRACK asks for follow from it.
3. Add a row to the table of trackers in docs/licences.md. Run `python -m configs.document` and
   `python -m tests.golden.test_defaults`, because the bench measures all of TRACKERS by default.
4. Run tests/unit/stages/trackers/test_registry.py: it holds every tracker that needs no weights to the Protocol. Copy
   test_flow.py for how well it follows known motion, and measure it: `python -m pipelines bench-trackers`.
"""

from __future__ import annotations

from functools import lru_cache

from stages.trackers.base import Tracker, TrackerConfig, Tracks, inside, uniform_grid
from stages.trackers.registry import TRACKERS

__all__ = [
    "TRACKERS",
    "Tracker",
    "TrackerConfig",
    "Tracks",
    "inside",
    "make_tracker",
    "shared_tracker",
    "uniform_grid",
]


def make_tracker(cfg: TrackerConfig, device: str = "cpu") -> Tracker:
    """Makes the point tracker that cfg.name names. device: where a neural network runs; others run on the CPU.

    Raises ValueError that lists what is wrong with cfg, or why the tracker cannot be loaded.
    """
    if problems := cfg.problems():
        raise ValueError("; ".join(problems))
    return TRACKERS[cfg.name].make(cfg, device)


@lru_cache(maxsize=2)
def shared_tracker(cfg: TrackerConfig, device: str) -> Tracker:
    """Returns one tracker per settings and process, so that weights are loaded once."""
    return make_tracker(cfg, device)
