from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from msmodel.config import DiTConfig, ImageEncoderConfig, ModelConfig, TextConfig, VAEConfig
from msmodel.nano.patch_vae import PatchEncoderSession
from pipelines.commands.rehearse.cotracker_hub import weights, write_hub
from stages.data import encode, render, track
from stages.data.config import DataConfig
from stages.data.configs import run_configs
from stages.data.encode import EncodeRun
from stages.data.files import load_npz, save_frames
from stages.data.render import RenderRun
from stages.data.track import TrackRun, group_clips, path_px, stored, track_figures
from stages.records import Clip, Rejected
from stages.trackers import TrackerConfig, Tracks
from stages.trackers.ground_truth import read_tracks
from tests.fakes import FakeContext
from tests.unit.msmodel.clip import TOKENS, WIDTH, save_clip
from tests.unit.msmodel.vaes import patch_vae
from tests.unit.stages.data.fakes import CLIP, noise_picture, scene_item

TEXT = TextConfig("test", dim=8, length=4)
TRACKS = TrackRun(TrackerConfig("lucas_kanade"), grid_rows=3, grid_cols=4)


class FakeVAE:
    text: "FakeText"

    def __init__(self) -> None:
        self.images = 0

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean(dim=(3, 4), keepdim=True)

    def encode_image(self, first: torch.Tensor, frames: int) -> torch.Tensor:
        self.images += 1
        assert first.ndim == 4
        return first.mean(dim=(2, 3), keepdim=True)[:, :, None].expand(-1, -1, frames, -1, -1)


class FakeText:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, captions: list[str]) -> torch.Tensor:
        self.asked += captions
        return torch.stack([torch.full((4, 8), float(len(c))) for c in captions])


@pytest.fixture
def fake_models(monkeypatch):
    vae = FakeVAE()
    vae.text = FakeText()
    monkeypatch.setattr(encode, "_vae", lambda cfg, device: vae)
    monkeypatch.setattr(encode, "_encoder", lambda cfg, device, dtype: vae.text)
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
    assert out.tracker.endswith(" (Apache-2.0), max_back_px=0.25, max_colour_error=24")
    assert out.moving_px == pytest.approx(8.0, abs=0.5)
    assert 0.5 < out.visible_share <= 1.0
    assert (out.quality["visible_share"], out.quality["moving_px"]) == (out.visible_share, out.moving_px)
    assert out.quality["moving_share"] == 1.0
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
        assert after.quality.keys() == {"visible_share", "moving_px", "moving_share", "confidence"}
        assert after.quality["confidence"] == 1.0
    assert all(0 < c.quality["moving_share"] < 0.5 for c in out)  # objects, before a background at rest


def cotracker(hub: Path, **more) -> TrackerConfig:
    write_hub(hub)
    torch.save(weights("cotracker3_offline", **more), hub / "scaled.pth")
    return TrackerConfig("cotracker3_offline", hub=str(hub), checkpoint=str(hub / "scaled.pth"))


def test_cotracker_leaves_its_confidence_and_every_reader_finds_the_rest(tmp_path):
    clip = replace(real_clip(tmp_path), quality={"sharpness": 7.0}, notes=("HDR",))
    run = TrackRun(cotracker(tmp_path), grid_rows=3, grid_cols=4)
    ctx = FakeContext(tmp_path / "out")
    (out,) = track.run(run, (clip,), ctx)
    arrays = load_npz(Path(out.folder) / "tracks.npz")
    assert arrays.keys() == {"xy_px", "visible", "confidence"}
    assert (arrays["confidence"].shape, arrays["confidence"].dtype) == ((9, 12), np.dtype(np.float16))
    assert out.quality["confidence"] == pytest.approx(0.96, abs=1e-3)  # 1 down to 0.92 over 9 frames
    assert out.quality["sharpness"] == 7.0
    assert (out.quality["moving_share"], out.quality["moving_px"]) == (0.0, 0.0)
    assert "back_px" not in out.quality
    assert (out.notes, ctx.logged) == (("HDR",), [])
    assert out.tracker.endswith(" (CC-BY-NC-4.0), max_queries=2500, min_visibility=0.9")
    xy, visible = read_tracks(out.folder)
    assert xy.shape == (9, 12, 2) and visible.all()


def test_labels_tell_how_many_points_attended_to_each_other(tmp_path):
    clip, texts = real_clip(tmp_path), []
    for number in (12, 4):
        run = TrackRun(replace(cotracker(tmp_path), max_queries=number), grid_rows=3, grid_cols=4)
        (out,) = track.run(run, (clip,), FakeContext(tmp_path / f"out{number}"))
        texts.append(out.tracker.partition("(CC-BY-NC-4.0), ")[2])
    assert texts == ["max_queries=12, min_visibility=0.9", "max_queries=4, min_visibility=0.9"]


