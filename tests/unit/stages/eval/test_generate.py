"""What stage GENERATE holds in memory, and that this changes no video."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from msmodel.vae import DecoderSession
from stages.eval import generate, select
from stages.eval.config import GenerateConfig, GenerateRun, SelectRun
from stages.eval.items import EvalClip, EvalItem, read_videos
from tests.fakes import FakeContext
from tests.unit.msmodel.vaes import wan_vae
from tests.unit.stages.eval.world import FakeStored, eval_config, make_checkpoint, make_vae, model_config, samples

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    make_vae(folder)
    return model_config(folder)


def two_clips(folder, shape: tuple[int, ...]) -> tuple[EvalClip, ...]:
    """Clips whose files hold random latents, z t h w, and nothing else."""
    out = []
    for i in range(2):
        file = folder / f"clip-{i}.npz"
        np.savez(file, latents=np.random.default_rng(i).standard_normal(shape).astype(np.float32))
        out.append(EvalClip(f"clip-{i}", "real", str(file), ()))
    return tuple(out)


def round_trip(model, clips, folder) -> np.ndarray:
    item = EvalItem("vae-real-tracks-000", "real", "vae", "tracks", clips)
    return read_videos(generate.run(GenerateRun(model, GenerateConfig()), item, FakeContext(folder)).file)


def test_the_nano_vae_gives_the_bytes_of_a_whole_batch(model, tmp_path):
    clips = two_clips(tmp_path, (4, 7, 8, 12))
    latents = torch.stack([torch.from_numpy(generate.read_clip(c)["latents"]) for c in clips])
    together = generate.to_uint8(generate.vae_on(model.vae, CPU).decode(latents))
    assert np.array_equal(round_trip(model, clips, tmp_path), together)


@pytest.mark.slow
def test_a_full_size_vae_decodes_one_latent_frame_of_one_clip_at_a_time(model, tmp_path, monkeypatch):
    vae = wan_vae("wan22")
    clips = two_clips(tmp_path, (vae.cfg.z_channels, 3, 4, 4))
    latents = torch.stack([torch.from_numpy(generate.read_clip(c)["latents"]) for c in clips])
    together = generate.to_uint8(vae.decode(latents))
    push, pushed = DecoderSession.push, []

    def watched(session: DecoderSession, part: torch.Tensor) -> torch.Tensor:
        pushed.append(tuple(part.shape[i] for i in (0, 2)))
        return push(session, part)

    monkeypatch.setattr(DecoderSession, "push", watched)
    monkeypatch.setattr(generate, "vae_on", lambda cfg, device: vae)
    videos = round_trip(model, clips, tmp_path)
    assert pushed == [(1, 1)] * 6
    assert np.abs(videos.astype(int) - together).max() <= 1  # another batch may round otherwise


def test_a_worker_keeps_one_transformer(model, tmp_path, monkeypatch):
    loaded: list[weakref.ref] = []
    alive: list[int] = []

    def watching(load):
        def loads(folder):
            alive.append(sum(net() is not None for net in loaded))
            net = load(folder)
            loaded.append(weakref.ref(net))
            return net

        return loads

    for name in ("load_teacher", "load_student"):
        monkeypatch.setattr(generate, name, watching(getattr(generate, name)))
    teacher, student = (make_checkpoint(name, tmp_path, model) for name in ("teacher", "student"))
    for _ in range(2):
        assert generate.teacher_on(teacher, CPU, torch.float32) is generate.teacher_on(teacher, CPU, torch.float32)
        assert generate.student_on(student, CPU, torch.float32) is generate.student_on(student, CPU, torch.float32)
    assert alive == [0] * 4


@pytest.mark.parametrize("null", ["empty", "negative"])
def test_an_evaluation_guides_away_from_the_text_that_is_configured(model, tmp_path, null):
    texts = {"empty_text": torch.full((6, 12), 0.5), "negative_text": torch.full((6, 12), -2.0)}
    chosen = [FakeStored(replace(s, **texts)) for s in samples(model)[:2]]
    model = replace(model, text=replace(model.text, null=null))
    clips = select.select(SelectRun(model, eval_config().select), chosen, "held-out", FakeContext(tmp_path)).clips
    cond = generate.conditioning(clips, "tracks", model, 0, CPU)
    assert torch.equal(cond.without_text().text, texts[f"{null}_text"].expand(2, -1, -1))
    assert torch.equal(generate.one_of(cond, 1).null_text, cond.null_text[1:])
