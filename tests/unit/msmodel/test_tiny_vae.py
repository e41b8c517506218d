"""The tiny VAE: streaming, independence of streams, layout in time and space, loading."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from msmodel.config import VAEConfig
from msmodel.io.weights import save_weights
from msmodel.tiny_vae import TinyDecoder, load_tiny_vae, save_tiny_vae
from tests.unit.msmodel.vaes import patch_vae, some_latents, some_video

NANO = VAEConfig("test", z_channels=4, stride_t=2, stride_s=4)
WAN21 = VAEConfig("test", z_channels=4, stride_t=4, stride_s=8)
WAN22 = VAEConfig("test", z_channels=4, stride_t=4, stride_s=16)
LAYOUTS = {"nano": NANO, "wan21": WAN21, "wan22": WAN22}


def tiny(cfg: VAEConfig) -> TinyDecoder:
    """Random weights, the zero-initialised output included."""
    torch.manual_seed(0)
    net = TinyDecoder(cfg, width=4)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5 * p[0].numel() ** -0.5 if p.ndim > 1 else 0.05)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pushes", [(1, 1, 1, 1, 1), (2, 3), (1, 4)])
def test_streaming_gives_the_frames_of_the_whole_clip(layout: str, pushes: tuple[int, ...]) -> None:
    net = tiny(LAYOUTS[layout])
    latents = some_latents(net.cfg, batch=2)
    whole, session = net.decode(latents), net.decoder()
    assert whole.shape == some_video(net.cfg, batch=2).shape
    frames = [session.push(part) for part in latents.split(pushes, dim=2)]
    torch.testing.assert_close(torch.cat(frames, dim=2), whole, atol=1e-5, rtol=0)


def test_interleaved_and_forked_sessions_do_not_disturb_each_other() -> None:
    net = tiny(NANO)
    one, two = some_latents(NANO, seed=3), some_latents(NANO, seed=4)
    first, second = net.decoder(), net.decoder()
    a, b = [first.push(one[:, :, :2])], [second.push(two[:, :, :2])]
    fork = copy.deepcopy(first, {id(part): part for part in net.modules()})
    fork.push(two[:, :, 2:])
    a.append(first.push(one[:, :, 2:]))
    b.append(second.push(two[:, :, 2:]))
    torch.testing.assert_close(torch.cat(a, dim=2), net.decode(one), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(b, dim=2), net.decode(two), atol=1e-5, rtol=0)


def test_items_of_a_batch_are_independent_and_memory_reaches_the_next_frame() -> None:
    net = tiny(NANO)
    latents = some_latents(NANO, batch=2)
    torch.testing.assert_close(net.decode(latents)[1:], net.decode(latents[1:]), atol=1e-5, rtol=0)
    changed = latents.clone()
    changed[:, :, 2] += 1
    difference = (net.decode(changed) - net.decode(latents)).abs().amax(dim=(0, 1, 3, 4))
    first = 1 + NANO.stride_t  # pixel frames of latents 0 and 1
    assert (difference[:first] == 0).all()  # causal
    assert (difference[first + NANO.stride_t :] > 0).any()  # the past is seen


def test_training_output_is_not_clamped_and_carries_gradient() -> None:
    net = tiny(NANO).requires_grad_(True)
    latents = 30 * some_latents(NANO)
    video = net(latents)
    assert video.abs().max() > 1
    assert net.decode(latents).abs().max() <= 1
    video.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_preview_fitted_to_a_linear_vae_reproduces_it() -> None:
    """Of a linear decoder the least squares projection is exact: this fixes the order of patches in time and space."""
    vae = patch_vae()
    for p in vae.parameters():
        nn.init.zeros_(p)
    torch.manual_seed(0)
    net = TinyDecoder(vae.cfg, width=4).eval()  # a fresh one adds nothing to its preview
    latents = 0.2 * some_latents(vae.cfg, batch=16, latent_frames=4)
    video = vae.decode(latents)
    net.fit_preview(latents, video)
    torch.testing.assert_close(net.decode(latents)[:, :, 1:], video[:, :, 1:], atol=2e-3, rtol=0)


def test_the_preview_rejects_a_video_of_other_sizes() -> None:
    with pytest.raises(ValueError, match="do not fit video"):
        tiny(NANO).fit_preview(some_latents(NANO), some_video(NANO, latent_frames=4))


@pytest.mark.parametrize("save", [lambda m, p: save_tiny_vae(m, p, {"step": 3}), lambda m, p: save_weights(m, p, {})])
def test_saved_weights_alone_are_enough_to_load(tmp_path: Path, save) -> None:
    net = tiny(WAN21)
    save(net, tmp_path)
    latents = some_latents(WAN21)
    loaded = load_tiny_vae(tmp_path)
    assert not loaded.training
    assert (loaded.cfg.z_channels, loaded.cfg.stride_t, loaded.cfg.stride_s, loaded.width) == (4, 4, 8, 4)
    assert torch.equal(loaded.decode(latents), net.decode(latents))


def test_missing_truncated_and_foreign_weights_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no safetensors weights"):
        load_tiny_vae(tmp_path)
    save_weights(nn.Linear(2, 2), tmp_path, {})
    with pytest.raises(ValueError, match="no tiny VAE"):
        load_tiny_vae(tmp_path)
    save_tiny_vae(tiny(NANO), tmp_path, {})
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        load_tiny_vae(weights)


@pytest.mark.parametrize(
    ("stride_t", "stride_s", "message"), [(3, 8, "stride_t 3"), (2, 6, "stride_s 6"), (4, 4, "below")]
)
def test_strides_it_cannot_make_are_rejected(stride_t: int, stride_s: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyDecoder(VAEConfig("test", 4, stride_t, stride_s))
