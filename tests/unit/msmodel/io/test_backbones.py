"""Weights of others: every layout, both spellings, the report, and everything that must be refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from msmodel.dit import WanDiT
from msmodel.io import names
from msmodel.io.backbones import Report, load_backbone
from msmodel.io.weights import load_teacher, save_weights
from stages.train.base import backbone
from tests.unit.msmodel.models import conditioning, gaussian, randomise, tiny_config, wan_transformer, with_clip

Z, MASK, TRACK = 4, 2, 3  # of tiny_config: layouts have 4, 10, 12 and 13 channels
T = torch.tensor([0.6, 0.2])


def fresh(cfg=None, seed: int = 7) -> WanDiT:
    torch.manual_seed(seed)
    return WanDiT(cfg or tiny_config())


def source(folder: Path, channels: int, cfg=None, **changes) -> tuple[torch.nn.Module, Path]:
    """diffusers' model with so many input channels, saved: (model, folder)."""
    model = randomise(wan_transformer(cfg or tiny_config(), channels))
    model.save_pretrained(folder, **changes)
    return model, folder


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    return folder


def inputs(cfg):
    return gaussian(cfg, 2), conditioning(cfg, 2)


def same_weights(a: WanDiT, b: WanDiT) -> bool:
    ours, others = a.state_dict(), b.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[k], others[k]) for k in ours)


def accounted(report: Report, model: WanDiT, incoming) -> bool:
    """Every own key and every key of the source once."""
    own = [*report.taken, *report.resized, *report.new]
    theirs = [*report.taken, *report.folded, *report.unused]
    theirs += [k for k in report.resized if k in incoming]
    return sorted(own) == sorted(model.state_dict()) and sorted(theirs) == sorted(incoming)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("channels", "layout", "given", "words"),
    [
        (Z, "noise 4", ("noise",), "track 3 new, zero"),
        (2 * Z + MASK, "noise 4, mask 2, image 4", ("noise", "mask", "image"), "image 4 copied"),
        (3 * Z, "noise 4, control 4, image 4", ("noise", "none", "image"), "control 4 dropped"),
    ],
)
def test_a_model_without_tracks_is_reproduced_whatever_the_tracks(channels, layout, given, words, tmp_path):
    base, folder = source(tmp_path, channels)
    model = fresh()
    report = load_backbone(model, folder)
    cfg = model.cfg
    noisy, cond = inputs(cfg)
    got = model(noisy, T, cond)
    for tracks in (torch.zeros_like(cond.tracks), 100 * torch.randn_like(cond.tracks)):
        assert torch.equal(model(noisy, T, replace(cond, tracks=tracks)), got)  # bit for bit
    parts = {
        "noise": noisy,
        "mask": cond.image[:, :MASK],
        "image": cond.image[:, MASK:],
        "none": torch.zeros_like(noisy),
    }
    expected = base(torch.cat([parts[name] for name in given], dim=1), 1000 * T, cond.text).sample
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert model.track_head.weight.any() and not model.track_slice.any()
    assert report.layout == layout and words in report.resized[names.PATCH]
    assert report.new == ("track_head.bias", "track_head.weight")
    assert accounted(report, model, base.state_dict())
    assert bool(report.notes) == (channels != 2 * Z + MASK)


class Nothing(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


@torch.no_grad()
def test_at_step_0_outputs_are_bit_for_bit_those_of_the_model_without_track_channels(tmp_path):
    """The base is the same code, its patch embedding without the track channels; sums over zeros change no bit."""
    bare = backbone(randomise(WanDiT(tiny_config())))
    save_weights(bare, tmp_path, {})
    model = fresh()
    report = load_backbone(model, tmp_path)
    noisy, cond = inputs(model.cfg)
    cond = replace(cond, tracks=50 * cond.tracks)
    bare.track_head = Nothing()  # torch has no convolution to no channels
    assert torch.equal(model(noisy, T, cond), bare(noisy, T, cond))
    assert set(report.unused) == {"track_head.weight", "track_head.bias"}


@pytest.mark.slow
@torch.no_grad()
def test_the_5b_kind_takes_its_48_channels_and_refuses_100(tmp_path):
    cfg = tiny_config(image="first_latent")
    base, folder = source(tmp_path / "a", Z, cfg)
    model = fresh(cfg)
    report = load_backbone(model, folder)
    noisy, cond = inputs(cfg)
    stamped = torch.cat((cond.image[:, :, :1], noisy[:, :, 1:]), dim=2)
    times = (1000 * T)[:, None].repeat(1, cfg.latent_frames)
    times[:, 0] = 0
    expected = base(stamped, times.repeat_interleave(cfg.tokens_per_frame, 1), cond.text).sample
    got = model(noisy, T, cond)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(noisy, T, replace(cond, tracks=9 * cond.tracks)), got)
    assert not report.notes
    for channels in (2 * Z + MASK, 3 * Z):
        _, folder = source(tmp_path / str(channels), channels, cfg)
        with pytest.raises(ValueError, match=r"dit\.image=first_latent .*Wan2\.2-TI2V-5B"):
            load_backbone(fresh(cfg), folder)


