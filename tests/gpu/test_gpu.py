"""What a GPU must do as the CPU does it. Run by `make test-gpu`, on a machine that has one; skipped elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infra.engine import TorchEngine
from msmodel.causal import CausalDiT
from msmodel.dit import WanDiT
from msmodel.flow import student_timesteps
from msmodel.rollout import rollout
from msmodel.stream import ChunkStream
from msmodel.tiny_vae import TinyDecoder
from msmodel.tracks import track_ids
from stages.train import dmd
from stages.train.method import RngStreams
from stages.train.optim import make_optimizer
from stages.train.teacher import Probe, TeacherMethod
from tests.unit.msmodel.models import conditioning, gaussian, randomise, tiny_config
from tests.unit.stages.train.fakes import clips, decode
from tests.unit.stages.train.methods import alive, dmd_config, frozen, small, teacher_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")
TIMES = student_timesteps(3, 3.0)


@pytest.fixture(autouse=True)
def exact_float32():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # convolutions have a switch of their own
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.cpu().double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("image", ["channels", "first_latent"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_the_teacher_computes_what_it_computes_on_a_cpu(image, dtype, error):
    cfg = tiny_config(image)
    model, cond, noisy, t = randomise(WanDiT(cfg)), conditioning(cfg, 2), gaussian(cfg, 2), torch.tensor([0.9, 0.3])
    with torch.no_grad():
        expected = model(noisy, t, cond)
        found = model.to(GPU, dtype)(noisy.to(GPU), t.to(GPU), cond.to(GPU))
    assert found.dtype == torch.float32
    assert relative(found, expected) < error


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-1)])
def test_a_rollout_draws_and_computes_as_on_a_cpu(dtype, error):
    cfg = tiny_config(chunks=5)
    student, cond, noise = randomise(CausalDiT(cfg)), conditioning(cfg), gaussian(cfg)
    expected = rollout(student, cond, noise, TIMES, cfg.student, torch.Generator().manual_seed(5))
    student, cond = student.to(GPU, dtype), cond.to(GPU)
    found = rollout(student, cond, noise.to(GPU), TIMES, cfg.student, torch.Generator().manual_seed(5))
    assert relative(found, expected.detach()) < error


class BlackDecoder:
    def decoder(self):
        return self

    def push(self, latents):
        return torch.zeros(1, 3, 1, 1, 1, device=latents.device)


def streaming(vae) -> ChunkStream:
    cfg = tiny_config(chunks=3)
    student, cond = randomise(CausalDiT(cfg)).to(GPU, torch.bfloat16), conditioning(cfg).to(GPU)
    track_id_embedding = track_ids(1, 4, cfg.dit.track_id_dim, torch.Generator().manual_seed(4)).to(GPU)

    def controls(index, first, count):
        return torch.full((count, 4, 2), 7.0), torch.ones(count, 4, dtype=torch.bool)

    return ChunkStream(
        student, vae, controls, text=cond.text, image=cond.image, track_id_embedding=track_id_embedding, timesteps=TIMES,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_decoding_next_to_the_clean_pass_changes_nothing():
    tiny = randomise(TinyDecoder(tiny_config().vae, width=8)).to(GPU)
    plain, beside = streaming(tiny), streaming(tiny)
    for _ in range(40):
        ours, theirs = plain.next_chunk(), beside.next_chunk(concurrently=True)
        assert torch.equal(ours.latents, theirs.latents)
        assert torch.equal(ours.frames, theirs.frames)


def test_memory_of_a_stream_is_constant():
    session, held = streaming(BlackDecoder()), []
    for index, chunk in enumerate(session.stream()):
        assert torch.isfinite(chunk.latents).all()
        if index in (10, 60):
            del chunk
            held.append(torch.cuda.memory_allocated())
        if index == 60:
            break
    assert held[0] == held[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_steps_are_those_of_a_cpu(optimizer):
    model, losses = small(), {}
    cfg = replace(teacher_config(picture_clips=0), optimizer=optimizer, lr=1e-3)
    for device in (torch.device("cpu"), GPU):
        dit = alive(WanDiT, model, 1).to(device)
        probe = Probe(clips(model, 2, 99).to(device), model, cfg.augment, decode, 0)
        method = TeacherMethod(dit, model, cfg, probe)
        engine = TorchEngine(dit, make_optimizer(dit, cfg), cfg.clip_norm)
        losses[device.type] = []
        for step in range(4):
            loss = method.loss("dit", clips(model, 2, step), RngStreams(0, step)).value
            engine.backward(loss)
            engine.step()
            losses[device.type].append(float(loss.detach()))
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-3)
    assert len(set(losses["cpu"])) == 4


def test_dmd_trains_against_a_frozen_teacher_in_bfloat16():
    model = small()
    run = dmd.DmdRun(model, dmd_config(picture_clips=0))
    generator, critic = alive(CausalDiT, model, 1).to(GPU), alive(WanDiT, model, 2).to(GPU)
    teacher = frozen(alive(WanDiT, model, 3)).to(GPU, torch.bfloat16)
    assert isinstance(generator, CausalDiT)
    method = dmd.DmdMethod(run, generator, critic, teacher, clips(model, 2, 99).to(GPU), decode, 0)
    for name, module in (("generator", generator), ("critic", critic)):
        method.loss(name, clips(model, 2), RngStreams(0, 0)).value.backward()
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        assert grads
        assert all(torch.isfinite(g).all() for g in grads)
        assert any(g.any() for g in grads)
