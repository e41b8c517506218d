"""What the model is given: ids, dropout, masking, image channels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from msmodel import guidance
from msmodel.batch import image_conditioning
from stages.train.conditioning import (
    Augment,
    condition,
    draw_tracks,
    image_tokens,
    keep,
    pick_frames,
    training_conditioning,
    without_any_tracks,
)
from stages.train.method import RngStreams
from stages.train.sampling import first_conditions
from tests.unit.stages.train.fakes import clips, null_text, tiny_model
from tests.unit.stages.train.methods import saying, seeing, small

WHOLE = Augment(tracks_low=20, tracks_high=20, text_dropout=0.0, track_dropout=0.0, mask=1.0)


def test_ids_are_drawn_once_per_clip_and_kept():
    model = tiny_model()
    batch, rng = clips(model, 2), RngStreams(0, 7)
    one, same = (draw_tracks(batch, WHOLE, model, rng) for _ in range(2))
    other = draw_tracks(batch, WHOLE, model, RngStreams(0, 8))
    assert torch.equal(one.track_id_embedding, same.track_id_embedding)
    assert not torch.equal(one.track_id_embedding, other.track_id_embedding)
    assert not torch.equal(one.track_id_embedding[0], one.track_id_embedding[1])
    assert one.track_id_embedding.shape == (2, 20, model.dit.track_id_dim)  # no time axis: the same id in all frames


def test_number_of_tracks_stays_in_its_range():
    model = tiny_model()
    batch = clips(model, 8)
    batch = replace(batch, visible=torch.ones_like(batch.visible))
    augment = replace(WHOLE, tracks_low=5, tracks_high=9)
    counts = [
        n
        for step in range(20)
        for n in draw_tracks(batch, augment, model, RngStreams(0, step)).visible.any(dim=1).sum(dim=1).tolist()
    ]
    assert set(counts) == {5, 6, 7, 8, 9}


def test_dropout_rates_and_independence():
    x = torch.ones(4000, 2)
    g = torch.Generator().manual_seed(0)
    text, tracks = keep(x, 0.2, g)[:, 0], keep(x, 0.1, g)[:, 0]
    assert 1 - text.mean() == pytest.approx(0.2, abs=0.02)
    assert 1 - tracks.mean() == pytest.approx(0.1, abs=0.02)
    assert ((1 - text) * (1 - tracks)).mean() == pytest.approx(0.02, abs=0.01)


def test_training_conditioning_drops_whole_clips_text_and_tracks():
    model = tiny_model()
    augment = replace(WHOLE, text_dropout=0.5, track_dropout=0.5)
    cond = training_conditioning(clips(model, 64), augment, model, RngStreams(0, 0), masked=False)
    text_gone = ~cond.text.flatten(1).any(dim=1)
    tracks_gone = ~cond.tracks.flatten(1).any(dim=1)
    for gone in (text_gone, tracks_gone, text_gone & tracks_gone):
        assert 0 < gone.sum() < 64
    assert cond.image.flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    ("null", "dropped", "guided"),
    [("zeros", None, None), ("empty", "empty_text", "empty_text"), ("negative", "empty_text", "negative_text")],
)
def test_no_text_is_the_one_that_is_configured(null, dropped, guided):
    model, augment = saying(null), replace(WHOLE, text_dropout=0.5)
    batch = clips(model, 16)
    cond = training_conditioning(batch, augment, model, RngStreams(0, 0), masked=False)
    zeros = torch.zeros(1, model.text.length, model.text.dim)
    gone = (cond.text == (null_text(dropped, model) if dropped else zeros)).flatten(1).all(dim=1)
    assert 0 < gone.sum() < 16
    assert torch.equal(cond.text[~gone], batch.text[~gone])
    given = condition(batch, draw_tracks(batch, augment, model, RngStreams(0, 0)), model)
    for one in (given, without_any_tracks(batch, model), first_conditions(given, 2), given.frames(0, 1)):
        wanted = (null_text(guided, model) if guided else zeros).expand_as(one.text)
        assert torch.equal(one.without_text().text, wanted)
        assert torch.equal(one.without_text().tracks, one.tracks)


@pytest.mark.parametrize("null", ["empty", "negative"])
def test_data_without_that_embedding_is_a_clear_error(null):
    batch = clips(tiny_model(), 1)
    with pytest.raises(
        ValueError, match=f"text.null={null}, but this data holds no embedding of the {null} prompt.*make data"
    ):
        without_any_tracks(batch, saying(null))


def test_guidance_reads_the_text_that_is_configured():
    model, seen = saying("negative"), []
    batch = clips(model, 2)
    cond = condition(batch, draw_tracks(batch, WHOLE, model, RngStreams(0, 0)), model)

    def velocity(noisy, t, given):
        seen.append(given.text)
        return noisy

    guidance.joint(velocity, batch.latents, torch.ones(2), cond, 3.0, 1.5)
    full, no_text, no_tracks = seen[0].chunk(3)
    assert torch.equal(full, batch.text) and torch.equal(no_tracks, batch.text)
    assert torch.equal(no_text, null_text("negative_text", model).expand_as(no_text))


@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_masking_happens_only_when_asked_for_and_spares_the_first_chunk(image):
    model = tiny_model(image)
    batch, rng = clips(model, 2), RngStreams(0, 0)
    plain = training_conditioning(batch, WHOLE, model, rng, masked=False)
    masked = training_conditioning(batch, WHOLE, model, rng, masked=True)
    assert torch.equal(plain.tracks, condition(batch, draw_tracks(batch, WHOLE, model, rng), model).tracks)
    first = 2 if image == "first_latent" else 1  # the image alone, then the first chunk of one frame
    assert torch.equal(masked.tracks[:, :, :first], plain.tracks[:, :, :first])
    assert not masked.tracks[:, :, first:].any()  # mask = 1 here
    assert plain.tracks[:, :, first:].any()


def test_image_channels_mark_the_known_frame():
    model = tiny_model()
    image = clips(model, 1).image
    given = image_conditioning(image, model)
    assert given.shape[1] == model.mask_channels + model.image_channels
    assert (given[:, : model.mask_channels, 0] == 1).all()
    assert not given[:, : model.mask_channels, 1:].any()
    assert torch.equal(given[:, model.mask_channels :], image)


def test_first_latent_layout_gives_the_clean_latent_and_nothing_else():
    model = tiny_model("first_latent")
    image = clips(model, 1).image
    given = image_conditioning(image, model)
    assert image.shape[2] == 1 and given.shape[2] == model.latent_frames
    assert torch.equal(given[:, :, 0], image[:, :, 0])
    assert not given[:, :, 1:].any()
    assert without_any_tracks(clips(model, 1), model).tracks.shape[2] == model.latent_frames


def test_shards_with_the_image_of_all_frames_are_still_read():
    model = tiny_model("first_latent")
    first = clips(model, 1).image
    tail = torch.randn_like(clips(model, 1).latents[:, :, 1:])
    assert torch.equal(image_conditioning(torch.cat([first, tail], dim=2), model), image_conditioning(first, model))


def test_data_with_one_image_latent_is_refused_where_the_model_reads_all():
    with pytest.raises(ValueError, match=r"dit\.image=channels reads 7 latent frames .* holds 1.*make data"):
        image_conditioning(clips(tiny_model("first_latent"), 1).image, tiny_model())


def test_base_conditioning_has_no_tracks():
    model = tiny_model()
    assert not without_any_tracks(clips(model, 1), model).tracks.any()


def test_pick_frames():
    x = torch.arange(2 * 1 * 4).view(2, 1, 4, 1, 1)
    assert pick_frames(x, torch.tensor([[0, 3], [2, 1]])).flatten().tolist() == [0, 3, 6, 5]


def test_augment_problems():
    fields = [p.split(":")[0] for p in Augment(tracks_low=0, text_dropout=2.0, mask=-0.1).problems()]
    assert fields == ["tracks_low", "text_dropout", "mask"]


def test_image_tokens_stay_whatever_is_dropped():
    model = seeing()
    batch = clips(model, 2)
    assert batch.image_tokens is not None and batch.image_tokens.shape == (2, 257, 20)
    nothing = replace(WHOLE, text_dropout=1.0, track_dropout=1.0)
    cond = training_conditioning(batch, nothing, model, RngStreams(0, 0), masked=True)
    assert not cond.text.any() and not cond.tracks.any()
    for one in (cond, cond.without_text(), cond.without_tracks(), cond.frames(0, 1), without_any_tracks(batch, model)):
        assert one.image_tokens is batch.image_tokens


def test_a_model_without_the_branch_is_given_no_image_tokens():
    batch, model = clips(seeing(), 2), small()
    assert condition(batch, draw_tracks(batch, WHOLE, model, RngStreams(0, 0)), model).image_tokens is None


def test_data_without_image_tokens_is_a_clear_error():
    model = seeing()
    blind = clips(small(), 2)
    for make in (
        lambda: condition(blind, draw_tracks(blind, WHOLE, model, RngStreams(0, 0)), model),
        lambda: without_any_tracks(blind, model),
    ):
        with pytest.raises(ValueError, match=r"dit\.clip_dim=20, but this data holds no CLIP tokens.*`make data`"):
            make()
    with pytest.raises(ValueError, match=r"CLIP tokens of 16 channels.*set dit\.clip_dim=16"):
        image_tokens(torch.zeros(2, 5, 16), model)
