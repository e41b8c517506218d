from pathlib import Path

import numpy as np
import pytest
import torch

from msmodel.config import TextConfig, VAEConfig
from stages.data import encode, render, track
from stages.data.encode import EncodeRun
from stages.data.files import load_npz, save_frames
from stages.data.render import RenderRun
from stages.data.track import TrackRun, group_clips, path_px
from stages.records import Clip, Rejected
from stages.trackers import TrackerConfig
from tests.unit.stages.data.fakes import CLIP, FakeContext, noise_picture, scene_item

TRACKS = TrackRun(TrackerConfig("lucas_kanade"), grid_rows=3, grid_cols=4)


class FakeVAE:
    def __init__(self) -> None:
        self.images = 0

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean(dim=(3, 4), keepdim=True)

    def encode_image(self, first: torch.Tensor, frames: int) -> torch.Tensor:
        self.images += 1
        assert first.ndim == 4
        return first.mean(dim=(2, 3), keepdim=True)[:, :, None].expand(-1, -1, frames, -1, -1)


class FakeText:
    def encode(self, captions: list[str]) -> torch.Tensor:
        return torch.stack([torch.full((4, 8), float(len(c))) for c in captions])


@pytest.fixture
def fake_models(monkeypatch):
    vae = FakeVAE()
    monkeypatch.setattr(encode, "_vae", lambda cfg, device: vae)
    monkeypatch.setattr(encode, "_encoder", lambda cfg: FakeText())
    return vae


def real_clip(tmp_path) -> Clip:
    import cv2

    picture = cv2.imread(str(noise_picture(tmp_path / "p.png", 1, 48, 80)))
    frames = np.stack([picture[8:40, 10 + i : 58 + i] for i in range(9)])
    save_frames(tmp_path / "in" / "real", frames, 24.0)
    return Clip("real", str(tmp_path / "in" / "real"), "video", "train", "real", "", "v.mp4", "MIT")


def test_real_clips_get_a_grid_and_figures_and_the_input_folder_stays_as_it_was(tmp_path):
    clip = real_clip(tmp_path)
    (out,) = track.run(TRACKS, (clip,), FakeContext(tmp_path / "out"))
    assert out.tracks == 12
    assert out.tracker.startswith("lucas_kanade opencv-")
    assert out.moving_px == pytest.approx(8.0, abs=0.5)
    assert 0.5 < out.visible_share <= 1.0
    assert not (Path(clip.folder) / "tracks.npz").exists()
    assert sorted(p.name for p in Path(out.folder).iterdir()) == ["clip.npz", "frames.mp4", "tracks.npz"]


def test_renders_keep_their_exact_tracks(tmp_path):
    rendered = render.run(RenderRun(CLIP, 2, 2, 3, 4, 4), scene_item(tmp_path), FakeContext(tmp_path / "in"))
    out = track.run(TRACKS, rendered, FakeContext(tmp_path / "out"))
    for before, after in zip(rendered, out, strict=True):
        assert after.tracker == "ground_truth"
        exact, kept = (load_npz(Path(c.folder) / "tracks.npz") for c in (before, after))
        assert np.array_equal(exact["xy_px"], kept["xy_px"])
        assert after.visible_share == pytest.approx(exact["visible"].mean())


def test_path_length_counts_visible_steps_only():
    xy = np.zeros((3, 2, 2), np.float32)
    xy[1:, 0, 0] = [3, 3]
    xy[1:, 1, 1] = [100, 200]
    visible = np.array([[True, True], [True, False], [True, True]])
    assert path_px(xy, visible) == 3.0
    assert path_px(xy, np.zeros((3, 2), bool)) == 0.0


def test_groups_hold_one_scene_each(tmp_path):
    made = [Clip(f"c{i}", "", f"s{i % 2}", "train", "real", "", "", "") for i in range(10)]
    groups = group_clips(reversed(made), most=4)
    assert [len(g) for g in groups] == [4, 1, 4, 1]
    assert all(len({c.scene for c in g}) == 1 for g in groups)


def test_a_scene_is_encoded_with_one_image_latent_and_each_its_caption(tmp_path, fake_models):
    rendered = render.run(RenderRun(CLIP, 3, 2, 3, 4, 4), scene_item(tmp_path), FakeContext(tmp_path / "in"))
    run = EncodeRun(CLIP, VAEConfig(), TextConfig())
    out = encode.run(run, rendered, FakeContext(tmp_path / "out"))
    assert fake_models.images == 1
    for clip in out:
        arrays = load_npz(Path(clip.folder) / "latents.npz")
        assert {a.dtype for a in arrays.values()} == {np.dtype(np.float16)}
        assert arrays["text"].shape == (4, 8)
        assert arrays["text"][0, 0] == len(clip.caption)
        assert np.abs(arrays["latents"]).max() <= 1
        assert arrays["image"].shape[1] == CLIP.frames


def test_a_clip_whose_latents_are_not_finite_is_listed(tmp_path, fake_models, monkeypatch):
    monkeypatch.setattr(fake_models, "encode", lambda video: torch.full((1, 8, 5, 8, 12), 1e6))
    (out,) = encode.run(EncodeRun(CLIP, VAEConfig(), TextConfig()), (real_clip(tmp_path),), FakeContext(tmp_path / "o"))
    assert out == Rejected("real", "encode", "its latents are not finite in float16")


def test_a_label_holds_no_guess():
    xy = np.arange(10, dtype=np.float32).reshape(5, 1, 2)
    visible = np.array([True, True, False, False, True])[:, None]
    assert track.held(xy, visible)[:, 0, 0].tolist() == [0.0, 2.0, 2.0, 2.0, 8.0]
    assert (track.held(xy, np.ones((5, 1), bool)) == xy).all()
