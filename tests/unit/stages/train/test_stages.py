"""Every stage's `run`, one after the other, on real shards with a debug-size model: a couple of steps each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from msmodel.io.weights import load_student, load_teacher, read_config
from msmodel.tiny_vae import load_tiny_vae
from stages.records import Checkpoint
from stages.train import adapt, base, dmd, ode_pairs, publish, teacher, tiny_vae
from tests.fakes import FakeContext
from tests.unit.stages.train.fakes import decode
from tests.unit.stages.train.methods import dmd_config, ode_run, small, teacher_config, tiny_config
from tests.unit.stages.train.shards import shard_set


class FakeVAE:
    def to(self, device):
        return self

    def decode(self, latents):
        return decode(latents)


@pytest.fixture
def fake_vae(monkeypatch):
    monkeypatch.setattr(publish, "load_vae", lambda cfg: FakeVAE())


@pytest.mark.slow
@pytest.mark.parametrize("image", ["channels", "first_latent"])
def test_the_whole_training_chain(image, tmp_path, fake_vae):
    model = small(image)
    train, heldout = shard_set(tmp_path / "t", model), shard_set(tmp_path / "h", model, split="heldout")

    def ctx(name: str) -> FakeContext:
        folder = tmp_path / name
        folder.mkdir()
        return FakeContext(folder)

    quick = {"steps": 2, "batch": 2, "log_steps": 1, "picture_clips": 1}
    base_run = base.BaseRun(model, base.BaseConfig(**quick, probe_clips=2, picture_steps=1))
    start = base.run(base_run, base.ClipInputs(train, heldout), ctx("base"))
    taught = teacher.run(
        teacher.TeacherRun(model, teacher_config()), teacher.TeacherInputs(train, heldout, start), ctx("teacher")
    )
    pairs = ode_pairs.run(ode_run(model), ode_pairs.OdeInputs(train, heldout, taught), ctx("ode"))
    adapt_run = adapt.AdaptRun(model, adapt.AdaptConfig(**quick, heldout_pairs=2))
    adapted = adapt.run(adapt_run, adapt.AdaptInputs(taught, pairs), ctx("adapt"))
    student = dmd.run(
        dmd.DmdRun(model, dmd_config(steps=2)), dmd.DmdInputs(train, heldout, taught, adapted), ctx("dmd")
    )
    small_decoder = tiny_vae.run(
        tiny_vae.TinyVAERun(model, tiny_config(steps=2, fit_clips=2)),
        tiny_vae.TinyVAEInputs(train, heldout),
        ctx("tiny"),
    )

    assert [c.name for c in (start, taught, adapted, student, small_decoder)] == [
        "base", "teacher", "adapted", "student", "tiny_vae",
    ]  # fmt: skip
    assert taught.parents == (start.digest,)
    assert student.parents == (taught.digest, adapted.digest)
    assert (pairs.count, len(pairs.timesteps)) == (4, 3)
    assert taught.step == 4
    assert "gap/t095" in taught.metrics
    about = read_config(taught.folder)["meta"]
    assert about["data"] == {"digest": train.digest, "clips": train.clips} and about["seed"] == 3
    assert about["start"]["source"] == start.folder and "track_head.weight" in about["start"]["new"]
    assert read_config(student.folder)["meta"]["data"]["digest"] == train.digest
    assert load_teacher(taught.folder).cfg == load_student(student.folder).cfg == model
    assert load_tiny_vae(small_decoder.folder).decode(torch.zeros(1, 16, 2, 4, 4)).shape == (1, 3, 3, 16, 16)


def test_the_track_head_survives_every_hand_over(tmp_path, fake_vae):
    """An open peer's average lost its frozen track encoder: the published teacher and student carry it."""
    model = small()
    train, heldout = shard_set(tmp_path / "t", model), shard_set(tmp_path / "h", model)
    taught = teacher.run(
        teacher.TeacherRun(model, teacher_config(init="random")),
        teacher.TeacherInputs(train, heldout),
        FakeContext(tmp_path / "teacher"),
    )
    student = publish.student_from(taught, model)
    weights = load_teacher(taught.folder)
    assert torch.equal(student.track_head.weight, weights.track_head.weight)
    assert weights.track_head.weight.abs().sum() > 0
    assert weights.track_slice.abs().sum() > 0


def test_digest_follows_the_weights(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"one")
    first = publish.weights_digest(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"two")
    assert publish.weights_digest(tmp_path) != first


def test_every_rank_returns_the_checkpoint_and_rank_0_writes_it(tmp_path):
    module = torch.nn.Linear(1, 1)
    one = publish.publish("x", module, 3, FakeContext(tmp_path))
    other = publish.publish("x", module, 3, FakeContext(tmp_path, rank=1, world_size=2))
    assert one == other
    assert isinstance(one, Checkpoint)
    assert Path(one.folder).is_dir()
