"""The bodies of tests/gpu on a CPU at a tiny size, so that on a GPU only the device is new."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infra.context import RunContext
from msmodel import attention
from msmodel.vae import fresh_vae
from tests.gpu import bodies
from tests.unit.stages.train.methods import small

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("image", ["channels", "first_latent"])
@pytest.mark.parametrize("stage", sorted(bodies.STAGES))
def test_one_step_of_each_stage(stage, image, tmp_path):
    found = bodies.STAGES[stage](small(image), RunContext(workdir=tmp_path, seed=0))
    assert found.keys() == ({"generator", "critic"} if stage == "dmd" else {"student"} if stage == "adapt" else {"dit"})
    assert all(0 < f["loss"] < 100 and f["seconds"] > 0 for f in found.values())


@pytest.mark.slow
def test_a_training_that_moves_nothing_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("infra.engine.TorchEngine.step", lambda self: 1.0)
    with pytest.raises(AssertionError, match="dit: no weight has moved"):
        bodies.teacher_step(small(), RunContext(workdir=tmp_path, seed=0))


@pytest.mark.parametrize("decoded", [False, True])
def test_speed_of_a_stream(decoded):
    model = small()
    found = bodies.student_speed(model, CPU, fresh_vae(model.vae) if decoded else None, chunks=3, warmup=1)
    ms = found["chunk_latency_ms"]
    assert 0 < ms["p50"] <= ms["p95"]
    assert found["fps"] == pytest.approx(1000 * model.student.chunk * model.vae.stride_t / ms["mean"])


def test_a_kernel_that_computes_another_function_is_found(monkeypatch):
    found = bodies.flash_against_sdpa(CPU, torch.float32, 3, 5, 2, 8, rounds=2)
    assert found["worst_difference"] == 0.0 and found["attend_ms"] > 0 and found["kernel"].startswith("torch SDPA")

    def wrong(q, k, v):
        return attention.attend_with(None, q, k, 1.1 * v)

    monkeypatch.setattr(attention, "kernel", lambda *kind: attention.Kernel("wrong", wrong))
    assert bodies.flash_against_sdpa(CPU, torch.float32, 3, 5, 2, 8, rounds=2)["worst_difference"] > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("z", "stride_s"), [(16, 8), (48, 16)])
def test_a_fresh_vae_of_a_wan_family_has_its_sizes(z, stride_s):
    """On the meta device: at full width."""
    cfg = replace(small().vae, z_channels=z, stride_t=4, stride_s=stride_s)
    with torch.device("meta"):
        vae = fresh_vae(cfg)
    count = sum(p.numel() for p in vae.parameters())
    assert count == pytest.approx({16: 126.9e6, 48: 704.7e6}[z], rel=0.01)
