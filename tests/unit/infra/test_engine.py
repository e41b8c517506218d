"""Engines agree: DeepSpeed (ZeRO 0 to 3, one process) trains as plain torch does, and takes up any other's state."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import nn

from infra import engine as engines
from infra.config import ComputeConfig
from infra.context import RunContext
from infra.engine import DeepSpeedEngine, Sharding, TorchEngine, gradient_norm, shard_frozen
from infra.files import CHECKOUT
from tests.unit.infra import bf16_ranks

KINDS = ["torch", "zero0", "zero1", "zero2", "zero3"]


@pytest.fixture(autouse=True)
def everything_sharded(monkeypatch):
    monkeypatch.setattr(engines, "KEPT_WHOLE", 0)


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    path = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def build(kind: str, accumulate: int = 1, seed: int = 0, offload: str = "none", bf16: bool = False):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    module[0].bias.requires_grad_(False)  # frozen parameters must be fine
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"name": "body", "params": trained}], lr=1e-2)
    if kind == "torch":
        return TorchEngine(module, optimizer, 0.05, accumulate)
    return DeepSpeedEngine(module, optimizer, 0.05, accumulate, Sharding(int(kind[-1]), offload, bf16))


def train(engine, steps: int, start: int = 0) -> list[float]:
    losses = []
    for step in range(start, start + steps):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        y = engine.module(x.to(next(engine.module.parameters()).dtype))
        loss = (y - x[:, :4]).square().mean()
        engine.backward(loss)
        norm = engine.step()
        losses += [float(loss.detach()), norm]
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_deepspeed_equals_torch(kind, accumulate):
    expected, got = train(build("torch", accumulate), 6), train(build(kind, accumulate), 6)
    assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "offload"), [("zero1", "optimizer"), ("zero2", "optimizer"), ("zero3", "all")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_offloading_changes_nothing(kind, offload, accumulate):
    got = train(build(kind, accumulate, offload=offload), 6)
    assert got == pytest.approx(train(build("torch", accumulate), 6), abs=1e-5)


def saved_state(engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.state()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(kind):
    whole = build(kind)
    expected = train(whole, 4)
    first = build(kind)
    head = train(first, 2)
    second = build(kind, seed=1)
    second.load(saved_state(first))
    assert head + train(second, 2, start=2) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_up_every_others_state(kind):
    other = build("zero3" if kind != "zero3" else "torch")
    train(other, 2)
    state = saved_state(other)
    assert sorted(state) == [
        "exp_avg/0.weight", "exp_avg/2.bias", "exp_avg/2.weight", "exp_avg_sq/0.weight", "exp_avg_sq/2.bias",
        "exp_avg_sq/2.weight", "fixed/0.bias", "step/0.weight", "step/2.bias", "step/2.weight", "weight/0.weight",
        "weight/2.bias", "weight/2.weight",
    ]  # fmt: skip
    mine = build(kind, seed=1)
    mine.load(state)
    assert train(mine, 2, start=2) == pytest.approx(train(other, 2, start=2), abs=1e-5)


@pytest.mark.slow
def test_another_modules_state_is_refused():
    state = saved_state(build("torch"))
    with pytest.raises(ValueError, match=r"another model's \(weight/2\.bias"):
        build("zero1").load({k: v for k, v in state.items() if k != "weight/2.bias"})
    with pytest.raises(ValueError, match=r"weight of 0\.weight is \(2, 8\), the model's \(16, 8\)"):
        build("zero3").load(state | {"weight/0.weight": torch.zeros(2, 8)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_module_is_plain_and_has_the_weights_it_was_given(kind):
    engine = build(kind)
    train(engine, 1)
    pieces = {name: master + 1 for name, master in engine.master_weights().items()}
    expected = {name: engine.gather(name, piece) for name, piece in pieces.items()}
    fixed = saved_state(engine)["fixed/0.bias"]
    engine.finish(pieces)
    own = dict(engine.module.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in expected.items())
    assert torch.equal(own["0.bias"], fixed) and not own["0.bias"].requires_grad
    assert engine.module(torch.ones(1, 8)).shape == (1, 4)
    assert engine.module.state_dict()["0.weight"].shape == (16, 8)


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
    engine = DeepSpeedEngine(module, torch.optim.AdamW(module.parameters()), 1.0, sharding=Sharding(stage))
    assert torch.equal(module.weight, before)
    assert stage == 1 or module.weight.is_contiguous(memory_format=torch.channels_last)
    engine.backward(engine.module(torch.ones(1, 3, 5, 5)).square().sum())
    assert engine.step() > 0
    assert not torch.equal(module.weight, before)


@pytest.mark.slow
def test_no_more_memory_is_reserved_than_there_are_weights():
    """ZeRO 3's default bucket of 2 GB a module, never touched, once made every later fork of the process fail (ENOMEM)."""
    before = psutil.Process().memory_info().vms
    kept = [build("zero3") for _ in range(2)]
    losses = [train(engine, 1) for engine in kept]
    assert psutil.Process().memory_info().vms - before < 1e9
    assert losses[0] == losses[1]


