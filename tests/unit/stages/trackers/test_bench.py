"""The bench against fakes of known quality, and what it says where it cannot measure."""

import json
from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from stages.contracts import StageError
from stages.data.files import save_npz
from stages.records import Clip
from stages.trackers import TRACKERS, TrackerConfig, bench
from stages.trackers.base import Tracks
from stages.trackers.bench import TrackerBenchConfig, TrackerBenchRun, tapvid
from tests.fakes import FakeContext

SHARED = TrackerConfig("lucas_kanade", hub="no/such-folder", checkpoint="no-such-weights.pth")


def rendered(folder, scene: str, number: int, tracker: str = "ground_truth", split: str = "train") -> Clip:
    """A texture that slides 1 px right a frame, with its exact tracks."""
    clip_id = f"{scene}-{number}"
    home = folder / clip_id
    home.mkdir()
    noise = np.random.default_rng(number).integers(0, 256, (10, 16, 3)).astype(np.uint8)
    wide = cv2.resize(noise, (96, 40), interpolation=cv2.INTER_CUBIC)
    frames = np.stack([wide[:, 20 - t : 84 - t] for t in range(8)])
    start = np.array([[x, y] for y in (10.0, 20.0, 30.0) for x in (10.0, 20.0, 30.0, 40.0)], np.float32)
    xy = start + np.arange(8, dtype=np.float32)[:, None, None] * np.array([1, 0], np.float32)
    visible = np.ones(xy.shape[:2], bool)
    save_npz(home / "clip.npz", {"frames": frames})
    save_npz(home / "tracks.npz", {"xy_px": xy, "visible": visible})
    return Clip(clip_id, str(home), scene, split, "rendered", "", "noise", "own", tracker=tracker)


@dataclass
class Still:
    """Says that nothing moves. Remembers the threads it was run with."""

    name: str = "dis"
    version: str = "1"
    licence: str = "own"

    def track(self, frames, queries_xy, query_frame=0):
        self.threads = cv2.getNumThreads()
        xy = np.repeat(queries_xy[None], len(frames), axis=0)
        return Tracks(xy, np.ones(xy.shape[:2], bool), np.ones(xy.shape[:2], np.float32))


def test_every_tracker_gets_a_row_and_those_that_cannot_run_a_reason(tmp_path):
    clips = [rendered(tmp_path, "a", 0), rendered(tmp_path, "b", 1)]
    ctx = FakeContext(tmp_path / "work")
    out = bench.run(TrackerBenchRun(SHARED, TrackerBenchConfig()), clips, ctx)
    rows = {f.tracker: f for f in out.figures}
    assert set(rows) == set(TRACKERS)
    assert "no file no-such-weights.pth" in rows["cotracker3_offline"].reason
    good = rows["lucas_kanade"]
    assert good.clips == 2 and good.delta_avg > 0.9 and good.oa > 0.9 and good.aj > 0.8
    assert 0 <= good.back_px < 0.1 and good.ms > 0 and good.reason == ""
    saved = json.loads((tmp_path / "work/trackers.json").read_text())
    assert saved["clips"] == ["a-0", "b-1"]
    assert saved["figures"][0]["delta_avg"] is None
    lines = (tmp_path / "work/trackers.md").read_text().splitlines()
    assert len(lines) == 2 + len(TRACKERS) and len({line.count("|") for line in lines}) == 1
    assert any("not run: " in line for line in lines)


def test_a_tracker_that_is_wrong_scores_as_it_should_on_one_thread(tmp_path, monkeypatch):
    still, before = Still(), cv2.getNumThreads()
    monkeypatch.setattr(bench, "make_tracker", lambda cfg: still)
    cfg = TrackerBenchRun(SHARED, TrackerBenchConfig(("dis",)))
    (row,) = bench.run(cfg, [rendered(tmp_path, "a", 0)], FakeContext(tmp_path / "work")).figures
    # after t frames it is 4 t px off on the raster: 8 px at frame 2 is not within 8
    assert row.delta_avg == pytest.approx((0 + 0 + 0 + 1 / 7 + 3 / 7) / 5)
    assert (row.oa, np.isnan(row.back_px)) == (1.0, True)
    assert still.threads == 1 and cv2.getNumThreads() == before


def test_clips_are_spread_over_scenes_and_labelled_ones_left_out(tmp_path):
    clips = [rendered(tmp_path, "a", 0), rendered(tmp_path, "a", 1), rendered(tmp_path, "b", 2, split="heldout")]
    clips.append(rendered(tmp_path, "c", 3, tracker="lucas_kanade 1"))
    cfg = TrackerBenchRun(SHARED, TrackerBenchConfig(("dis",), clips=2))
    out = bench.run(cfg, clips, FakeContext(tmp_path / "work"))
    assert json.loads((tmp_path / "work/trackers.json").read_text())["clips"] == ["b-2", "a-0"]
    assert out.figures[0].clips == 2


def test_what_cannot_be_measured_is_reported(tmp_path):
    with pytest.raises(StageError, match="no rendered clip"):
        bench.run(TrackerBenchRun(SHARED, TrackerBenchConfig()), [], FakeContext(tmp_path))
    assert TrackerBenchConfig().problems() == []
    reported = " ".join(TrackerBenchConfig(("magic",), clips=0).problems() + TrackerBenchConfig(()).problems())
    assert "tracker_bench.trackers: 'magic'" in reported and "tracker_bench.clips" in reported and "empty" in reported


XY = np.random.default_rng(0).uniform(0, 256, (5, 7, 2))
ALL = np.ones((5, 7), bool)


def test_the_truth_scores_one():
    assert tapvid(XY, ALL, XY, ALL, 256, 256) == {"delta_avg": 1.0, "oa": 1.0, "aj": 1.0}


def test_thresholds_are_strict_and_on_the_raster():
    off = tapvid(XY, ALL, XY + np.array([3.0, 0.0]), ALL, 256, 256)
    assert off["delta_avg"] == pytest.approx(3 / 5)  # within 4, 8, 16
    assert off["aj"] == pytest.approx(3 / 5)  # a threshold with no hit gives 0 / (GT + FP)
    assert tapvid(XY, ALL, XY + np.array([4.0, 0.0]), ALL, 256, 256)["delta_avg"] == pytest.approx(2 / 5)
    assert tapvid(XY / 2, ALL, XY / 2 + [1.5, 0.0], ALL, 128, 128)["delta_avg"] == pytest.approx(3 / 5)


def test_wrong_visibility_costs_accuracy_and_jaccard():
    half = ALL.copy()
    half[1:3] = False
    unseen = tapvid(XY, ALL, XY, half, 256, 256)
    assert (unseen["delta_avg"], unseen["oa"], unseen["aj"]) == pytest.approx((1.0, 0.5, 0.5))
    ghosts = tapvid(XY, half, XY, ALL, 256, 256)
    assert (ghosts["oa"], ghosts["aj"]) == pytest.approx((0.5, 0.5))


def test_nothing_visible_is_nan():
    assert np.isnan(tapvid(XY, ~ALL, XY, ALL, 256, 256)["aj"])
