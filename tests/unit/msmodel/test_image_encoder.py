"""CLIP's tokens: those of diffusers' pipeline, or of the whole frame as Wan's own code gives it; clear errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from msmodel.config import ImageEncoderConfig
from msmodel.image_encoder import ImageEncoder, folder_problems, load_image_encoder
from tests.unit.msmodel.clip import PROCESSOR, SIDE, TOKENS, WIDTH, save_clip
from tests.unit.msmodel.umt5 import save_umt5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("wan"))


def encoder(folder: Path, fit: str = "squash") -> ImageEncoder:
    return load_image_encoder(ImageEncoderConfig(str(folder), fit), WIDTH)


def pictures(height: int, width: int) -> np.ndarray:
    """2 h w 3 uint8, differing in every part."""
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


def frames(shown: np.ndarray) -> torch.Tensor:
    """As the data stages and the player give them."""
    return torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 127.5 - 1


def of_diffusers(own: ImageEncoder, shown: np.ndarray) -> torch.Tensor:
    from diffusers import WanImageToVideoPipeline

    pipeline = SimpleNamespace(image_processor=own.processor, image_encoder=own.net, _execution_device="cpu")
    images = [Image.fromarray(picture) for picture in shown]
    return WanImageToVideoPipeline.encode_image(pipeline, images, torch.device("cpu"))


def test_crop_gives_the_tokens_of_diffusers_pipeline(folder: Path) -> None:
    own, shown = encoder(folder, "crop"), pictures(48, 80)
    expected = of_diffusers(own, shown)
    got = own.encode(frames(shown))
    assert got.shape == (2, TOKENS, WIDTH) and got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    sides = shown.copy()
    sides[:, :, :10] = sides[:, :, -10:] = 0
    torch.testing.assert_close(own.encode(frames(sides)), got, atol=0.2, rtol=0)  # bicubic reaches over the border
    assert (own.encode(frames(np.roll(shown, 20, 2))) - got).abs().max() > 0.2


def test_squash_gives_the_tokens_of_wans_own_steps(folder: Path) -> None:
    """Wan's clip.py: the whole frame in [-1, 1], bicubic to a square, to [0, 1], normalised."""
    own, shown = encoder(folder), pictures(48, 80)
    square = torch.nn.functional.interpolate(frames(shown), (SIDE, SIDE), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(PROCESSOR[k])[:, None, None] for k in ("image_mean", "image_std"))
    with torch.no_grad():
        expected = own.net((square * 0.5 + 0.5 - mean) / std, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(own.encode(frames(shown)), expected, atol=1e-5, rtol=1e-5)


def test_of_a_square_of_clips_size_both_are_diffusers(folder: Path) -> None:
    shown = pictures(SIDE, SIDE)
    for fit in ("squash", "crop"):
        own = encoder(folder, fit)
        torch.testing.assert_close(own.encode(frames(shown)), of_diffusers(own, shown), atol=1e-5, rtol=1e-5)


def test_tokens_are_the_states_before_the_last_layer_of_the_weights_in_the_file(folder: Path) -> None:
    own, shown = encoder(folder), pictures(SIDE, SIDE)
    stored = load_file(folder / "image_encoder" / "model.safetensors")["vision_model.embeddings.class_embedding"]
    assert any(torch.equal(x, stored) for x in own.state_dict().values())
    got = own.encode(frames(shown))
    with torch.no_grad():
        for name, x in own.net.named_parameters():
            if "layers.2." in name or "post_layernorm" in name:
                x.zero_()
        assert torch.equal(own.encode(frames(shown)), got)
        next(x for n, x in own.net.named_parameters() if "layers.1.mlp.fc2.weight" in n).zero_()
    assert not torch.equal(own.encode(frames(shown)), got)


def test_another_width_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"dit\.clip_dim: 1280, but .* set dit\.clip_dim={WIDTH}"):
        load_image_encoder(ImageEncoderConfig(str(folder)), 1280)