def test_figures_of_tracks():
    xy = np.zeros((4, 4, 2), np.float32)
    xy[:, 0, 0] = [0, 1, 2, 3]  # 3 px in 100: moves
    xy[:, 1, 0] = [0, 1, 2, 2]  # 2 px: on the border, does not
    xy[:, 2, 0] = [0, 50, 0, 50]  # seen once: counts for nothing
    xy[:, 3, 0] = [0, 50, 0, 50]  # seen twice, never in a row: as far as is known it stands
    visible = np.array([[1, 1, 0, 1], [1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 0, 0]], bool)
    confidence = np.where(visible, 0.75, 0.1).astype(np.float32)
    figures = track_figures(Tracks(xy, visible, confidence, back_px=0.125), width=100)
    assert figures["moving_share"] == pytest.approx(1 / 3)
    assert figures["moving_px"] == 2.5
    assert figures["visible_share"] == pytest.approx(11 / 16)
    assert (figures["confidence"], figures["back_px"]) == (0.75, 0.125)
    lost = track_figures(Tracks(xy, np.zeros_like(visible), confidence), width=100)
    assert lost == {"visible_share": 0.0, "moving_px": 0.0, "moving_share": 0.0}


def test_a_confidence_of_0_or_1_is_not_stored():
    visible = np.array([[True, False], [True, True]])
    xy = np.zeros((2, 2, 2), np.float32)
    assert stored(Tracks(xy, visible, visible.astype(np.float32))).keys() == {"xy_px", "visible"}
    assert stored(Tracks(xy, visible, visible * np.float32(0.5))).keys() == {"xy_px", "visible", "confidence"}


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


def test_the_segments_of_a_video_are_groups_of_their_own_whatever_else_is_in_the_list():
    made = [
        Clip(f"{scene}-{segment}-{i:02d}", "", scene, "train", "real", "", "", "", segment=segment)
        for scene in ("s1", "s2")
        for segment in (0, 2, 10)
        for i in range(20)
    ]
    groups = group_clips(made)
    assert [(g[0].scene, g[0].segment, len(g)) for g in groups[:4]] == [
        ("s1", 0, 16),
        ("s1", 0, 4),
        ("s1", 2, 16),
        ("s1", 2, 4),
    ]
    assert all(len({(c.scene, c.segment) for c in g}) == 1 for g in groups)
    assert [c for g in groups for c in g] == made
    for border in range(0, len(made) + 1, 20):
        assert group_clips(made[:border]) + group_clips(made[border:]) == groups


def test_a_scene_is_encoded_with_one_image_latent_and_each_its_caption(tmp_path, fake_models):
    rendered = render.run(RenderRun(CLIP, 3, 2, 3, 4, 4), scene_item(tmp_path), FakeContext(tmp_path / "in"))
    run = EncodeRun(CLIP, VAEConfig(), TEXT)
    out = encode.run(run, rendered, FakeContext(tmp_path / "out"))
    assert fake_models.images == 1
    for clip in out:
        arrays = load_npz(Path(clip.folder) / "latents.npz")
        assert {a.dtype for a in arrays.values()} == {np.dtype(np.float16)}
        assert arrays["text"].shape == (4, 8)
        assert arrays["text"][0, 0] == len(clip.caption)
        assert np.abs(arrays["latents"]).max() <= 1
        assert arrays["image"].shape[1] == CLIP.frames
        assert arrays.keys() == {"latents", "image", "text"}


def test_a_model_that_reads_the_first_image_latent_alone_gets_no_other(tmp_path, monkeypatch):
    vae, pushed, push, clip = patch_vae(), [], PatchEncoderSession.push, real_clip(tmp_path)
    monkeypatch.setattr(PatchEncoderSession, "push", lambda s, video: pushed.append(video.shape[2]) or push(s, video))
    monkeypatch.setattr(encode, "_vae", lambda cfg, device: vae)
    monkeypatch.setattr(encode, "_encoder", lambda cfg, device, dtype: FakeText())
    made = {}
    for image in ("channels", "first_latent"):
        model = ModelConfig(clip=CLIP, vae=vae.cfg, text=TEXT, dit=DiTConfig(image=image))
        run = run_configs(DataConfig(), model).encode
        (out,) = encode.run(run, (clip,), FakeContext(tmp_path / image))
        made[image] = load_npz(Path(out.folder) / "latents.npz")
    assert sorted(pushed) == [1, 9, 9, 9]  # the image of 9 frames and of 1, and the clip twice
    assert np.array_equal(made["first_latent"]["image"], made["channels"]["image"][:, :1])
    assert np.array_equal(made["first_latent"]["latents"], made["channels"]["latents"])


