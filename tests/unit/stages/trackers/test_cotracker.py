"""CoTracker's adapter against a fake hub always, and against the real architecture with random weights where a clone of it is
given: COTRACKER_HUB=folder pytest tests/unit/stages/trackers/test_cotracker.py (minutes on a CPU; reads no weights file)."""

import os

import numpy as np
import pytest
import torch

from pipelines.commands.rehearse.cotracker_hub import weights, write_hub
from stages.contracts import StageError
from stages.trackers import TrackerConfig, make_tracker, shared_tracker, uniform_grid

OFFLINE, ONLINE = "cotracker3_offline", "cotracker3_online"
REAL = os.environ.get("COTRACKER_HUB", "")
real_only = pytest.mark.skipif(
    not REAL,
    reason="set COTRACKER_HUB to a clone of github.com/facebookresearch/co-tracker (its weights are not needed)",
)
FRAMES = np.full((24, 48, 80, 3), 200, np.uint8)
SUPPORT = 36  # points that the offline predictor adds to every call


@pytest.fixture
def hub(tmp_path):
    return write_hub(tmp_path)


def fake(hub, name: str, max_queries: int = 2500, **more) -> TrackerConfig:
    torch.save(weights(name, **more), hub / "scaled.pth")
    return TrackerConfig(name, hub=str(hub), checkpoint=str(hub / "scaled.pth"), max_queries=max_queries)


def real(tmp_path, name: str, max_queries: int = 2500) -> TrackerConfig:
    """Random weights, the head that says what is visible made so that it says both."""
    with torch.random.fork_rng():
        model = torch.hub.load(REAL, name, source="local", pretrained=False, trust_repo=True).model
    state = model.state_dict()
    state["updateformer.vis_conf_head.weight"] *= 30
    torch.save(state, tmp_path / f"{name}.pth")
    return TrackerConfig(name, hub=REAL, checkpoint=str(tmp_path / f"{name}.pth"), max_queries=max_queries)


@pytest.fixture(params=["fake", pytest.param("real", marks=[real_only, pytest.mark.timeout(600)])])
def configured(request, hub):
    """(name, max_queries) -> a config of the fake hub or of the real one."""

    def make(name: str, max_queries: int = 2500) -> TrackerConfig:
        if request.param == "real":
            return real(hub, name, max_queries)
        return fake(hub, name, max_queries, speed=(3.0, -1.0), joint=0.1)

    return make


CLIP = np.random.default_rng(3).integers(0, 256, (10, 48, 80, 3)).astype(np.uint8)
POINTS = uniform_grid(48, 80, 2, 3)


@pytest.mark.parametrize(("name", "at"), [(OFFLINE, 0), (OFFLINE, 4), (ONLINE, 0)])
def test_the_contract_holds_for_the_fake_and_the_real_architecture(configured, name, at):
    tracker = make_tracker(configured(name))
    found = tracker.track(CLIP, POINTS, at)
    assert (found.xy_px.shape, found.xy_px.dtype) == ((10, 6, 2), np.float32)
    assert (found.visible.shape, found.visible.dtype) == ((10, 6), bool)
    assert (found.confidence.shape, found.confidence.dtype) == ((10, 6), np.float32)
    assert np.isfinite(found.xy_px).all() and found.confidence.min() >= 0 and found.confidence.max() <= 1
    assert found.xy_px[at] == pytest.approx(POINTS, abs=1e-3)
    assert np.isnan(found.back_px)
    (threshold,) = (value for key, value in tracker.thresholds.items() if key != "max_queries")
    width_and_height = np.array([80, 48])
    expected = (found.confidence > threshold) & ((found.xy_px >= 0) & (found.xy_px < width_and_height)).all(axis=-1)
    expected[at] |= name == OFFLINE  # there the predictor calls queries visible
    assert np.array_equal(found.visible, expected)


def test_points_of_one_call_attend_to_each_other_so_the_group_matters(configured):
    together = make_tracker(configured(OFFLINE)).track(CLIP[:3], POINTS)
    apart = make_tracker(configured(OFFLINE, 3)).track(CLIP[:3], POINTS)
    assert not np.array_equal(together.xy_px, apart.xy_px)