@pytest.mark.parametrize("source", ["/no/such/folder", "nothing"])
def test_a_source_that_is_neither_folder_nor_hub_id_is_named(source: str) -> None:
    with pytest.raises(ValueError, match=r"image_encoder\.source.*neither an existing folder nor a hub id"):
        load_image_encoder(ImageEncoderConfig(source), WIDTH)


def test_no_source_says_which_one_there_is() -> None:
    with pytest.raises(ValueError, match=r"image_encoder\.source: is empty.*Wan-AI/Wan2\.1-I2V"):
        load_image_encoder(ImageEncoderConfig(), WIDTH)


def test_a_hub_id_without_a_network_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"image encoder owner/name: cannot be loaded .*a hub id that this machine can"
    ):
        load_image_encoder(ImageEncoderConfig("owner/name"), WIDTH)


def without(folder: Path, into: Path, *changes: str) -> Path:
    """A copy that lacks files, or tensors."""
    copy = Path(shutil.copytree(folder, into / "copy"))
    for name in changes:
        path = copy / name
        if path.exists():
            path.unlink()
        else:
            weights = copy / "image_encoder" / "model.safetensors"
            save_file({n: x for n, x in load_file(weights).items() if name not in n}, weights, {"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("change", "logged"),
    [
        ("image_encoder/config.json", "cannot be loaded"),
        ("image_encoder/model.safetensors", "cannot be loaded"),
        ("image_processor/preprocessor_config.json", "cannot be loaded"),
        ("layers.1.mlp.fc1", r"it lacks 2 tensors: .*layers\.1\.mlp\.fc1\.bias"),
    ],
)
def test_a_folder_that_lacks_something_is_a_clear_error(folder: Path, tmp_path: Path, change: str, logged: str) -> None:
    with pytest.raises(ValueError, match=logged):
        encoder(without(folder, tmp_path, change))


def test_a_truncated_file_is_a_clear_error(folder: Path, tmp_path: Path) -> None:
    weights = Path(shutil.copytree(folder, tmp_path / "cut")) / "image_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        encoder(tmp_path / "cut")


def test_another_kind_of_model_is_named(folder: Path, tmp_path: Path) -> None:
    wrong = save_umt5(tmp_path / "text")
    (wrong / "text_encoder").rename(wrong / "image_encoder")
    with pytest.raises(ValueError, match=r"the image_encoder of .* is a umt5, not a clip_vision_model"):
        encoder(wrong)


def test_a_folder_that_is_there_is_looked_into_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    def logged(source: Path | str, width: int) -> str:
        return " ".join(folder_problems(ImageEncoderConfig(str(source)), width))

    assert logged(folder, WIDTH) == logged(folder, 0) == logged("owner/name", 1280) == logged("", 1280) == ""
    assert f"set dit.clip_dim={WIDTH}" in logged(folder, 1280)
    assert "config.json cannot be read" in logged(tmp_path, 1280)
    wrong = save_umt5(tmp_path / "text")
    (wrong / "text_encoder").rename(wrong / "image_encoder")
    assert "is a umt5" in logged(wrong, 1280)


def test_settings_that_do_not_go_together_are_named() -> None:
    def logged(*given: str, clip_dim: int) -> list[str]:
        return ImageEncoderConfig(*given).problems(clip_dim)

    assert logged(clip_dim=0) == logged("a/b", clip_dim=1280) == logged("a/b", "crop", clip_dim=1280) == []
    assert "image_encoder.source: is empty, and dit.clip_dim=1280 reads its tokens" in logged(clip_dim=1280)[0]
    assert "image_encoder.source: nobody would read the tokens of a/b" in logged("a/b", clip_dim=0)[0]
    assert logged("a/b", "pad", clip_dim=1280) == ["image_encoder.fit: 'pad' is not one of squash, crop"]