@pytest.mark.slow
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_original_names_import_bit_for_bit_as_diffusers_names(prefix, clip, tmp_path):
    cfg = with_clip(tiny_config()) if clip else tiny_config()
    base, folder = source(tmp_path / "diffusers", 10, cfg)
    original = {prefix + names.to_original(name): tensor for name, tensor in state_of(base).items()}
    assert prefix + "blocks.0.norm3.weight" in original
    one, other = fresh(cfg), fresh(cfg)
    reports = load_backbone(one, folder), load_backbone(other, saved(original, tmp_path / "wan"))
    assert [r.spelling for r in reports] == ["diffusers", "original Wan"]
    assert same_weights(one, other)
    assert reports[0].taken == reports[1].taken


def test_the_norms_are_not_swapped(tmp_path):
    """Wan's norm3 is diffusers' norm2; a swap would go unseen only if both had the same weights."""
    state = {names.to_original(n): x for n, x in state_of(randomise(wan_transformer(tiny_config(), 10))).items()}
    state["blocks.1.norm3.weight"] = torch.full((32,), 5.0)
    model = fresh()
    load_backbone(model, saved(state, tmp_path))
    assert (model.blocks[1].norm2.weight == 5).all()
    state["blocks.1.norm2.weight"] = state.pop("blocks.1.norm3.weight")
    with pytest.raises(ValueError, match=r"holds blocks\.1\.norm2\.weight, which is diffusers' spelling"):
        load_backbone(fresh(), saved(state, tmp_path))


@torch.no_grad()
def test_shards_of_a_pipeline_in_half_precision(tmp_path):
    base = randomise(wan_transformer(tiny_config(), 10)).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "transformer", max_shard_size=20_000)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    model = fresh()
    load_backbone(model, tmp_path)
    assert torch.equal(model.blocks[0].ffn.net[2].weight, base.blocks[0].ffn.net[2].weight.float())
    assert model.proj_out.weight.dtype == torch.float32


@torch.no_grad()
def test_a_clip_branch_is_kept_where_the_model_has_one(tmp_path):
    cfg = with_clip(tiny_config())
    base, folder = source(tmp_path, 10, cfg)
    model = fresh(cfg)
    report = load_backbone(model, folder)
    noisy, cond = inputs(cfg)
    clip = torch.randn(2, 257, 20)
    expected = base(torch.cat([noisy, cond.image], 1), 1000 * T, cond.text, clip).sample
    torch.testing.assert_close(model(noisy, T, replace(cond, image_tokens=clip)), expected, atol=1e-5, rtol=1e-5)
    assert not report.folded and accounted(report, model, base.state_dict())


@torch.no_grad()
def test_a_clip_branch_is_folded_into_biases_where_the_model_has_none(tmp_path):
    """As the Fun models are given zeros for CLIP's tokens where there is no image, in a tenth of their training."""
    cfg = with_clip(tiny_config())
    base, folder = source(tmp_path, 10, cfg)
    model = fresh(replace(cfg, dit=replace(cfg.dit, clip_dim=0)))
    report = load_backbone(model, folder)
    noisy, cond = inputs(model.cfg)
    expected = base(torch.cat([noisy, cond.image], 1), 1000 * T, cond.text, torch.zeros(2, 257, 20)).sample
    torch.testing.assert_close(model(noisy, T, cond), expected, atol=1e-5, rtol=1e-5)
    bias = base.blocks[1].attn2.to_out[0].bias
    assert (model.blocks[1].attn2.to_out[0].bias - bias).abs().max() > 0.01
    assert accounted(report, model, base.state_dict())
    assert len(report.folded) == 8 + 2 * 5 and "folded" in report.notes[0]
    assert len([line for line in report.lines() if "to_out" in line]) == 1


def test_a_new_clip_branch_starts_inert_and_is_reported(tmp_path):
    _, folder = source(tmp_path, 10)
    cfg = tiny_config()
    model = fresh(replace(cfg, dit=replace(cfg.dit, clip_dim=20)))
    report = load_backbone(model, folder)
    assert len(report.new) == 2 + 8 + 2 * 5
    assert not model.blocks[0].attn2.add_v_proj.weight.any()


