"""WanDiT against diffusers' WanTransformer3DModel, its initialisation, and its numerics in half precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import repeat
from torch.utils._python_dispatch import TorchDispatchMode

from msmodel.attention import is_attention
from msmodel.causal import CausalDiT, times
from msmodel.dit import WanDiT
from msmodel.rollout import rollout
from tests.unit.msmodel.models import conditioning, gaussian, randomise, tiny_config, wan_transformer, with_clip


def oracle_for(model: WanDiT):
    """diffusers' model with the same weights by name; it reads our track features as plain input channels."""
    oracle = wan_transformer(model.cfg)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("track_head.")}
    oracle.load_state_dict(state, strict=True)
    return oracle


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


def clip_tokens(cfg, batch: int):
    return torch.randn(batch, 257, cfg.dit.clip_dim, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def test_the_clip_branch_equals_diffusers():
    cfg = with_clip(tiny_config())
    model = randomise(WanDiT(cfg))
    clip = clip_tokens(cfg, 2)
    cond, noisy, t = replace(conditioning(cfg, 2), image_tokens=clip), gaussian(cfg, 2), torch.tensor([0.9371, 0.2])
    expected = oracle_for(model)(oracle_inputs(model, noisy, cond), 1000 * t, cond.text, clip).sample
    got = model(noisy, t, cond)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    other = model(noisy, t, replace(cond, image_tokens=clip.roll(1, -1)))
    assert (other - got).abs().max() > 1e-3


@torch.no_grad()
def test_without_clip_tokens_the_branch_sees_what_dropped_ones_are_zeros():
    """One zero token stands for 257: attention over equal tokens gives the value of one."""
    cfg = with_clip(tiny_config())
    model = randomise(WanDiT(cfg))
    cond, noisy, t = conditioning(cfg, 2), gaussian(cfg, 2), torch.tensor([0.9, 0.4])
    zeros = torch.zeros(2, 257, cfg.dit.clip_dim)
    expected = oracle_for(model)(oracle_inputs(model, noisy, cond), 1000 * t, cond.text, zeros).sample
    got = model(noisy, t, cond)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(noisy, t, replace(cond, image_tokens=zeros)), got, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_rollout_reads_clip_tokens_at_every_chunk():
    cfg = with_clip(tiny_config())
    student = randomise(CausalDiT(cfg))
    cond, noise = replace(conditioning(cfg), image_tokens=clip_tokens(cfg, 1)), gaussian(cfg)

    def generated(given):
        return rollout(student, given, noise, (1.0, 0.5), cfg.student, torch.Generator().manual_seed(0))

    own = generated(cond)
    assert torch.equal(own, generated(cond))
    apart = (own - generated(replace(cond, image_tokens=None))).abs().amax(dim=(0, 1, 3, 4))
    assert (apart > 1e-4).all()
    cache = student.new_cache(noise, cfg.student)
    first, context = cond.frames(0, cfg.student.chunk), cache.context(0)
    chunk, t = noise[:, :, : cfg.student.chunk], times(noise, 0.7)
    kept = student.text_keys_values(cond.text, cond.image_tokens)
    with_kept = student.forward_chunk(chunk, t, first, context, kept)[0]
    assert torch.equal(with_kept, student.forward_chunk(chunk, t, first, context)[0])
    torch.testing.assert_close(with_kept, student(chunk, t, first), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_fresh_clip_branch_adds_nothing():
    cfg = with_clip(tiny_config())
    model = WanDiT(cfg)
    torch.nn.init.normal_(model.proj_out.weight)
    cond, noisy, t = conditioning(cfg), gaussian(cfg), torch.tensor([0.5])
    assert torch.equal(model(noisy, t, replace(cond, image_tokens=clip_tokens(cfg, 1))), model(noisy, t, cond))


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


class Attentions(TorchDispatchMode):
    """Counts the forward passes of attention that are computed."""

    computed = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.computed += is_attention(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_kept_attention_is_not_recomputed_and_the_gradients_are_the_same_bits(image):
    """Two layers with two attentions each: 4 in the forward pass, and 4 more where layers are recomputed with them."""
    model = randomise(WanDiT(tiny_config(image)))
    cond, noisy, t = conditioning(model.cfg), gaussian(model.cfg), torch.tensor([0.4])
    grads, computed = [], []
    for model.checkpoint_layers, model.keep_attention in ((False, False), (True, False), (True, True)):
        model.zero_grad()
        with Attentions() as attentions:
            model(noisy, t, cond).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        computed.append(attentions.computed)
    assert computed == [4, 8, 4]
    for plain, recomputed, kept in zip(*grads, strict=True):
        assert torch.equal(plain, recomputed)
        assert torch.equal(plain, kept)


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
    x, own = half.blocks[0](x, half.embed_prompt(cond.text), time, half.rotation(range(cfg.latent_frames), noisy))
    assert x.dtype == torch.float32
    assert own.key.dtype == torch.bfloat16
    out = half(noisy, t, cond)
    assert out.dtype == noisy.dtype
    assert (out - full).norm() / full.norm() < 0.03


def test_patches_across_latent_frames_are_refused():
    cfg = tiny_config()
    with pytest.raises(ValueError, match=r"dit\.patch"):
        WanDiT(replace(cfg, dit=replace(cfg.dit, patch=(2, 2, 2))))
