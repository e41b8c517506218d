"""Weights out: what diffusers loads is what we have, and what comes back is the same bits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from msmodel.io.backbones import load_backbone
from msmodel.io.export import write_diffusers, write_original
from msmodel.io.weights import model_config
from tests.unit.msmodel.models import conditioning, gaussian, headless, randomise, tiny_config, with_clip


def like_nano() -> ModelConfig:
    """One latent cell a token, and offsets in the cells."""
    cfg = tiny_config()
    return replace(cfg, dit=replace(cfg.dit, patch=(1, 1, 1), track_channels=7, track_offsets=True))


KINDS = {
    "channels": tiny_config(),
    "first_latent": tiny_config(image="first_latent"),
    "clip": with_clip(tiny_config()),
    "nano": like_nano(),
}


def same(a: WanDiT, b: WanDiT) -> bool:
    ours, others = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[k], others[k]) for k in ours) and ours.keys() == others.keys()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_the_folder_and_gives_the_same_velocity(kind, tmp_path):
    from diffusers import WanTransformer3DModel
    from safetensors.torch import load_file

    cfg = KINDS[kind]
    model = randomise(WanDiT(cfg))
    write_diffusers(model, tmp_path, shard_gb=5.0)
    loaded, info = WanTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer", output_loading_info=True)
    assert not any(info.values()), info
    head = load_file(tmp_path / "track_head" / "model.safetensors")
    cond, noisy, t = conditioning(cfg, 2), gaussian(cfg, 2), torch.tensor([0.7, 0.3])
    tracks = torch.nn.functional.conv3d(cond.tracks, head["track_head.weight"], head["track_head.bias"])
    times, more = 1000 * t, {}
    parts = [noisy, cond.image, tracks]
    if cfg.image_alone:
        parts = [torch.cat([cond.image[:, :, :1], noisy[:, :, 1:]], dim=2), tracks]
        times = times[:, None].repeat(1, cfg.tokens)
        times[:, : cfg.tokens_per_frame] = 0
    if cfg.dit.clip_dim:
        more["encoder_hidden_states_image"] = torch.randn(2, 257, cfg.dit.clip_dim)
        cond = replace(cond, image_tokens=more["encoder_hidden_states_image"])
    expected = loaded.eval()(torch.cat(parts, dim=1), times, cond.text, **more).sample
    torch.testing.assert_close(model(noisy, t, cond), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shard_gb", [5.0, 2e-5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_comes_back_bit_for_bit(kind, shard_gb, tmp_path):
    model = randomise(WanDiT(KINDS[kind]))
    write_diffusers(model, tmp_path, shard_gb)
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    assert index.is_file() == (shard_gb < 1)
    written = json.loads((tmp_path / "track_head" / "config.json").read_text())
    assert model_config(written["model"]) == model.cfg
    other = WanDiT(model_config(written["model"]))
    report = load_backbone(other, tmp_path)
    assert same(other, model)
    assert not (report.resized or report.folded or report.new or report.unused)


@pytest.mark.parametrize("kind", KINDS)
def test_the_single_file_is_wans_and_comes_back_bit_for_bit(kind, tmp_path):
    model = randomise(CausalDiT(KINDS[kind])).to(torch.bfloat16)
    path = tmp_path / "wan" / "student.safetensors"
    write_original(model, path)
    with safe_open(path, "pt") as f:
        assert {"head.modulation", "blocks.0.self_attn.q.weight", "track_head.weight"} <= set(f.keys())
        assert model_config(json.loads(f.metadata()["model"])) == model.cfg
    other = CausalDiT(model.cfg).to(torch.bfloat16)
    assert load_backbone(other, path).spelling == "original Wan"
    assert same(other, model)


@pytest.mark.slow
@torch.no_grad()
def test_diffusers_reads_the_single_file_too(tmp_path):
    """By its own conversion of Wan's names; the track head is not its."""
    from diffusers import WanTransformer3DModel

    model = randomise(WanDiT(tiny_config()))
    write_diffusers(model, tmp_path, shard_gb=5.0)
    write_original(model, tmp_path / "wan.safetensors")
    loaded = WanTransformer3DModel.from_single_file(
        str(tmp_path / "wan.safetensors"), config=str(tmp_path), subfolder="transformer", torch_dtype=torch.float32
    )
    theirs, ours = loaded.state_dict(), model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_model_without_a_track_head_comes_back_too(tmp_path):
    model = randomise(headless(WanDiT))
    write_diffusers(model, tmp_path, shard_gb=5.0)
    other = headless(WanDiT)
    report = load_backbone(other, tmp_path)
    assert same(other, model) and not report.new
