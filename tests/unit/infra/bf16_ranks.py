"""One of two ranks that train in bfloat16: python -m tests.unit.infra.bf16_ranks ROOT RANK.

Rank 0 writes ROOT/errors.json: for each case the relative errors of the gradients of 64 micro-steps, against float64
sums of the same bfloat16 gradients. ROOT/loaded-RANK.json: for each case whether the rank restored a state of which it
was given its own shards only (rank 0 also all weights).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra import engine as engines
from infra.engine import DeepSpeedEngine, Sharding

WORLD, MICRO_STEPS = 2, 64
CASES = {"zero1": (1, "none"), "zero2": (2, "none"), "zero3": (3, "none")}
CASES |= {"zero2-offload": (2, "optimizer"), "zero3-offload": (3, "all")}


def module() -> nn.Module:
    """Returns a module whose float32 weights are exact in bfloat16."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 33), nn.GELU(), nn.Linear(33, 7)).bfloat16().float()


def loss_of(net: nn.Module, rank: int, micro: int) -> Tensor:
    generator = torch.Generator().manual_seed(micro * WORLD + rank)
    x, y = torch.randn(4, 8, generator=generator), torch.randn(4, 7, generator=generator)
    return (net(x.bfloat16()).float() - y).square().mean()


def expected() -> Tensor:
    """Returns the mean gradient as one vector: float64 sums of the bfloat16 gradients of all ranks' micro-steps."""
    net = module().bfloat16()
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in net.parameters()]
    for rank in range(WORLD):
        for micro in range(MICRO_STEPS):
            (loss_of(net, rank, micro) / MICRO_STEPS).backward()
            for sum_, p in zip(total, net.parameters(), strict=True):
                assert p.grad is not None
                sum_ += p.grad.double() / WORLD
            net.zero_grad()
    return torch.cat([x.flatten() for x in total])


def measured(sharding: Sharding, rank: int) -> Iterator[tuple[Tensor, float]]:
    """Yields the gradient and the reported norm of each of two steps of an engine; the step is the gradient itself."""
    net = module()
    engine = DeepSpeedEngine(
        net, torch.optim.SGD([{"name": "body", "params": list(net.parameters())}], lr=1.0), 0.0, MICRO_STEPS, sharding
    )
    start = dict(engine.state())
    for _ in range(2):
        engine.load({n: t.clone() for n, t in start.items()})
        before = weights(engine)
        for micro in range(MICRO_STEPS):
            engine.backward(loss_of(engine.module, rank, micro))
            norm = engine.step()
        yield before - weights(engine), norm


def weights(engine: DeepSpeedEngine) -> Tensor:
    return torch.cat([engine.gather(n, shard).flatten() for n, shard in engine.master_weights().items()]).double()


def restored(sharding: Sharding, rank: int) -> bool:
    """Returns whether loading restores a state in which, on rank 1, all that is not of its shards is NaN."""
    trained, other = (adamw(seed, sharding) for seed in (0, 1))
    for _ in range(2):
        trained.backward(loss_of(trained.module, rank, 0))
        trained.step()
    state = {n: t.clone() for n, t in trained.state()}
    given = dict(state)
    for name, f in other._fragments().items() if rank else ():
        for key in (f"{kind}/{name}" for kind in ("weight", "exp_avg", "exp_avg_sq")):
            own = torch.full_like(state[key], torch.nan)
            f.shard(own).copy_(f.shard(state[key]))
            given[key] = own
    other.load(given)
    same = all(torch.equal(value, state[n]) for n, value in other.state())
    x = torch.ones(4, 8, dtype=torch.bfloat16)
    return same and torch.equal(other.module(x), trained.module(x))


def adamw(seed: int, sharding: Sharding) -> DeepSpeedEngine:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 33), nn.GELU(), nn.Linear(33, 7))
    optimizer = torch.optim.AdamW([{"name": "body", "params": list(net.parameters())}], lr=1e-2)
    return DeepSpeedEngine(net, optimizer, 1.0, 1, sharding)


def main(root: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=WORLD)
    engines.KEPT_WHOLE = 0
    wanted = expected()
    errors = {
        case: [
            [float((gradient - wanted).norm() / wanted.norm()), abs(norm / float(wanted.norm()) - 1)]
            for gradient, norm in measured(Sharding(*how, bf16=True), rank)
        ]
        for case, how in CASES.items()
    }
    if rank == 0:
        (root / "errors.json").write_text(json.dumps(errors))
    loaded = {case: restored(Sharding(*how, bf16=True), rank) for case, how in CASES.items()}
    (root / f"loaded-{rank}.json").write_text(json.dumps(loaded))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
