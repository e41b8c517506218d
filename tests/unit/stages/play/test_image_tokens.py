"""Models that read CLIP's tokens of the first frame, where they are evaluated and played."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from msmodel.config import ImageEncoderConfig, ModelConfig
from msmodel.image_encoder import load_image_encoder
from stages.data.loader import Sample
from stages.eval import SelectRun, generate
from stages.eval import select as selecting
from stages.eval.items import EvalClip, EvalItem
from stages.eval.streaming import clip_stream
from stages.play.playing import load_playable
from stages.records import Checkpoint
from tests.fakes import FakeContext
from tests.unit.msmodel.clip import TOKENS, WIDTH, save_clip
from tests.unit.stages.eval import world
from tests.unit.stages.play import players

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("seeing")
    world.make_vae(folder)
    cfg = world.model_config(folder)
    encoder = ImageEncoderConfig(str(save_clip(folder / "wan")))
    return replace(cfg, dit=replace(cfg.dit, clip_dim=WIDTH), image_encoder=encoder)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Checkpoint:
    return world.make_checkpoint("student", tmp_path_factory.mktemp("weights"), model)


def tokens(seed: int) -> torch.Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def selected(model: ModelConfig, samples: list[Sample], folder) -> list[EvalClip]:
    ctx = FakeContext(folder)
    stored = [world.FakeStored(s) for s in samples]
    return list(selecting.select(SelectRun(model, world.eval_config().select), stored, "held-out", ctx).clips)


def test_an_evaluation_gives_each_clip_the_tokens_of_its_own_first_frame(model, checkpoint, tmp_path):
    two = world.samples(model)[:2]
    clips = selected(model, [replace(s, clip=tokens(i)) for i, s in enumerate(two)], tmp_path / "seen")
    names = [s.key for s in two]
    for variant in ("tracks", "no_tracks"):
        cond = generate.conditioning(clips, variant, model, 0, CPU)
        assert torch.equal(cond.image_tokens, torch.stack([tokens(names.index(c.clip_id)) for c in clips]))
    assert torch.equal(generate.one_of(cond, 1).image_tokens, cond.image_tokens[1:])
    assert torch.equal(
        clip_stream(generate.student_on(checkpoint, CPU, torch.float32), clips[1], model, 0, CPU).image_tokens,
        cond.image_tokens[1:],
    )

    ctx = FakeContext(tmp_path)
    cfg = generate.GenerateRun(model, world.eval_config().generate)
    zeros = selected(model, [replace(s, clip=0 * tokens(0)) for s in two], tmp_path / "zeros")
    for name in ("teacher", "student"):
        seen, unseen = (
            generate.latents_of(cfg, EvalItem(name, "rendered", name, "tracks", tuple(some), checkpoint), ctx)
            for some in (clips, zeros)
        )
        assert (seen - unseen).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


def test_clips_without_tokens_are_a_clear_error(model, tmp_path):
    clips = selected(model, world.samples(model)[:1], tmp_path)
    with pytest.raises(ValueError, match=rf"dit\.clip_dim={WIDTH}, but this data holds no CLIP tokens"):
        generate.conditioning(clips, "tracks", model, 0, CPU)


def test_a_stream_opened_from_a_picture_reads_its_tokens(model, checkpoint, monkeypatch):
    monkeypatch.setattr("msmodel.pretrained.load_text_encoder", players.FakeEncoder)
    playable = players.playable(checkpoint)

    def controls(index: int, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(count, 1, 2), torch.ones(count, 1, dtype=torch.bool)

    def chunk(of, frame: np.ndarray) -> torch.Tensor:
        session = of.open(frame, "a hall", 5, controls)
        return session.next_chunk().latents

    frame = players.picture()
    expected = load_image_encoder(model.image_encoder, WIDTH).encode(
        torch.from_numpy(frame.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    )
    given = replace(playable, encode_image=lambda pixels: expected)
    blind = replace(playable, encode_image=lambda pixels: torch.zeros_like(expected))
    assert torch.equal(chunk(playable, frame), chunk(given, frame))
    assert not torch.allclose(chunk(playable, frame), chunk(blind, frame), atol=1e-4)


def test_a_student_whose_encoder_cannot_be_had_says_so_when_a_stream_is_opened(model, tmp_path, monkeypatch):
    monkeypatch.setattr("msmodel.pretrained.load_text_encoder", players.FakeEncoder)
    nowhere = replace(model, image_encoder=ImageEncoderConfig("/no/such/folder"))
    student = world.make_checkpoint("student", tmp_path, nowhere)
    with pytest.raises(ValueError, match=r"image_encoder\.source: '/no/such/folder' is neither"):
        load_playable(student, None, "auto", 8, CPU).open(players.picture(), "", 0, lambda *asked: None)