def wantrack(folder: Path, cfg, bias: bool = True) -> tuple[dict[str, Tensor], Path]:
    """A 13-channel model in the open WanTrack's layout, with its track encoder of two convolutions."""
    state = state_of(randomise(wan_transformer(cfg)))
    g = torch.Generator().manual_seed(5)
    c, d, s = cfg.dit.track_channels, cfg.dit.track_id_dim, cfg.vae.stride_t
    encoder = {"temporal_conv.weight": torch.randn(c, d, s, 1, 1, generator=g)}
    encoder["proj.weight"] = torch.randn(c, c, 1, 1, 1, generator=g)
    if bias:
        encoder |= {f"{n}.bias": torch.randn(c, generator=g) for n in ("temporal_conv", "proj")}
    state |= {f"track_encoder.{n}": x for n, x in encoder.items()}
    return state, saved(state, folder)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_wantracks_52_channel_layout_comes_whole_with_its_encoder_folded(bias, tmp_path):
    cfg = tiny_config()
    state, folder = wantrack(tmp_path, cfg, bias)
    model = fresh()
    report = load_backbone(model, folder)
    assert report.layout == "noise 4, mask 2, image 4, track 3"
    assert torch.equal(model.patch_embedding.weight, state["patch_embedding.weight"])
    assert accounted(report, model, state)
    c_m = torch.randn(1, 6, 8, 3, 5)  # whole groups of pixel frames: b d T h w
    got = model.track_head(rearrange(c_m, "b d (t s) h w -> b (s d) t h w", s=2))
    time = F.conv3d(
        c_m, state["track_encoder.temporal_conv.weight"], state.get("track_encoder.temporal_conv.bias"), (2, 1, 1)
    )
    expected = F.conv3d(time, state["track_encoder.proj.weight"], state.get("track_encoder.proj.bias"))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_wantracks_encoder_must_have_our_sizes_and_be_alive(tmp_path):
    cfg = tiny_config()
    state, _ = wantrack(tmp_path, cfg)
    wide = state | {"track_encoder.temporal_conv.weight": torch.zeros(3, 9, 2, 1, 1)}
    with pytest.raises(ValueError, match=r"temporal_conv\.weight should be \(3, 6, 2, 1, 1\)"):
        load_backbone(fresh(), saved(wide, tmp_path))
    dead = state | {n: torch.zeros_like(x) for n, x in state.items() if n.startswith("track_encoder.")}
    dead["patch_embedding.weight"] = state["patch_embedding.weight"].clone()
    dead["patch_embedding.weight"][:, -3:] = 0
    with pytest.raises(ValueError, match="neither would ever learn"):
        load_backbone(fresh(), saved(dead, tmp_path))


def test_track_channels_without_their_head_are_refused(tmp_path):
    _, folder = source(tmp_path, 13)
    with pytest.raises(ValueError, match=r"no track head .*transformer/ and track_head/"):
        load_backbone(fresh(), folder)


def test_our_own_checkpoints_come_whole(tmp_path):
    teacher = randomise(WanDiT(tiny_config()))
    save_weights(teacher, tmp_path, {})
    model = fresh()
    report = load_backbone(model, tmp_path)
    assert same_weights(model, teacher)
    assert not (report.resized or report.new or report.unused or report.notes)


@pytest.mark.slow
def test_shipped_weights_load_into_the_nano_preset():
    from configs.settings import load

    for name, resized in (("embedded:nano", 1), ("embedded:nano-phase1", 0)):
        model = fresh(load("nano").model)
        report = load_backbone(model, name)
        assert len(report.resized) == resized
        assert bool(model.track_slice.any()) == (not resized)


def test_the_report_is_a_few_lines_and_plain_data(tmp_path):
    _, folder = source(tmp_path, 12)
    report = load_backbone(fresh(), folder)
    lines = report.lines()
    assert 4 <= len(lines) <= 8
    assert all(len(line) < 400 for line in lines)
    assert f"weights from {folder}" in lines[0] and "control 4" in lines[0]
    save_weights(fresh(), tmp_path / "out", {"start": asdict(report)})
    kept = json.loads((tmp_path / "out" / "config.json").read_text())["meta"]["start"]
    assert kept == json.loads(json.dumps(asdict(report)))
    assert load_teacher(tmp_path / "out").cfg == tiny_config()
    assert all(a <= b for a, b in pairwise(report.taken))
