"""WanDiT against diffusers' WanTransformer3DModel, its initialisation, and its numerics in half precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import repeat

from msmodel.dit import WanDiT
from tests.unit.msmodel.models import conditioning, gaussian, randomise, tiny_config


def oracle_for(model: WanDiT):
    """diffusers' model with the same weights by name; it reads our track features as plain input channels."""
    from diffusers import WanTransformer3DModel

    cfg = model.cfg
    oracle = WanTransformer3DModel(
        patch_size=cfg.dit.patch,
        num_attention_heads=cfg.dit.heads,
        attention_head_dim=cfg.dit.dim // cfg.dit.heads,
        in_channels=cfg.in_channels,
        out_channels=cfg.vae.z_channels,
        text_dim=cfg.text.dim,
        freq_dim=cfg.dit.freq_dim,
        ffn_dim=cfg.dit.ffn_dim,
        num_layers=cfg.dit.layers,
        eps=cfg.dit.eps,
    )
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("track_head.")}
    oracle.load_state_dict(state, strict=True)
    return oracle.eval()


def oracle_inputs(model: WanDiT, noisy, cond):
    parts = [noisy, *([] if model.cfg.image_alone else [cond.image]), model.track_head(cond.tracks)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_equals_diffusers_with_one_time_a_clip(seed):
    cfg = tiny_config()
    model = randomise(WanDiT(cfg), seed)
    cond, noisy, t = conditioning(cfg, 2), gaussian(cfg, 2), torch.tensor([0.9371, 0.2])
    expected = oracle_for(model)(oracle_inputs(model, noisy, cond), 1000 * t, cond.text).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(model(noisy, t, cond), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_equals_diffusers_with_a_time_for_each_frame():
    cfg = tiny_config()
    model = randomise(WanDiT(cfg))
    cond, noisy = conditioning(cfg, 2), gaussian(cfg, 2)
    t = torch.rand(2, cfg.latent_frames, generator=torch.Generator().manual_seed(3))
    per_token = repeat(1000 * t, "b t -> b (t n)", n=cfg.tokens_per_frame)
    expected = oracle_for(model)(oracle_inputs(model, noisy, cond), per_token, cond.text).sample
    torch.testing.assert_close(model(noisy, t, cond), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_first_latent_layout_stamps_the_image_at_time_zero():
    cfg = tiny_config(image="first_latent")
    model = randomise(WanDiT(cfg))
    cond, noisy, t = conditioning(cfg, 2), gaussian(cfg, 2), torch.tensor([0.9, 0.3])
    stamped = torch.cat((cond.image[:, :, :1], noisy[:, :, 1:]), dim=2)
    times = repeat(1000 * t, "b -> b t", t=cfg.latent_frames).clone()
    times[:, 0] = 0
    per_token = repeat(times, "b t -> b (t n)", n=cfg.tokens_per_frame)
    expected = oracle_for(model)(oracle_inputs(model, stamped, cond), per_token, cond.text).sample
    torch.testing.assert_close(model(noisy, t, cond), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_equal_times_for_all_frames_are_one_time_for_the_clip():
    cfg = tiny_config()
    model = randomise(WanDiT(cfg).double())
    cond, noisy, t = conditioning(cfg, 2).to("cpu", torch.float64), gaussian(cfg, 2).double(), torch.tensor([0.7, 0.1])
    per_frame = repeat(t, "b -> b t", t=cfg.latent_frames)
    torch.testing.assert_close(model(noisy, per_frame, cond), model(noisy, t, cond), atol=1e-12, rtol=0)


def test_tracks_change_nothing_at_step_0_and_learn_from_there():
    cfg = tiny_config()
    torch.manual_seed(0)
    model = WanDiT(cfg)
    torch.nn.init.normal_(model.proj_out.weight)  # a pretrained backbone has a live output head
    cond, noisy, t = conditioning(cfg, 2), gaussian(cfg, 2), torch.tensor([0.5, 0.8])
    with torch.no_grad():
        assert torch.equal(model(noisy, t, cond), model(noisy, t, cond.without_tracks()))

    def gradients() -> tuple[float, float]:
        model.zero_grad()
        model(noisy, t, cond).square().mean().backward()
        slice_grad = model.patch_embedding.weight.grad[:, -cfg.dit.track_channels :]
        return float(slice_grad.norm()), float(model.track_head.weight.grad.norm())

    slice_norm, head_norm = gradients()
    assert slice_norm > 1e-4
    assert head_norm == 0
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    slice_norm, head_norm = gradients()
    assert slice_norm > 1e-4
    assert head_norm > 1e-8
    with torch.no_grad():
        assert not torch.equal(model(noisy, t, cond), model(noisy, t, cond.without_tracks()))


def test_fresh_output_head_is_zero_and_gets_gradient():
    cfg = tiny_config()
    model = WanDiT(cfg)
    out = model(gaussian(cfg), torch.tensor([0.5]), conditioning(cfg))
    assert not out.any()
    (out - 1).square().mean().backward()
    assert model.proj_out.weight.grad.norm() > 0


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_checkpointed_layers_give_the_same_gradients(image):
    cfg = tiny_config(image)
    model = randomise(WanDiT(cfg).double())
    cond, noisy, t = conditioning(cfg).to("cpu", torch.float64), gaussian(cfg).double(), torch.tensor([0.4])
    grads = []
    for model.checkpoint_layers in (False, True):
        model.zero_grad()
        model(noisy, t, cond).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-12, rtol=0)


@torch.no_grad()
def test_zeros_past_the_prompt_are_attended_to_as_in_wan():
    """No mask: text.length is part of the function, so embeddings are padded to it and never shortened."""
    cfg = tiny_config()
    model = randomise(WanDiT(cfg))
    cond, noisy, t = conditioning(cfg), gaussian(cfg), torch.tensor([0.4])
    shorter = replace(cond, text=cond.text[:, :-2])
    assert not cond.text[:, -2:].any()
    expected = oracle_for(model)(oracle_inputs(model, noisy, cond), 1000 * t, cond.text).sample
    torch.testing.assert_close(model(noisy, t, cond), expected, atol=1e-5, rtol=1e-5)
    assert (model(noisy, t, shorter) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_half_precision_keeps_residual_and_time_in_float32():
    cfg = tiny_config()
    model = randomise(WanDiT(cfg))
    cond, noisy, t = conditioning(cfg), gaussian(cfg), torch.tensor([0.4])
    full = model(noisy, t, cond)
    half = model.to(torch.bfloat16)
    embedding, time = half.embed_time(t)
    assert embedding.dtype == time.dtype == torch.float32
    x = half.embed_patches(noisy, cond)
    x, own = half.blocks[0](x, half.embed_text(cond.text), time, half.rotation(range(cfg.latent_frames), noisy))
    assert x.dtype == torch.float32
    assert own.key.dtype == torch.bfloat16
    out = half(noisy, t, cond)
    assert out.dtype == noisy.dtype
    assert (out - full).norm() / full.norm() < 0.03


def test_patches_across_latent_frames_are_refused():
    cfg = tiny_config()
    with pytest.raises(ValueError, match=r"dit\.patch"):
        WanDiT(replace(cfg, dit=replace(cfg.dit, patch=(2, 2, 2))))
