import numpy as np
import torch

from pipelines.commands.rehearse.cotracker_hub import weights, write_hub
from stages.eval.config import MeasureConfig
from stages.eval.measure import retracker
from stages.trackers import TrackerConfig, uniform_grid
from tests.fakes import FakeContext


def test_what_the_tracker_did_otherwise_than_configured_is_reported(tmp_path):
    name = "cotracker3_offline"
    torch.save(weights(name, limit=36 + 3), tmp_path / "scaled.pth")
    tracker = TrackerConfig(name, hub=str(write_hub(tmp_path)), checkpoint=str(tmp_path / "scaled.pth"))
    ctx = FakeContext(tmp_path, seed=7)
    follow = retracker(MeasureConfig(tracker=tracker), 48, ctx)
    xy_px, visible = follow(np.full((4, 48, 80, 3), 200, np.uint8), uniform_grid(48, 80, 2, 3))
    assert xy_px.shape == (4, 6, 2) and visible.all()
    assert ctx.logged == [f"{name} ran out of memory: 3 points a call, not 6"]
