"""Muon beside AdamW: which weights go where, shared groups, exact resume, refused where weights are sharded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infra.engine import TorchEngine
from stages.train.method import StepsConfig
from stages.train.optim import Joined, make_optimizer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(x)
        for layer in self.blocks:
            x = x + layer(x).tanh()
        return self.head(x)


def build(optimizer: str = "muon") -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    return net, make_optimizer(net, StepsConfig(optimizer=optimizer, lr=1e-2), head="head.")


def train(net: Net, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        (net(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_only_the_layers_matrices_go_to_muon():
    net, optimizer = build()
    assert isinstance(optimizer, Joined)
    muon, adamw = optimizer.parts
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    held = [p for group in muon.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(layer.weight) for layer in net.blocks]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(net.parameters()))
    assert [g["name"] for g in optimizer.param_groups] == ["body", "body", "head"]


def test_a_learning_rate_set_from_outside_reaches_both_parts():
    net, optimizer = build()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    net(torch.ones(1, 6)).sum().backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_muons_update_is_orthogonal_and_of_adamws_size():
    torch.manual_seed(0)
    net, optimizer = build()
    weight = net.blocks[0].weight
    before = weight.detach().clone()
    weight.grad = torch.randn(8, 8)
    optimizer.parts[0].param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    update = (before - weight.detach()) / 1e-2
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.3)  # AdamW's usual root mean square
    singular = torch.linalg.svdvals(update)
    assert singular.max() / singular.min() < 2.5  # of the random gradient: far above 10


def test_resume_is_exact():
    net, optimizer = build()
    train(net, optimizer, range(4))
    half, first = build()
    train(half, first, range(2))
    state = {name: tensor.clone() for name, tensor in TorchEngine(half, first, 0.0).state()}
    again, second = build()
    TorchEngine(again, second, 0.0).load(state)
    train(again, second, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_adamw_alone_is_plain_adamw():
    _, optimizer = build("adamw")
    assert type(optimizer) is torch.optim.AdamW
    assert [(g["name"], len(g["params"])) for g in optimizer.param_groups] == [("body", 6), ("head", 2)]


def test_an_unknown_optimizer_is_named():
    assert [p.split(":")[0] for p in StepsConfig(optimizer="sgd").checks()] == ["optimizer"]
