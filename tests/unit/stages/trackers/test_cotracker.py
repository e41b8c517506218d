"""CoTracker's adapter against a hub folder that behaves as CoTracker3's does, shift and RNG habits included."""

import numpy as np
import pytest
import torch

from stages.trackers import TrackerConfig, Tracks, make_tracker, uniform_grid

HUBCONF = '''
import torch

torch.manual_seed(0)  # as cotracker3_offline.py does on import
dependencies = ["torch"]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.speed = torch.nn.Parameter(torch.zeros(2))


class Offline(torch.nn.Module):
    """Points move by `speed` pixels a frame; frames before the query only with backward_tracking."""

    def __init__(self):
        super().__init__()
        self.model = Net()

    def forward(self, video, queries=None, segm_mask=None, grid_size=0, grid_query_frame=0, backward_tracking=False):
        b, frames, c, h, w = video.shape
        assert c == 3 and video.dtype == torch.float32 and video.max() > 1.5, "floats 0..255 are wanted"
        start = queries[0, :, 0]
        time = torch.arange(frames)[:, None] - start[None]
        tracks = queries[0, None, :, 1:] + time[..., None] * self.model.speed
        visible = (time >= 0) | torch.tensor(backward_tracking)
        return tracks[None], visible[None]


class Online(torch.nn.Module):
    """Windows of 2 * step frames, stride step, cumulative output."""

    def __init__(self):
        super().__init__()
        self.model, self.step, self.seen = Net(), 8, None

    def forward(self, video_chunk, is_first_step=False, queries=None, grid_size=0, grid_query_frame=0, add_support_grid=False):
        if is_first_step:
            self.queries, self.seen = queries, 0
            return None, None
        first = self.seen == 0
        self.seen += video_chunk.shape[1] if first else max(video_chunk.shape[1] - self.step, 0)
        time = torch.arange(self.seen)[:, None, None]
        tracks = self.queries[0, None, :, 1:] + time * self.model.speed
        return tracks[None], torch.ones(tracks.shape[:2], dtype=torch.bool)[None]


def cotracker3_offline(*, pretrained=True, **kwargs):
    assert not pretrained, "no network in tests"
    return Offline()


def cotracker3_online(*, pretrained=True, **kwargs):
    assert not pretrained, "no network in tests"
    return Online()
'''


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    torch.save({"speed": torch.tensor([0.5, -0.25])}, tmp_path / "scaled.pth")
    return tmp_path


def paths(found: Tracks) -> tuple[np.ndarray, np.ndarray]:
    return found.xy_px, found.visible


def config(hub, name: str, **more) -> TrackerConfig:
    return TrackerConfig(name, hub=str(hub), checkpoint=str(hub / "scaled.pth"), **more)


FRAMES = np.full((24, 48, 80, 3), 200, np.uint8)


@pytest.mark.parametrize("name", ["cotracker3_offline", "cotracker3_online"])
def test_points_come_back_in_our_pixels_and_groups_change_nothing(hub, name):
    queries = uniform_grid(48, 80, 3, 5)
    xy, visible = paths(make_tracker(config(hub, name)).track(FRAMES, queries))
    assert xy.shape == (24, 15, 2)
    assert xy.dtype == np.float32
    assert visible.dtype == bool
    assert xy[0] == pytest.approx(queries)
    assert xy[-1] == pytest.approx(queries + 23 * np.array([0.5, -0.25]))
    grouped, _ = paths(make_tracker(config(hub, name, max_queries=4)).track(FRAMES, queries))
    assert np.array_equal(grouped, xy)
    assert not visible[(xy < 0).any(axis=-1)].any()


def test_the_random_state_survives_the_import(hub):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    make_tracker(config(hub, "cotracker3_offline"))
    assert torch.equal(torch.rand(3), expected)


def test_a_later_query_frame_looks_back_offline_and_is_an_error_online(hub):
    queries = np.array([[40.0, 24.0]], np.float32)
    xy, visible = paths(make_tracker(config(hub, "cotracker3_offline")).track(FRAMES, queries, 4))
    assert xy[4, 0] == pytest.approx([40, 24])
    assert visible[0, 0]
    with pytest.raises(ValueError, match="query frame 0 only"):
        make_tracker(config(hub, "cotracker3_online")).track(FRAMES, queries, 4)


def test_licence_and_version_are_told(hub):
    tracker = make_tracker(config(hub, "cotracker3_offline"))
    assert tracker.licence == "CC-BY-NC-4.0"
    assert "scaled.pth" in tracker.version


def test_what_is_missing_is_named(hub):
    with pytest.raises(ValueError, match=r"tracker.checkpoint: no file"):
        make_tracker(TrackerConfig("cotracker3_offline", hub=str(hub), checkpoint="/none.pth"))
    (hub / "hubconf.py").write_text("import a_module_that_is_not_there")
    with pytest.raises(ValueError, match="lucas_kanade"):
        make_tracker(config(hub, "cotracker3_offline"))