def test_an_optimizer_that_needs_whole_weights_trains_unsharded_and_is_refused_otherwise():
    def whole(kind: str):
        module = nn.Linear(4, 4)
        optimizer = torch.optim.Muon([module.weight], lr=1e-2)
        optimizer.whole_tensors = True
        return DeepSpeedEngine(module, optimizer, 0.0, sharding=Sharding(int(kind[-1])))

    with pytest.raises(ValueError, match=r"compute\.zero_stage=0"):
        whole("zero1")
    engine = whole("zero0")
    before = engine.module.weight.detach().clone()
    engine.backward(engine.module(torch.ones(2, 4)).square().mean())
    engine.step()
    assert not torch.equal(engine.module.weight, before)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_rounds_weights_and_no_buffer(stage):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 4))
    module.register_buffer("components", torch.rand(5))
    exact = module.components.clone()
    optimizer = torch.optim.AdamW([{"name": "body", "params": list(module.parameters())}], lr=1e-2)
    engine = DeepSpeedEngine(module, optimizer, 1.0, 1, Sharding(stage, bf16=True))
    assert next(engine.module.parameters()).dtype == torch.bfloat16
    assert torch.equal(engine.module.components, exact)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Returns the folder of what two ranks measure in a process each (bf16_ranks.py)."""
    root = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.infra.bf16_ranks", str(root)]
    logs = [root / f"rank-{rank}.log" for rank in range(bf16_ranks.WORLD)]
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=CHECKOUT, stderr=log.open("w")) for rank, log in enumerate(logs)
    ]
    try:
        for process, log in zip(ranks, logs, strict=True):
            assert process.wait(timeout=600) == 0, log.read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()
    return root


@pytest.mark.slow
@pytest.mark.parametrize("case", bf16_ranks.CASES)
def test_bfloat16_gradients_are_summed_in_float32(case, two_ranks):
    """Over 64 micro-steps of two ranks, in two steps one after the other. In bfloat16 the error is 0.7%."""
    errors = json.loads((two_ranks / "errors.json").read_text())
    assert max(max(step) for step in errors[case]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(bf16_ranks.WORLD))
@pytest.mark.parametrize("case", bf16_ranks.CASES)
def test_a_rank_reads_its_own_part_of_a_saved_state_only(case, rank, two_ranks):
    assert json.loads((two_ranks / f"loaded-{rank}.json").read_text())[case]


@pytest.mark.parametrize(
    ("kind", "offload"), [("zero1", "none"), ("zero2", "optimizer"), ("zero3", "none"), ("zero3", "all")]
)
def test_a_bfloat16_training_starts_from_float32_weights_and_ends_with_them(kind, offload):
    """Also its frozen weights, and where it resumes."""
    engine = build(kind, offload=offload, bf16=True)
    own = dict(build("torch").module.named_parameters())  # the same weights, before any rounding
    frozen = own.pop("0.bias").detach()
    exact = engine.master_weights()
    assert all(torch.equal(engine.gather(n, exact[n]), w) for n, w in own.items())
    state = saved_state(engine)
    assert torch.equal(state["fixed/0.bias"], frozen)

    other = build(kind, seed=1, offload=offload, bf16=True)
    other.load(state)
    assert train(other, 2) == train(engine, 2)

    average = {n: master + 1e-4 for n, master in engine.master_weights().items()}
    final = {n: engine.gather(n, shard) for n, shard in average.items()} | {"0.bias": frozen}
    engine.finish(average)
    finished = dict(engine.module.named_parameters())
    assert all(torch.equal(finished[n], w.bfloat16()) for n, w in final.items())
    engine.to_float32()
    assert all(torch.equal(finished[n], w) for n, w in final.items())
    assert not finished["0.bias"].requires_grad


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_compute_precision_chooses_the_type_of_a_context_and_its_engines(precision, dtype, tmp_path):
    ctx = RunContext(tmp_path, seed=0, compute=ComputeConfig(precision=precision))
    module = nn.Linear(2, 2)
    engine = ctx.engine(module, torch.optim.AdamW([{"name": "body", "params": list(module.parameters())}]), 1.0)
    assert ctx.dtype == engine.module.weight.dtype == dtype


@pytest.mark.parametrize(
    ("zero_stage", "offload", "chunkwise", "expected"),
    [(3, "none", True, 2), (3, "optimizer", True, 2), (3, "all", True, 3), (3, "none", False, 3), (1, "none", True, 1)],
)
def test_zero_3_shards_no_weights_of_a_module_that_is_called_chunk_by_chunk(
    zero_stage, offload, chunkwise, expected, tmp_path
):
    ctx = RunContext(tmp_path, seed=0, compute=ComputeConfig(zero_stage=zero_stage, offload=offload))
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([{"name": "body", "params": list(module.parameters())}])
    engine = ctx.engine(module, optimizer, 1.0, chunkwise=chunkwise)
    assert isinstance(engine, DeepSpeedEngine)
    assert engine.sharding.stage == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_module_that_is_sharded_computes_the_same(dtype, monkeypatch):
    """In its own type, beside a module that trains under ZeRO 1, with weights that are gone between its calls."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 5)).to(memory_format=torch.channels_last)
    module = module.to(dtype).requires_grad_(False)
    expected, x = copy.deepcopy(module), torch.randn(2, 3, 5, 5, dtype=dtype)
    expected[0].to(memory_format=torch.contiguous_format)
    monkeypatch.setattr(nn.functional, "linear", linear := torch._C._nn.linear)  # as before any training under ZeRO 3
    before = psutil.Process().memory_info().vms
    kept = shard_frozen(module)
    assert kept.module is module
    assert psutil.Process().memory_info().vms - before < 1e9
    assert nn.functional.linear is linear
    losses = []
    trained = build("zero1")
    for step in range(3):
        with torch.no_grad():
            y = module(x)
        assert y.dtype == dtype and torch.equal(y, expected(x))
        assert [(p.numel(), p.dtype) for p in module.parameters()] == [(0, dtype)] * 4
        losses += train(trained, 1, start=step)
    assert losses == train(build("zero1"), 3)


def test_one_rank_holds_a_sharded_module_whole(tmp_path):
    module = nn.Linear(2, 2).requires_grad_(False)
    assert RunContext(tmp_path, seed=0).sharded(module) is module
    assert module.weight.shape == (2, 2) and not hasattr(module.weight, "ds_tensor")
