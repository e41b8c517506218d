"""Both full sizes, built without memory: every key and shape against diffusers' configurations of the released models."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from configs.settings import load
from msmodel.dit import WanDiT

COMMON = {
    "patch_size": (1, 2, 2), "attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256, "num_layers": 30,
    "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 1024,
}  # fmt: skip
SMALL = {**COMMON, "num_attention_heads": 12, "out_channels": 16, "ffn_dim": 8960}
CLIP = {"image_dim": 1280, "added_kv_proj_dim": 1536}
LARGE = {**COMMON, "num_attention_heads": 24, "out_channels": 48, "ffn_dim": 14336}
RELEASED = {  # preset, dit.clip_dim, the released model's config, its parameters
    "Wan2.1-T2V-1.3B": ("wan21-1.3b", 0, {**SMALL, "in_channels": 16}, 1_418_996_800),
    "Fun-1.3B-InP": ("wan21-1.3b", 1280, {**SMALL, **CLIP, "in_channels": 36}, 1_564_428_608),
    "Wan2.2-TI2V-5B": ("wan22-5b", 0, {**LARGE, "in_channels": 48}, 4_999_787_712),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_keys_and_shapes_are_those_of_the_released_model(name):
    """Ours differs by the track head, and by more input channels of the patch embedding: 36 + 16 and 48 + 16."""
    from diffusers import WanTransformer3DModel

    preset, clip_dim, config, parameters = RELEASED[name]
    cfg = load(preset).model
    cfg = replace(cfg, dit=replace(cfg.dit, clip_dim=clip_dim))
    began = time.perf_counter()
    with torch.device("meta"):
        ours = {k: tuple(v.shape) for k, v in WanDiT(cfg).state_dict().items()}
        theirs = {k: tuple(v.shape) for k, v in WanTransformer3DModel(**config).state_dict().items()}
    assert time.perf_counter() - began < 20
    assert sum(torch.Size(shape).numel() for shape in theirs.values()) == parameters
    patch = ours.pop("patch_embedding.weight")
    assert ours.pop("track_head.weight") == (16, 256, 1, 1, 1)
    assert ours.pop("track_head.bias") == (16,)
    there = theirs.pop("patch_embedding.weight")
    assert patch == (there[0], {"wan21-1.3b": 52, "wan22-5b": 64}[preset], *there[2:])
    assert ours == theirs
