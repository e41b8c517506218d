"""The list of point trackers: every entry can be made, and those without weights keep the Protocol."""

import subprocess
import sys

import numpy as np
import pytest

from stages.data.track import track_stage
from stages.trackers import TRACKERS, TrackerConfig, Tracks, make_tracker, uniform_grid
from stages.trackers.registry import TrackerEntry
from tests.unit.stages.trackers.test_lucas_kanade import warped

WITHOUT_WEIGHTS = [name for name, entry in TRACKERS.items() if not entry.network]


class StandingStill:
    """A tracker in one class: no point moves."""

    name, version, licence = "standing_still", "1", "Apache-2.0"

    def __init__(self, cfg: TrackerConfig) -> None:
        self.thresholds = {"max_back_px": cfg.max_back_px}

    def track(self, frames, queries_xy, query_frame=0):
        xy_px = np.repeat(queries_xy[None], len(frames), axis=0)
        visible = np.ones(xy_px.shape[:2], bool)
        return Tracks(xy_px, visible, visible.astype(np.float32))


def test_one_line_adds_a_tracker(monkeypatch):
    monkeypatch.setitem(TRACKERS, "standing_still", TrackerEntry(__name__, "StandingStill"))
    made = make_tracker(TrackerConfig("standing_still", max_back_px=0.5))
    assert type(made).__name__ == "StandingStill" and made.thresholds == {"max_back_px": 0.5}
    assert track_stage(TrackerConfig("standing_still")).resources.gpus == 0
    assert track_stage(TrackerConfig("cotracker3_offline")).resources.gpus == 1  # compute.item_gpus divides it


@pytest.mark.parametrize("name", ["lucas", "", "DIS", "ground_truth"])
def test_an_unknown_name_is_refused_with_all_names(name):
    with pytest.raises(ValueError, match=r"tracker\.name: ") as raised:
        make_tracker(TrackerConfig(name))
    assert f"{name!r} is not one of {', '.join(TRACKERS)}" in str(raised.value)


@pytest.mark.slow
def test_settings_are_read_without_importing_a_tracker():
    code = "import sys, stages.trackers; print([m for m in sys.modules if m.startswith('stages.trackers.')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "stages.trackers.base" in found and "cotracker" not in found and "lucas_kanade" not in found


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
@pytest.mark.parametrize("query_frame", [0, 3])
def test_a_tracker_keeps_the_protocol(name, query_frame):
    frames, _ = warped(6, 0.0, 1.0, (3.0, 0.0))
    queries = uniform_grid(48, 80, 4, 6)
    tracker = make_tracker(TrackerConfig(name))
    found = tracker.track(frames, queries, query_frame)
    assert tracker.name == name and tracker.version and tracker.licence
    assert all(isinstance(value, float) for value in tracker.thresholds.values())
    assert (found.xy_px.shape, found.xy_px.dtype) == ((6, 24, 2), np.float32) and np.isfinite(found.xy_px).all()
    assert (found.visible.shape, found.visible.dtype) == ((6, 24), bool)
    assert (found.confidence.shape, found.confidence.dtype) == ((6, 24), np.float32)
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    assert np.array_equal(found.xy_px[query_frame], queries) and found.visible[query_frame].all()
    assert tracker.track(frames, queries[:0], query_frame).xy_px.shape == (6, 0, 2)
    for bad in (
        (frames[0], queries, 0),
        (frames.astype(np.float32), queries, 0),
        (frames, queries, 6),
        (frames, queries[:, 0], 0),
    ):
        with pytest.raises(ValueError):
            tracker.track(*bad)
