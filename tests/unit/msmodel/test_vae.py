"""VideoVAE against diffusers, streaming of both VAEs, and what `load_vae` says about bad files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from msmodel.config import VAEConfig
from msmodel.vae import CONFIG, WEIGHTS, VideoVAE, load_vae, save_patch_vae
from tests.unit.msmodel.vaes import LAYOUTS, PATCH, STATISTICS, patch_vae, some_latents, some_video, wan_net, wan_vae

WAN = sorted(LAYOUTS)
ALL = [*WAN, "patch"]


def any_vae(layout: str):
    return patch_vae() if layout == "patch" else wan_vae(layout)


def per_channel(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", WAN)
def test_encode_is_that_of_diffusers_normalised(layout: str) -> None:
    vae = wan_vae(layout)
    video = some_video(vae.cfg, batch=2)
    mu = wan_net(layout).encode(video).latent_dist.mode()
    mean, std = map(per_channel, STATISTICS[layout])
    expected = (mu - mean) / std
    torch.testing.assert_close(vae.encode(video), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", WAN)
def test_decode_is_that_of_diffusers(layout: str) -> None:
    vae = wan_vae(layout)
    latents = some_latents(vae.cfg, batch=2)
    mean, std = map(per_channel, STATISTICS[layout])
    z = latents * std + mean
    torch.testing.assert_close(vae.decode(latents), wan_net(layout).decode(z).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("latents_a_call", [1, 3])
def test_latents_computed_at_once_do_not_change_the_result(latents_a_call: int) -> None:
    net, cfg = wan_net("wan22"), LAYOUTS["wan22"][1]
    whole, parts = VideoVAE(net, cfg, latents_a_call=100), VideoVAE(net, cfg, latents_a_call)
    video, latents = some_video(cfg), some_latents(cfg)
    torch.testing.assert_close(parts.encode(video), whole.encode(video), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.decode(latents), whole.decode(latents), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ALL)
@pytest.mark.parametrize("pushes", [(1, 1, 1, 1, 1), (2, 3), (1, 4)])
def test_streaming_gives_the_frames_of_the_whole_clip(layout: str, pushes: tuple[int, ...]) -> None:
    vae = any_vae(layout)
    latents = some_latents(vae.cfg, batch=2)
    session = vae.decoder()
    frames = [session.push(part) for part in latents.split(pushes, dim=2)]
    assert frames[0].shape[2] == 1 + vae.cfg.stride_t * (pushes[0] - 1)
    assert frames[-1].shape[2] == vae.cfg.stride_t * pushes[-1]
    torch.testing.assert_close(torch.cat(frames, dim=2), vae.decode(latents), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ALL)
@pytest.mark.parametrize("pushes", [(1,) * 17, (3, 1, 9, 4), (5, 12), (2, 15)])
def test_streaming_gives_the_latents_of_the_whole_clip(layout: str, pushes: tuple[int, ...]) -> None:
    """Whatever the pushes: frames that fill no group yet wait, and a push may give no latents at all."""
    vae = any_vae(layout)
    video, s = some_video(vae.cfg, batch=2, latent_frames=1 + 16 // vae.cfg.stride_t), vae.cfg.stride_t
    session, given, latents = vae.encoder(), 0, []
    for part in video.split(pushes, dim=2):
        given += part.shape[2]
        latents.append(session.push(part))
        assert sum(x.shape[2] for x in latents) == 1 + (given - 1) // s
    torch.testing.assert_close(torch.cat(latents, dim=2), vae.encode(video), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ALL)
def test_interleaved_encoder_sessions_do_not_disturb_each_other(layout: str) -> None:
    vae = any_vae(layout)
    one, two = some_video(vae.cfg, seed=3), some_video(vae.cfg, seed=4)
    first, second = vae.encoder(), vae.encoder()
    got: list[list[torch.Tensor]] = [[], []]
    for a, b in zip(one.split(3, dim=2), two.split(3, dim=2), strict=True):
        got[0].append(first.push(a))
        vae.decode(some_latents(vae.cfg))
        got[1].append(second.push(b))
    torch.testing.assert_close(torch.cat(got[0], dim=2), vae.encode(one), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(got[1], dim=2), vae.encode(two), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ALL)
def test_a_stream_of_frames_keeps_its_size(layout: str) -> None:
    vae = any_vae(layout)
    session, video = vae.encoder(), some_video(vae.cfg)
    session.push(video[:, :, :2])
    with pytest.raises(ValueError, match="goes on with"):
        session.push(video[..., vae.cfg.stride_s :])
    with pytest.raises(ValueError, match="multiples of"):
        session.push(video[..., 1:])


def test_latent_statistics_are_wans_and_another_familys_are_refused() -> None:
    """diffusers takes Wan 2.1's where a config says nothing, whatever the number of channels."""
    from diffusers import AutoencoderKLWan

    for layout, (mean, std) in STATISTICS.items():
        vae = wan_vae(layout)
        assert torch.equal(vae.mean, per_channel(mean)) and torch.equal(vae.std, per_channel(std))
    bare = {name: value for name, value in LAYOUTS["wan22"][0].items() if not name.startswith("latents_")}
    with pytest.raises(ValueError, match="16 values of latents_mean for 48 channels"):
        VideoVAE(AutoencoderKLWan(**bare), LAYOUTS["wan22"][1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ALL)
def test_interleaved_sessions_and_encodes_do_not_disturb_each_other(layout: str) -> None:
    vae = any_vae(layout)
    one, two = some_latents(vae.cfg, seed=3), some_latents(vae.cfg, seed=4)
    first, second = vae.decoder(), vae.decoder()
    got: list[list[torch.Tensor]] = [[], []]
    for i in range(one.shape[2]):
        got[0].append(first.push(one[:, :, i : i + 1]))
        vae.encode(some_video(vae.cfg))
        got[1].append(second.push(two[:, :, i : i + 1]))
    torch.testing.assert_close(torch.cat(got[0], dim=2), vae.decode(one), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(got[1], dim=2), vae.decode(two), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ALL)
def test_decoding_is_causal(layout: str) -> None:
    vae = any_vae(layout)
    latents = some_latents(vae.cfg)
    changed = latents.clone()
    changed[:, :, 3:] = 0
    kept = 1 + 2 * vae.cfg.stride_t
    before, after = vae.decode(latents), vae.decode(changed)
    assert torch.equal(before[:, :, :kept], after[:, :, :kept])
    assert not torch.equal(before[:, :, kept:], after[:, :, kept:])


@pytest.mark.parametrize("layout", ALL)
def test_encode_image_is_the_encoding_of_image_then_grey(layout: str) -> None:
    vae = any_vae(layout)
    clip = some_video(vae.cfg, batch=2)
    clip[:, :, 1:] = 0
    torch.testing.assert_close(vae.encode_image(clip[:, :, 0], clip.shape[2]), vae.encode(clip), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ALL)
def test_decoded_pixels_stay_in_range(layout: str) -> None:
    vae = any_vae(layout)
    assert vae.decode(100 * some_latents(vae.cfg)).abs().max() <= 1


@pytest.mark.parametrize("layout", ALL)
@pytest.mark.parametrize("spoil", [lambda x: x[:, :, :-1], lambda x: x[..., :-1], lambda x: x[:, :2]])
def test_encode_rejects_sizes_off_the_strides(layout: str, spoil) -> None:
    vae = any_vae(layout)
    with pytest.raises(ValueError, match="video: "):
        vae.encode(spoil(some_video(vae.cfg)))


@pytest.mark.parametrize("layout", WAN)
@pytest.mark.parametrize(("field", "value"), [("z_channels", 5), ("stride_t", 2), ("stride_s", 32)])
def test_sizes_that_differ_from_the_config_are_named(layout: str, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"vae.{field} is {value}"):
        VideoVAE(wan_net(layout), replace(LAYOUTS[layout][1], **{field: value}))


def test_a_diffusers_folder_loads_with_its_statistics(tmp_path: Path) -> None:
    net = wan_net("wan22")
    net.save_pretrained(tmp_path / "vae")
    cfg = replace(LAYOUTS["wan22"][1], source=str(tmp_path))
    latents = some_latents(cfg)
    loaded = load_vae(cfg)
    assert not loaded.training
    assert torch.equal(loaded.decode(latents), VideoVAE(net, cfg).decode(latents))


def test_a_truncated_diffusers_file_is_a_clear_error(tmp_path: Path) -> None:
    wan_net("wan21").save_pretrained(tmp_path / "vae")
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_vae(replace(LAYOUTS["wan21"][1], source=str(tmp_path)))


@pytest.mark.parametrize("source", ["/no/such/folder", "./missing", "no slash"])
def test_a_missing_folder_is_named(source: str) -> None:
    with pytest.raises(ValueError, match=r"vae\.source.*neither an existing folder nor a hub id"):
        load_vae(VAEConfig(source))


def test_a_patch_vae_comes_back_from_its_folder(tmp_path: Path) -> None:
    vae = patch_vae()
    save_patch_vae(vae, tmp_path)
    loaded = load_vae(replace(PATCH, source=str(tmp_path)))
    video, latents = some_video(PATCH), some_latents(PATCH)
    assert torch.equal(loaded.encode(video), vae.encode(video))  # the encoder is kept exactly
    torch.testing.assert_close(loaded.decode(latents), vae.decode(latents), atol=5e-3, rtol=0)  # float16 decoder


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_damaged_patch_vae_is_a_clear_error(tmp_path: Path, name: str) -> None:
    save_patch_vae(patch_vae(), tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        load_vae(replace(PATCH, source=str(tmp_path)))


def test_other_weights_in_a_patch_folder_are_an_error(tmp_path: Path) -> None:
    save_patch_vae(patch_vae(), tmp_path)
    config = tmp_path / CONFIG
    config.write_text(config.read_text().replace('"width": 8', '"width": 16'))
    with pytest.raises(ValueError, match="does not fit"):
        load_vae(replace(PATCH, source=str(tmp_path)))


def test_patch_sizes_that_differ_from_the_config_are_named(tmp_path: Path) -> None:
    save_patch_vae(patch_vae(), tmp_path)
    with pytest.raises(ValueError, match=r"vae\.z_channels is 7, its weights have 4"):
        load_vae(replace(PATCH, source=str(tmp_path), z_channels=7))


def test_unknown_embedded_weights_are_named() -> None:
    with pytest.raises(ValueError, match="embedded:huge: no file"):
        load_vae(VAEConfig("embedded:huge"))


def test_the_network_of_the_nano_vae_trains_in_bfloat16() -> None:
    """A GPU's engine makes the weights bfloat16; the components and the latents stay float32."""
    vae = load_vae(VAEConfig("embedded:nano", 16, 2, 4)).requires_grad_(True)
    latents = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = vae.reconstruct(latents)
    for parameter in vae.parameters():
        parameter.data = parameter.data.bfloat16()
    rounded = vae.reconstruct(latents)
    rounded.square().mean().backward()
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, atol=0.05)


def test_embedded_nano_reconstructs_a_smooth_picture() -> None:
    vae = load_vae(VAEConfig("embedded:nano", z_channels=16, stride_t=2, stride_s=4))
    ramp = torch.linspace(-0.8, 0.8, 80).expand(1, 3, 5, 48, 80).clone()
    ramp[:, 1] *= -0.5
    assert (vae.decode(vae.encode(ramp)) - ramp).abs().mean() < 0.05
