"""Parameter names against diffusers' own converter of Wan checkpoints."""

from __future__ import annotations

import pytest
import torch

from msmodel.dit import WanDiT
from msmodel.io import names
from tests.unit.msmodel.models import tiny_config, with_clip


@pytest.mark.slow
def test_names_are_those_that_diffusers_makes_of_wans():
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    with torch.device("meta"):
        state = WanDiT(with_clip(tiny_config())).state_dict()
    ours = [name for name in state if not name.startswith("track_head.")]
    original = {names.to_original(name): torch.full((), float(place)) for place, name in enumerate(ours)}
    assert len(original) == len(ours)
    assert {"blocks.1.norm3.weight", "blocks.0.cross_attn.norm_k_img.weight", "head.modulation"} <= original.keys()
    assert not any("norm2" in name for name in original)
    assert [names.to_diffusers(name) for name in original] == ours
    converted = convert_wan_transformer_to_diffusers(dict(original))
    assert {name: int(value) for name, value in converted.items()} == {name: i for i, name in enumerate(ours)}


def test_names_that_are_nobodys_stay():
    for name in (
        "track_head.weight",
        "ref_conv.bias",
        "blocks.0.unheard_of.weight",
        "vace_blocks.0.self_attn.q.weight",
    ):
        assert names.to_original(name) == names.to_diffusers(name) == name


def test_the_spelling_is_reported_and_a_mixture_refused():
    assert names.spelling(["blocks.0.self_attn.q.weight", "patch_embedding.weight"]) == names.ORIGINAL
    assert names.spelling(["blocks.0.attn1.to_q.weight"]) == names.DIFFUSERS
    assert names.spelling(["encoder.weight"]) == ""
    with pytest.raises(ValueError, match="at once"):
        names.spelling(["blocks.0.self_attn.q.weight", "blocks.0.attn1.to_q.weight"])


def test_what_stands_before_all_names_is_found():
    assert names.prefix(["model.diffusion_model.patch_embedding.weight", "other"]) == "model.diffusion_model."
    assert names.prefix(["patch_embedding.weight"]) == names.prefix(["nothing"]) == ""
    assert names.prefix(["vace_patch_embedding.weight", "patch_embedding.weight"]) == ""
