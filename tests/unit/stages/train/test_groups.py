"""Frame groups: which frames, and that image, tracks and text are those of the clip they came from."""

from __future__ import annotations

import torch

from msmodel.tracks import track_map
from stages.train.base import BaseConfig
from stages.train.conditioning import condition, draw_tracks
from stages.train.groups import frame_groups, group_frames
from stages.train.method import RngStreams
from tests.unit.stages.train.fakes import clips, tiny_model
from tests.unit.stages.train.test_conditioning import WHOLE


def test_groups_take_frame_0_and_later_ones_with_their_own_tracks():
    model = tiny_model()
    batch = clips(model, 3)
    drawn = draw_tracks(batch, WHOLE, model, RngStreams(0, 0))
    cond = condition(batch, drawn, model)
    latents, short = frame_groups(batch.latents, cond, 4, 2, torch.Generator().manual_seed(0))
    frames = group_frames(12, model.latent_frames, 2, torch.Generator().manual_seed(0))
    assert latents.shape[:3] == (12, 16, 3)
    assert short.tracks.shape[2] == short.image.shape[2] == 3
    whole = track_map(drawn.xy_px, drawn.visible, drawn.track_id_embedding, model)
    for k in range(12):
        assert torch.equal(latents[k], batch.latents[k % 3][:, frames[k]])
        assert torch.equal(short.tracks[k], whole[k % 3][:, frames[k]])
        assert torch.equal(short.image[k], cond.image[k % 3][:, frames[k]])
        assert torch.equal(short.text[k], batch.text[k % 3])


def test_later_frames_are_distinct_ascending_and_cover_the_clip():
    frames = group_frames(500, 7, 3, torch.Generator().manual_seed(0))
    assert not frames[:, 0].any()
    assert (frames.diff(dim=1) > 0).all()
    assert set(frames[:, 1:].flatten().tolist()) == {1, 2, 3, 4, 5, 6}


def test_group_sizes_vary_from_step_to_step_and_are_shared_by_ranks():
    model = tiny_model()
    batch = clips(model, 2)
    cond = condition(batch, draw_tracks(batch, WHOLE, model, RngStreams(0, 0)), model)
    cfg = BaseConfig(group_steps=5, group_later=3, groups_per_clip=2)
    sizes = {cfg.draw_groups(batch.latents, cond, RngStreams(0, step))[0].shape[2] for step in range(20)}
    assert sizes == {2, 3, 4}
    for step in range(6):
        shapes = {cfg.draw_groups(batch.latents, cond, RngStreams(0, step, micro=rank))[0].shape for rank in range(3)}
        assert len(shapes) == 1
    assert [cfg.grouped(step) for step in (0, 4, 5)] == [True, True, False]


def test_a_clip_shorter_than_the_group_gives_all_its_frames():
    model = tiny_model()
    batch = clips(model, 2)
    cond = condition(batch, draw_tracks(batch, WHOLE, model, RngStreams(0, 0)), model)
    cfg = BaseConfig(group_later=99)
    sizes = [cfg.draw_groups(batch.latents, cond, RngStreams(0, step))[0].shape[2] for step in range(40)]
    assert max(sizes) == model.latent_frames
