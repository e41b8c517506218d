"""Weights of others that must be refused, with the reason, before anything is trained."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from msmodel.dit import WanDiT
from msmodel.io.backbones import load_backbone
from tests.unit.msmodel.io.test_backbones import accounted, fresh, saved, source, state_of
from tests.unit.msmodel.models import randomise, tiny_config, wan_transformer, with_clip


@pytest.mark.parametrize(
    ("change", "logged"),
    [
        ({"dim": 48, "heads": 2}, r"dit\.dim 48, not 32"),
        ({"ffn_dim": 64}, r"dit\.ffn_dim 64, not 48"),
        ({"layers": 3}, r"dit\.layers 3, not 2"),
        ({"heads": 4}, r"dit\.heads 4, not 2"),
        ({"patch": (1, 1, 1)}, r"dit\.patch \(1, 1, 1\), not \(1, 2, 2\)"),
    ],
)
def test_weights_of_another_model_are_named(change, logged, tmp_path):
    cfg = tiny_config()
    _, folder = source(tmp_path, 10, replace(cfg, dit=replace(cfg.dit, **change)))
    model = fresh()
    before = state_of(model)
    with pytest.raises(ValueError, match=f"weights of another model .*{logged}"):
        load_backbone(model, folder)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_released_family_is_named_by_its_name(tmp_path):
    """Headers are enough: no tensor of these sizes is read."""
    shapes = {"patch_embedding.weight": (3072, 48, 1, 2, 2), "head.head.weight": (192, 3072)}
    shapes |= {f"blocks.{n}.self_attn.q.bias": (3072,) for n in range(30)}
    shapes |= {"blocks.0.ffn.0.weight": (14336, 3072)}
    header = dict[str, dict]()
    size = 0
    for name, shape in shapes.items():
        count = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [size, size + count]}
        size += count
    text = json.dumps(header).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + size)
    with pytest.raises(ValueError, match=r"Wan 2\.2 TI2V 5B\): dit\.dim 3072, not 32.*vae\.z_channels 48, not 4"):
        load_backbone(fresh(), path)


def test_latents_of_another_vae_are_another_model(tmp_path):
    cfg = tiny_config()
    _, folder = source(tmp_path, 18, replace(cfg, vae=replace(cfg.vae, z_channels=8)))
    with pytest.raises(ValueError, match=r"vae\.z_channels 8, not 4"):
        load_backbone(fresh(), folder)


def test_what_is_no_wan_transformer_is_reported(tmp_path):
    with pytest.raises(ValueError, match=r"no Wan transformer .*encoder\.weight"):
        load_backbone(fresh(), saved({"encoder.weight": torch.zeros(2)}, tmp_path))


def test_a_number_of_channels_of_no_layout_is_refused_with_the_known_ones(tmp_path):
    _, folder = source(tmp_path, 11)
    with pytest.raises(ValueError, match=r"11 input channels .*4 \(noise 4\); 10 \(noise 4, mask 2, image 4\)"):
        load_backbone(fresh(), folder)


def test_strict_refuses_missing_and_unknown_tensors_and_otherwise_they_are_reported(tmp_path):
    state = state_of(randomise(wan_transformer(tiny_config(), 10)))
    del state["blocks.1.ffn.net.2.bias"]
    state |= {"vace_blocks.0.weight": torch.zeros(1), "odd": torch.zeros(1)}
    folder = saved(state, tmp_path)
    with pytest.raises(ValueError, match=r"1 missing: blocks\.1\.ffn.*2 not understood: odd, vace_blocks.*VACE"):
        load_backbone(fresh(), folder)
    model = fresh()
    report = load_backbone(model, folder, strict=False)
    assert report.unused == ("odd", "vace_blocks.0.weight")
    assert "blocks.1.ffn.net.2.bias" in report.new
    assert accounted(report, model, state)


@pytest.mark.parametrize("lost", ["blocks.0.attn2.to_out.0.bias", "blocks.1.attn2.add_v_proj.weight"])
def test_what_folding_needs_is_missed_by_name(lost, tmp_path):
    cfg = with_clip(tiny_config())
    state = state_of(randomise(wan_transformer(cfg, 10)))
    del state[lost]
    with pytest.raises(ValueError, match=rf"{lost} is missing"):
        load_backbone(fresh(replace(cfg, dit=replace(cfg.dit, clip_dim=0))), saved(state, tmp_path))


def test_half_a_track_head_is_missed(tmp_path):
    state = state_of(randomise(WanDiT(tiny_config())))
    del state["track_head.bias"]
    with pytest.raises(ValueError, match=r"1 missing: track_head\.bias"):
        load_backbone(fresh(), saved(state, tmp_path))


def test_a_reference_image_is_optional_in_fun_control_so_its_weights_may_go(tmp_path):
    state = state_of(randomise(wan_transformer(tiny_config(), 12)))
    state["ref_conv.weight"] = torch.ones(32, 4, 2, 2)
    assert load_backbone(fresh(), saved(state, tmp_path)).unused == ("ref_conv.weight",)


@pytest.mark.parametrize("strict", [True, False])
def test_misshaped_tensors_are_always_refused(strict, tmp_path):
    state = state_of(randomise(wan_transformer(tiny_config(), 10)))
    state["blocks.0.norm2.weight"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"norm2\.weight \(5,\) should be \(32,\)"):
        load_backbone(fresh(), saved(state, tmp_path), strict)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.attn1.to_v.weight", "patch_embedding.weight"])
def test_a_tensor_that_is_not_finite_is_named(name, value, tmp_path):
    state = state_of(randomise(wan_transformer(tiny_config(), 10)))
    state[name].view(-1)[17] = value
    with pytest.raises(ValueError, match=rf"model\.safetensors: {name} holds NaN or inf"):
        load_backbone(fresh(), saved(state, tmp_path))


def test_quantised_weights_are_refused(tmp_path):
    state = state_of(randomise(wan_transformer(tiny_config(), 10)))
    state["proj_out.weight"] = state["proj_out.weight"].to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"proj_out\.weight is torch\.float8_e4m3fn: quantised"):
        load_backbone(fresh(), saved(state, tmp_path))


def test_one_tensor_under_two_names_is_refused(tmp_path):
    state = state_of(randomise(wan_transformer(tiny_config(), 10)))
    state["blocks.0.self_attn.q.weight"] = state["blocks.0.attn1.to_q.weight"].clone()
    with pytest.raises(ValueError, match="under Wan's names and under diffusers' at once"):
        load_backbone(fresh(), saved(state, tmp_path))
    del state["blocks.0.self_attn.q.weight"]
    long = {f"model.{n}": x for n, x in state.items()} | {"proj_out.bias": state["proj_out.bias"].clone()}
    with pytest.raises(ValueError, match=r"holds proj_out\.bias twice"):
        load_backbone(fresh(), saved(long, tmp_path))