@pytest.mark.parametrize("name", [OFFLINE, ONLINE])
def test_no_points_and_one_frame_are_no_error(configured, name):
    tracker = make_tracker(configured(name))
    nothing = tracker.track(CLIP[:2], np.zeros((0, 2), np.float32))
    assert nothing.xy_px.shape == (2, 0, 2) and nothing.visible.shape == nothing.confidence.shape == (2, 0)
    assert tracker.track(CLIP[:1], POINTS).xy_px == pytest.approx(POINTS[None], abs=1e-3)


@pytest.mark.parametrize(("name", "other"), [(OFFLINE, ONLINE), (ONLINE, OFFLINE)])
def test_weights_of_the_other_variant_are_refused_and_recognised(configured, name, other):
    cfg = configured(other)
    with pytest.raises(ValueError, match=rf"does not fit {name}: shapes differ: time_emb.*looks like {other}"):
        make_tracker(TrackerConfig(name, hub=cfg.hub, checkpoint=cfg.checkpoint))


@real_only
@pytest.mark.timeout(600)
def test_the_real_grid_has_the_margin_that_ours_is_measured_against():
    predictor = torch.hub.load(REAL, OFFLINE, source="local", pretrained=False, trust_repo=True)
    tracks, _ = predictor(torch.zeros(1, 1, 3, 480, 832), grid_size=5)
    assert tracks[0, 0, 0].tolist() == pytest.approx(THEIRS[0], abs=0.05)
    assert tracks[0, 0, -1].tolist() == pytest.approx(THEIRS[1], abs=0.05)


THEIRS = ((13.0, 10.0), (819.6, 470.2))  # first and last point of CoTracker's own grid at 832x480, pixel centres whole


def test_our_grid_is_flush_where_cotrackers_own_leaves_a_margin():
    grid = uniform_grid(480, 832, 50, 50)
    assert grid.shape == (2500, 2)
    assert grid[0] == pytest.approx((8.32, 4.8)) and grid[-1] == pytest.approx((832 - 8.32, 480 - 4.8))
    assert np.diff(grid[:50, 0]) == pytest.approx(16.64, abs=1e-3)
    assert np.diff(grid[::50, 1]) == pytest.approx(9.6, abs=1e-3)
    assert (grid[0] < np.add(THEIRS[0], 0.5)).all() and (grid[-1] > np.add(THEIRS[1], 0.5)).all()
    cells = np.histogram2d(grid[:, 0], grid[:, 1], bins=50, range=[[0, 832], [0, 480]])[0]
    assert (cells == 1).all()  # one in every cell of the frame: no border is without tracks


@pytest.mark.slow
@pytest.mark.parametrize("name", [OFFLINE, ONLINE])
@pytest.mark.parametrize("frames", [5, 16, 17, 24])
def test_points_come_back_in_our_pixels(hub, name, frames):
    queries = uniform_grid(48, 80, 3, 5)
    found = make_tracker(fake(hub, name, speed=(3.0, -2.0))).track(FRAMES[:frames], queries)
    speed = np.array([3.0 * 79 / 511, -2.0 * 47 / 383])
    assert found.xy_px == pytest.approx(queries + np.arange(frames)[:, None, None] * speed, abs=1e-3)
    assert not found.visible[(found.xy_px < 0).any(axis=-1)].any()


def test_confidence_is_the_models_own_also_before_the_query(hub):
    point = np.array([[40.0, 24.0]], np.float32)
    offline = make_tracker(fake(hub, OFFLINE)).track(FRAMES, point, 14)
    assert offline.confidence[:, 0] == pytest.approx(1 - 0.01 * np.abs(np.arange(24) - 14))
    assert offline.visible[:, 0].tolist() == [False] * 5 + [True] * 19  # over 0.9: 9 frames away from the query
    online = make_tracker(fake(hub, ONLINE)).track(FRAMES, point)
    assert online.confidence[:, 0] == pytest.approx(0.8 * (1 - 0.01 * np.arange(24)))
    assert online.visible[:, 0].tolist() == [True] * 24


def test_online_cannot_look_back(hub):
    with pytest.raises(ValueError, match="from frame 0 only"):
        make_tracker(fake(hub, ONLINE)).track(FRAMES, POINTS, 4)


