import dataclasses

import numpy as np
import pytest
import torch

from msmodel import tracks
from msmodel.config import ClipConfig, DiTConfig, ModelConfig, StudentConfig, VAEConfig

CFG = ModelConfig(
    clip=ClipConfig(height=16, width=24, frames=9, fps=8),
    vae=VAEConfig(z_channels=4, stride_t=2, stride_s=4),
    dit=DiTConfig(dim=16, ffn_dim=32, heads=2, layers=1, track_id_dim=8),
    student=StudentConfig(chunk=1),
)


def clip_of_tracks(n=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(2, 9, n, 2, generator=g) * torch.tensor([24.0, 16.0])
    return xy, torch.rand(2, 9, n, generator=g) > 0.3, tracks.track_ids(2, n, 8, g)


def test_visible_track_is_drawn_in_its_cell_and_nowhere_else():
    xy = torch.tensor([23.9, 4.0]).expand(1, 9, 1, 2)
    track_id_embedding = tracks.encode_ids(torch.tensor([[7]]), 8)
    c_m = tracks.rasterise(xy, torch.ones(1, 9, 1, dtype=torch.bool), track_id_embedding, CFG)
    assert c_m.shape == (1, 9, 4, 6, 8)
    torch.testing.assert_close(c_m[0, 3, 1, 5], track_id_embedding[0, 0])
    assert c_m.abs().sum(-1).count_nonzero() == 9


@pytest.mark.parametrize("point", [(-0.1, 3.0), (24.0, 3.0), (3.0, 16.0), (float("nan"), 3.0), (1e30, 1.0)])
def test_points_outside_the_frame_are_not_drawn(point):
    xy = torch.tensor(point).expand(1, 9, 1, 2)
    assert tracks.rasterise(xy, torch.ones(1, 9, 1, dtype=torch.bool), torch.ones(1, 1, 8), CFG).abs().sum() == 0


def test_invisible_points_are_not_drawn_and_collisions_keep_the_last_track():
    xy = torch.full((1, 9, 3, 2), 5.0)
    track_id_embedding = torch.stack([torch.full((8,), float(i)) for i in (1, 2, 3)])[None]
    seen = torch.tensor([True, True, False]).expand(1, 9, 3)
    assert tracks.rasterise(xy, seen, track_id_embedding, CFG)[0, 0, 1, 1].tolist() == [2.0] * 8


WITH_OFFSETS = dataclasses.replace(CFG, dit=dataclasses.replace(CFG.dit, track_offsets=True))


def test_offsets_tell_where_in_its_cell_a_track_lies():
    xy = torch.tensor([[5.0, 6.0], [23.99, 12.0]]).expand(1, 9, 2, 2)
    c_m = tracks.rasterise(xy, torch.ones(1, 9, 2, dtype=torch.bool), torch.ones(1, 2, 8), WITH_OFFSETS)
    assert c_m.shape == (1, 9, 4, 6, 10)
    torch.testing.assert_close(c_m[0, 3, 1, 1, 8:], torch.tensor([-0.5, 0.0]))
    torch.testing.assert_close(c_m[0, 3, 3, 5, 8:], torch.tensor([0.995, -1.0]), atol=1e-5, rtol=0)
    assert c_m.abs().sum(-1).count_nonzero() == 18


def test_offsets_are_those_of_the_track_that_stands_and_leave_the_ids_alone():
    xy, seen, track_id_embedding = clip_of_tracks(30)
    c_m = tracks.rasterise(xy, seen, track_id_embedding, WITH_OFFSETS)
    assert torch.equal(c_m[..., :8], tracks.rasterise(xy, seen, track_id_embedding, CFG))
    for b, t, n in torch.nonzero(seen).tolist():
        x, y = xy[b, t, n].tolist()
        cell = c_m[b, t, int(y // 4), int(x // 4)]
        later = [m for m in range(n + 1, 30) if seen[b, t, m] and (xy[b, t, m] // 4 == xy[b, t, n] // 4).all()]
        if not later:
            torch.testing.assert_close(cell[8:], torch.tensor([x % 4 / 2 - 1, y % 4 / 2 - 1]), atol=1e-5, rtol=0)
    assert (
        tracks.track_map(xy, seen, track_id_embedding, WITH_OFFSETS).shape[1]
        == WITH_OFFSETS.track_feature_channels
        == 20
    )


def test_an_invisible_track_that_is_nowhere_spoils_no_offset():
    xy = torch.tensor([[float("nan"), 1.0], [5.0, 6.0]]).expand(1, 9, 2, 2)
    c_m = tracks.rasterise(xy, torch.ones(1, 9, 2, dtype=torch.bool), torch.ones(1, 2, 8), WITH_OFFSETS)
    assert torch.isfinite(c_m).all()


@pytest.mark.parametrize("cfg", [CFG, WITH_OFFSETS])
def test_pieces_packed_one_by_one_equal_slices_of_the_whole(cfg):
    xy, seen, track_id_embedding = clip_of_tracks()
    whole = tracks.track_map(xy, seen, track_id_embedding, cfg)
    assert whole.shape == (2, cfg.track_feature_channels, cfg.latent_frames, 4, 6)
    first = tracks.track_map(xy[:, :5], seen[:, :5], track_id_embedding, cfg)
    later = tracks.track_map(xy[:, 5:], seen[:, 5:], track_id_embedding, cfg, starts_clip=False)
    assert torch.equal(torch.cat([first, later], dim=2), whole)
    assert [list(tracks.latent_to_pixel_frames(i, 2)) for i in range(3)] == [[0], [1, 2], [3, 4]]


def test_ragged_groups_are_refused():
    with pytest.raises(ValueError, match="groups of 2"):
        tracks.pack(torch.zeros(1, 4, 4, 6, 8), 2)


def test_ids_are_distinct_reproducible_and_tell_tracks_apart():
    track_id_embedding = tracks.track_ids(1, 100, 64, torch.Generator().manual_seed(3))
    assert torch.equal(track_id_embedding, tracks.track_ids(1, 100, 64, torch.Generator().manual_seed(3)))
    distance = torch.cdist(track_id_embedding[0], track_id_embedding[0]) + 10 * torch.eye(100)
    assert distance.min() > 0.1


def test_sampling_keeps_the_asked_number_of_visible_tracks():
    g = torch.Generator().manual_seed(0)
    xy = torch.rand(4, 9, 50, 2) * 16
    seen = torch.zeros(4, 9, 50, dtype=torch.bool)
    seen[:, :, 20:] = True
    kept_xy, kept = tracks.sample_tracks(xy, seen, 10, 20, g)
    counts = kept.any(dim=1).sum(dim=1)
    assert kept_xy.shape == (4, 9, 20, 2)
    assert (counts >= 10).all() and (counts <= 20).all() and len(set(counts.tolist())) > 1
    with pytest.raises(ValueError, match="low <= high"):
        tracks.sample_tracks(xy, seen, 5, 4, g)


def test_mid_frame_masking_spares_the_first_chunk_and_hits_others_at_rate_p():
    ones = torch.ones(2000, 1, 16, 1, 1)
    kept = tracks.mask_mid_frames(ones, 3, 0.2, torch.Generator().manual_seed(0), prefix=1)
    assert kept[:, :, :4].min() == 1
    assert 1 - kept[:, :, 4:].mean() == pytest.approx(0.2, abs=0.02)
    per_chunk = kept[:, 0, 1:, 0, 0].reshape(2000, 5, 3)
    assert torch.equal(per_chunk.amin(-1), per_chunk.amax(-1))
    assert torch.equal(tracks.mask_mid_frames(ones, 3, 0.0, torch.Generator()), ones)


def test_config_derives_sizes_and_names_every_problem():
    assert CFG.problems() == []
    assert (CFG.latent_frames, CFG.tokens_per_frame, CFG.chunks) == (5, 6, 5)
    broken = dataclasses.replace(CFG, student=StudentConfig(chunk=2, window=-1), clip=ClipConfig(16, 25, 10, 0))
    text = "\n".join(broken.problems())
    for name in ("clip.frames", "clip.width", "clip.fps", "student.window"):
        assert name in text
    horizon = dataclasses.replace(CFG, student=StudentConfig(chunk=2))
    assert "does not divide the horizon of 5" in horizon.problems()[0]


def test_full_size_shapes_are_those_of_wan():
    cfg = ModelConfig()
    assert (cfg.latent_frames, cfg.chunks, cfg.tokens_per_frame, cfg.in_channels) == (21, 7, 1560, 52)
    five = ModelConfig(
        clip=ClipConfig(704, 1280, 121, 24),
        vae=VAEConfig(z_channels=48, stride_s=16),
        dit=DiTConfig(image="first_latent"),
    )
    assert (five.latent_frames, five.chunks, five.tokens_per_frame) == (31, 10, 880) and five.problems() == []


def test_shares_and_pixels_are_each_others_inverse():
    xy = np.array([[0.5, 0.25], [1.0, 0.0]])
    assert tracks.shares_to_px(xy, (40, 64)).tolist() == [[32, 10], [64, 0]]
    assert tracks.px_to_shares(tracks.shares_to_px(xy, (40, 64)), (40, 64)).tolist() == xy.tolist()
    assert tracks.resize_px(np.array([[32.0, 10.0]]), (40, 64), (80, 64)).tolist() == [[32, 20]]


def test_resampling_interpolates_where_a_point_is_seen_and_holds_beyond_the_end():
    xy = np.array([[0, 0], [4, 2], [8, 4], [12, 6]], np.float32)[:, None]
    seen = np.ones((4, 1), bool)
    out, visible = tracks.resample(xy, seen, 12, 24)
    assert out[:, 0, 0].tolist() == [0, 2, 4, 6, 8, 10, 12] and visible.all()
    out, visible = tracks.resample(xy, seen, 24, 16)  # at 0, 1.5 and 3 frames
    assert out[:, 0].tolist() == [[0, 0], [6, 3], [12, 6]]
    out, visible = tracks.resample(xy, seen, 12, 12, frames=6)
    assert out[:, 0, 0].tolist() == [0, 4, 8, 12, 12, 12] and visible[:, 0].tolist() == [True] * 4 + [False] * 2
    seen[1] = False
    out, visible = tracks.resample(xy, seen, 12, 48)
    assert visible[:9, 0].tolist() == [True, True, False, False, False, False, True, True, True]
    assert out[:9, 0, 0].tolist() == [0, 0, 4, 4, 4, 4, 8, 8, 8]
