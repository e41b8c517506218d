"""Engines agree: DeepSpeed (ZeRO 0 and 1, one process) trains as plain torch does, and resumes exactly."""

from __future__ import annotations

import io

import pytest
import torch
import torch.distributed as dist
from torch import nn

from infra.engine import DeepSpeedEngine, TorchEngine, gradient_norm


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    path = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def build(kind: str, accumulate: int = 1, seed: int = 0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    module[0].bias.requires_grad_(False)  # frozen parameters must be fine
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"name": "body", "params": trained}], lr=1e-2)
    if kind == "torch":
        return TorchEngine(module, optimizer, 0.05, accumulate)
    return DeepSpeedEngine(module, optimizer, 0.05, accumulate, zero_stage=int(kind[-1]))


def train(engine, steps: int, start: int = 0) -> list[float]:
    losses = []
    for step in range(start, start + steps):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        loss = (engine.module(x) - x[:, :4]).square().mean()
        engine.backward(loss)
        norm = engine.step()
        losses += [float(loss.detach()), norm]
    return losses


@pytest.mark.parametrize("kind", ["zero0", "zero1", "zero2"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_deepspeed_equals_torch(kind, accumulate):
    expected, got = train(build("torch", accumulate), 6), train(build(kind, accumulate), 6)
    assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["torch", "zero0", "zero1", "zero2"])
def test_resume_is_exact(kind):
    whole = build(kind)
    expected = train(whole, 4)
    first = build(kind)
    head = train(first, 2)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second = build(kind, seed=1)
    second.load_state_dict(torch.load(saved, weights_only=True))
    assert head + train(second, 2, start=2) == expected


@pytest.mark.parametrize("kind", ["torch", "zero0", "zero1"])
def test_two_engines_in_one_process_do_not_meet(kind):
    alone = train(build(kind), 3)
    critic = build(kind, seed=5)
    generator = build(kind)
    together = []
    for step in range(3):
        train(critic, 1, start=100 + step)
        together += train(generator, 1, start=step)
    assert together == alone


def test_loss_through_a_frozen_module_reaches_the_trained_one():
    critic, generator = build("zero1", seed=5), build("zero1")
    before = [p.clone() for p in generator.module.parameters()]
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    y = generator.module(x)
    loss = critic.module(torch.cat([y, y], 1)).square().mean()
    generator.backward(loss)
    assert generator.step() > 0
    changed = [not torch.equal(a, b) for a, b in zip(before, generator.module.parameters(), strict=True)]
    assert any(changed)


def test_learning_rate_is_read_from_the_optimizer_it_was_given():
    engine = build("zero1")
    before = [p.clone() for p in engine.module.parameters()]
    engine.engine.basic_optimizer.param_groups[0]["lr"] = 0.0
    train(engine, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))


def test_gradient_norm_is_of_one_vector():
    module = nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert gradient_norm(module) == pytest.approx(5.0)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("kernel", [3, 1])  # a 1x1 kernel counts as contiguous, with strides that are not
def test_channels_last_weights_are_accepted(stage, kernel):
    module = nn.Conv2d(3, 4, kernel).to(memory_format=torch.channels_last)
    before = module.weight.detach().clone()
    engine = DeepSpeedEngine(module, torch.optim.AdamW(module.parameters()), 1.0, zero_stage=stage)
    assert torch.equal(module.weight, before)
    assert stage == 1 or module.weight.is_contiguous(memory_format=torch.channels_last)
    engine.backward(engine.module(torch.ones(1, 3, 5, 5)).square().sum())
    assert engine.step() > 0
    assert not torch.equal(module.weight, before)


def test_an_optimizer_that_needs_whole_weights_trains_unsharded_and_is_refused_otherwise():
    def whole(kind: str):
        module = nn.Linear(4, 4)
        optimizer = torch.optim.Muon([module.weight], lr=1e-2)
        optimizer.whole_tensors = True
        return DeepSpeedEngine(module, optimizer, 0.0, zero_stage=int(kind[-1]))

    with pytest.raises(ValueError, match=r"compute\.zero_stage=0"):
        whole("zero1")
    engine = whole("zero0")
    before = engine.module.weight.detach().clone()
    engine.backward(engine.module(torch.ones(2, 4)).square().mean())
    engine.step()
    assert not torch.equal(engine.module.weight, before)