def test_with_an_image_encoder_clips_hold_the_tokens_of_their_first_frame_made_once(tmp_path, fake_models, monkeypatch):
    rendered = render.run(RenderRun(CLIP, 3, 2, 3, 4, 4), scene_item(tmp_path), FakeContext(tmp_path / "in"))
    source = ImageEncoderConfig(str(save_clip(tmp_path / "wan")))
    run, asked = EncodeRun(CLIP, VAEConfig(), TEXT, "", source, WIDTH), []
    own = encode.load_image_encoder(source, WIDTH)
    monkeypatch.setattr(own, "encode", lambda first, whole=own.encode: asked.append(first) or whole(first))
    monkeypatch.setattr(encode, "_image_encoder", lambda cfg, width, device: own)
    out = encode.run(run, (*rendered, real_clip(tmp_path)), FakeContext(tmp_path / "out"))
    assert (len(out), len(asked)) == (4, 2)
    for clip, first in zip(out, [asked[0]] * 3 + [asked[1]], strict=True):
        arrays = load_npz(Path(clip.folder) / "latents.npz")
        assert (arrays["clip"].shape, arrays["clip"].dtype) == ((TOKENS, WIDTH), np.dtype(np.float16))
        assert torch.equal(encode.to_video(load_npz(Path(clip.folder) / "clip.npz")["frames"])[:, :, 0], first)
        assert np.array_equal(arrays["clip"], type(own).encode(own, first)[0].half().numpy())


def test_a_clip_whose_image_tokens_are_not_finite_is_listed(tmp_path, fake_models, monkeypatch):
    class Broken:
        def encode(self, first: torch.Tensor) -> torch.Tensor:
            return torch.full((1, TOKENS, WIDTH), float("nan"))

    monkeypatch.setattr(encode, "_image_encoder", lambda *given: Broken())
    run = EncodeRun(CLIP, VAEConfig(), TEXT, "", ImageEncoderConfig("a/b"), WIDTH)
    (out,) = encode.run(run, (real_clip(tmp_path),), FakeContext(tmp_path / "o"))
    assert out == Rejected("real", "encode", "its image tokens are not finite in float16")


def test_a_caption_of_many_clips_is_encoded_once_and_then_needs_no_encoder(tmp_path, fake_models, monkeypatch):
    clips = [
        replace(real_clip(tmp_path), clip_id=i, caption=c) for i, c in (("a", "a car"), ("b", "a man"), ("c", "a car"))
    ]
    run = EncodeRun(CLIP, VAEConfig(), TEXT)
    for item in (clips[:2], clips[2:]):
        encode.run(run, item, FakeContext(tmp_path / "out"))
    assert fake_models.text.asked == ["a car", "a man"]
    monkeypatch.setattr(encode, "_encoder", lambda cfg, device, dtype: pytest.fail("the encoder is not needed"))
    (out,) = encode.run(run, clips[2:], FakeContext(tmp_path / "again"))
    assert (load_npz(Path(out.folder) / "latents.npz")["text"] == 5).all()


@pytest.mark.parametrize(
    ("null", "lengths"),
    [("zeros", {}), ("empty", {"empty_text": 1}), ("negative", {"empty_text": 1, "negative_text": 3})],
)
def test_every_clip_holds_what_stands_for_no_text_without_padding(tmp_path, fake_models, monkeypatch, null, lengths):
    asked = []

    class OneTokenAWord:
        def encode(self, captions: list[str]) -> torch.Tensor:
            asked.extend(captions)
            end = torch.tensor([len(c.split()) for c in captions])
            return (torch.arange(4) <= end[:, None])[..., None].float().expand(-1, -1, 8) * (1 + end[:, None, None])

    monkeypatch.setattr(encode, "_encoder", lambda *given: OneTokenAWord())
    text = replace(TEXT, null=null, negative_prompt="ugly, blurred")
    (out,) = encode.run(EncodeRun(CLIP, VAEConfig(), text), (real_clip(tmp_path),), FakeContext(tmp_path / "o"))
    arrays = load_npz(Path(out.folder) / "latents.npz")
    assert {name: len(a) for name, a in arrays.items() if name.endswith("_text")} == lengths
    assert all((arrays[name] == size).all() for name, size in lengths.items())  # the embedding of that prompt
    assert sorted(asked) == sorted({"", *text.null_prompts.values()})  # the clip has no caption


def test_a_clip_whose_latents_are_not_finite_is_listed(tmp_path, fake_models, monkeypatch):
    monkeypatch.setattr(fake_models, "encode", lambda video: torch.full((1, 8, 5, 8, 12), 1e6))
    (out,) = encode.run(EncodeRun(CLIP, VAEConfig(), TEXT), (real_clip(tmp_path),), FakeContext(tmp_path / "o"))
    assert out == Rejected("real", "encode", "its latents are not finite in float16")


def test_a_label_holds_no_guess():
    xy = np.arange(10, dtype=np.float32).reshape(5, 1, 2)
    visible = np.array([True, True, False, False, True])[:, None]
    assert track.held(xy, visible)[:, 0, 0].tolist() == [0.0, 2.0, 2.0, 2.0, 8.0]
    assert (track.held(xy, np.ones((5, 1), bool)) == xy).all()
