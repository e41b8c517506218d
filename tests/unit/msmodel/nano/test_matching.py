from dataclasses import replace

import pytest
import torch

from msmodel import tracks
from msmodel.batch import Conditioning
from msmodel.config import ClipConfig, DiTConfig, ModelConfig, StudentConfig, TextConfig, VAEConfig
from msmodel.dit import WanDiT, _modulate
from msmodel.nano.matching import match_tracks, slow_channels
from msmodel.rope import axis_channels, rotate

CFG = ModelConfig(
    clip=ClipConfig(48, 80, 3, 24.0),
    vae=VAEConfig("random", 8, 2, 4),
    text=TextConfig("none", 8, 2),
    dit=DiTConfig(dim=192, ffn_dim=64, heads=3, layers=1),
    student=StudentConfig(chunk=1),
)


def attention_of_head_0(dit: WanDiT, cond: Conditioning, noisy: torch.Tensor) -> torch.Tensor:
    """(b l m) attention weights of the first layer's first head."""
    layer = dit.blocks[0]
    _, time = dit.embed_time(torch.full((noisy.shape[0],), 0.9))
    shift, scale = (time + layer.scale_shift_table).split(1, dim=2)[:2]
    x = layer._tokens(_modulate(dit.embed_patches(noisy, cond), shift, scale, layer.eps))
    table = dit.rotation(range(noisy.shape[2]), noisy)
    query, key = rotate(layer.attn1.query(x), table), rotate(layer.attn1.keys_values(x).key, table)
    scores = torch.einsum("blad,bmad->balm", query, key) / query.shape[-1] ** 0.5
    return scores.softmax(dim=-1)[:, 0]


WITH_OFFSETS = replace(CFG, dit=replace(CFG.dit, track_offsets=True, track_channels=20))


def one_moving_track(cfg: ModelConfig = CFG) -> tuple[Conditioning, torch.Tensor, int, int]:
    """A track that moves from one token to another, among three others that stay. Also the two tokens' indices."""
    g = torch.Generator().manual_seed(0)
    xy = torch.tensor([[4.0, 4.0], [60.0, 20.0], [12.0, 36.0], [44.0, 12.0]]).repeat(1, 3, 1, 1)
    xy[:, 1:, 0] = torch.tensor([28.0, 36.0])
    track_id_embedding = tracks.track_ids(1, 4, 64, g)
    c_m = tracks.track_map(xy, torch.ones(1, 3, 4, dtype=torch.bool), track_id_embedding, cfg)
    image = torch.randn(1, 8, 1, 12, 20, generator=g).expand(-1, -1, 2, -1, -1)
    mask = torch.zeros(1, 2, 2, 12, 20)
    mask[:, :, 0] = 1
    cond = Conditioning(torch.zeros(1, 2, 8), torch.cat([mask, image], dim=1), c_m)
    return cond, torch.randn(1, 8, 2, 12, 20, generator=g), 60 + 4 * 10 + 3, 0


@pytest.mark.parametrize("cfg", [CFG, WITH_OFFSETS])
def test_the_matching_head_looks_where_the_track_came_from(cfg):
    torch.manual_seed(0)
    dit = WanDiT(cfg)
    cond, noisy, target, source = one_moving_track(cfg)
    before = attention_of_head_0(dit, cond, noisy)[0, target, source]
    match_tracks(dit, torch.Generator().manual_seed(1))
    weights = attention_of_head_0(dit, cond, noisy)[0, target]
    others = torch.ones(120, dtype=torch.bool)
    others[[source, target]] = False
    assert weights[source] > 10 * before
    assert weights[source] > 5 * weights[others].max()


def test_ids_are_read_alike_at_every_place_of_a_patch_and_frame_of_a_group():
    torch.manual_seed(0)
    dit = WanDiT(CFG)
    match_tracks(dit, torch.Generator().manual_seed(1))
    places = dit.track_slice.flatten(2)
    assert torch.equal(places, places[:, :, :1].expand_as(places))
    first, second = dit.track_head.weight.chunk(2, dim=1)
    assert torch.equal(first, second)


def test_offsets_pass_through_the_track_head_as_they_are():
    torch.manual_seed(0)
    dit = WanDiT(WITH_OFFSETS)
    match_tracks(dit, torch.Generator().manual_seed(1))
    cond, *_ = one_moving_track(WITH_OFFSETS)
    given, seen = cond.tracks.unflatten(1, (2, 66)), dit.track_head(cond.tracks)
    torch.testing.assert_close(seen[:, 16:].unflatten(1, (2, 2)), given[:, :, 64:])
    assert given[:, :, 64:].any()


def test_offsets_that_leave_no_channel_for_ids_are_refused():
    dit = WanDiT(replace(CFG, dit=replace(CFG.dit, track_offsets=True, track_channels=4)))
    with pytest.raises(ValueError, match="leave none for the ids"):
        match_tracks(dit, torch.Generator())


def test_slow_channels_turn_little_and_lie_within_their_axis():
    frames, rows, _ = axis_channels(64)
    slow = slow_channels(64, (15, 6, 10))
    assert 17 <= len(slow) < 64
    assert 0 not in slow and frames not in slow and frames + rows not in slow  # the fastest channel of each axis
