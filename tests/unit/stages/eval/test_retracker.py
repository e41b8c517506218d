import numpy as np
import pytest
import torch

from pipelines.commands.rehearse.cotracker_hub import weights, write_hub
from stages.contracts import StageError
from stages.eval.config import MeasureConfig
from stages.eval.measure import measure_stage, retracker
from stages.trackers import TrackerConfig, uniform_grid
from tests.fakes import FakeContext

NAME = "cotracker3_offline"


def test_a_lack_of_memory_stops_a_measurement_in_place_of_changing_it(tmp_path):
    torch.save(weights(NAME, limit=36 + 3), tmp_path / "scaled.pth")
    tracker = TrackerConfig(NAME, hub=str(write_hub(tmp_path)), checkpoint=str(tmp_path / "scaled.pth"))
    follow = retracker(MeasureConfig(tracker=tracker), 48, FakeContext(tmp_path, seed=7))
    with pytest.raises(StageError, match=r"6 points a call.*tracker\.max_queries=3 in data and in eval\.measure"):
        follow(np.full((4, 48, 80, 3), 200, np.uint8), uniform_grid(48, 80, 2, 3))


def test_a_neural_tracker_takes_a_whole_gpu():
    shares = [
        measure_stage(MeasureConfig(tracker=TrackerConfig(name))).resources.gpus for name in (NAME, "lucas_kanade")
    ]
    assert shares == [1.0, 0.25]