@pytest.mark.parametrize("error", [0, 1, 2])
def test_out_of_memory_changes_no_label_and_names_the_settings(hub, error):
    tracker = make_tracker(fake(hub, ONLINE, joint=0.01, limit=4, error=error))
    queries = uniform_grid(48, 80, 3, 5)
    for _ in range(2):  # the second clip is no other
        with pytest.raises(
            StageError, match=r"15 points a call, on 24 .*compute\.item_gpus=1.*tracker\.max_queries=8 in data"
        ):
            tracker.track(FRAMES, queries)
    tracker._predictor.model.limit.zero_()  # memory is back
    unlimited = make_tracker(fake(hub, ONLINE, joint=0.01)).track(FRAMES, queries)
    assert np.array_equal(tracker.track(FRAMES, queries).xy_px, unlimited.xy_px)


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory(hub):
    tracker = make_tracker(fake(hub, OFFLINE))
    tracker._predictor.model.speed = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        tracker.track(FRAMES, POINTS)


def test_the_random_state_survives_the_import(hub):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    make_tracker(fake(hub, OFFLINE))
    assert torch.equal(torch.rand(3), expected)


def test_licence_version_and_thresholds_are_reported_without_a_path_of_this_machine(hub):
    tracker = make_tracker(fake(hub, OFFLINE))
    assert tracker.licence == "CC-BY-NC-4.0"
    assert tracker.version.startswith(f"{hub.name}:scaled.pth@")
    assert tracker.thresholds == {"min_visibility": 0.9, "max_queries": 2500.0}
    again = make_tracker(fake(hub, OFFLINE, speed=(1.0, 0.0)))
    assert again.version != tracker.version  # the weights are others


def test_a_shared_tracker_is_made_once(hub):
    cfg = fake(hub, OFFLINE)
    assert shared_tracker(cfg, "cpu") is shared_tracker(cfg, "cpu")


def test_what_is_missing_is_named(hub):
    with pytest.raises(ValueError, match=r"tracker.checkpoint: no file"):
        make_tracker(TrackerConfig(OFFLINE, hub=str(hub), checkpoint="/none.pth"))
    with pytest.raises(ValueError, match=r"tracker.hub: '/no/such/clone' is neither"):
        make_tracker(TrackerConfig(OFFLINE, hub="/no/such/clone"))
    with pytest.raises(ValueError, match=r"no network in tests.*tracker.checkpoint a weights file"):
        make_tracker(TrackerConfig(OFFLINE, hub=str(hub)))
    cfg = fake(hub, OFFLINE)
    (hub / "hubconf.py").write_text("import a_module_that_is_not_there")
    with pytest.raises(ValueError, match="lucas_kanade"):
        make_tracker(cfg)


def zipped_weights() -> bytes:
    import io

    whole = io.BytesIO()
    torch.save(weights(OFFLINE), whole)
    return whole.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"<!doctype html><title>404</title>", bytes(range(256)) * 40, zipped_weights()[:-2000], b"\x80\x02}q\x00"],
    ids=["empty", "page", "noise", "cut", "pickle"],
)
def test_a_file_that_cannot_be_read_is_named(hub, data):
    (hub / "scaled.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"scaled\.pth is no readable weights file \(.+\): download it again"):
        make_tracker(TrackerConfig(OFFLINE, hub=str(hub), checkpoint=str(hub / "scaled.pth")))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds no weights but a list"),
        ({}, "a dict of 0 entries"),
        ({"epoch": 3, "speed": torch.zeros(2)}, r"a dict of 2 entries \(epoch: int\)"),
        (
            {"w": torch.zeros(2)},
            r"it lacks joint, limit, speed and 1 more; it also holds w\. It looks like no CoTracker3",
        ),
        ({"time_emb": torch.zeros(1, 8, 456)}, "It looks like CoTracker 2"),
        ({"time_emb": torch.zeros(1, 60, 1110)}, "damaged or altered cotracker3_offline"),
    ],
)
def test_a_file_of_something_else_is_named_with_what_it_holds(hub, content, words):
    torch.save(content, hub / "scaled.pth")
    with pytest.raises(ValueError, match=rf"scaled\.pth .*{words}"):
        make_tracker(TrackerConfig(OFFLINE, hub=str(hub), checkpoint=str(hub / "scaled.pth")))


def test_weights_under_model_as_training_saves_them_are_taken(hub):
    torch.save({"model": weights(OFFLINE)}, hub / "scaled.pth")
    make_tracker(TrackerConfig(OFFLINE, hub=str(hub), checkpoint=str(hub / "scaled.pth")))
