"""The averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.train.ema import Ema


def test_warm_up_then_constant_decay():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = Ema(module, 0.5)
    nn.init.ones_(module.weight)
    ema.update(module)
    assert ema.shadow["weight"].item() == pytest.approx(0.9)
    for _ in range(200):
        ema.update(module)
    before = ema.shadow["weight"].item()
    nn.init.zeros_(module.weight)
    ema.update(module)
    assert ema.shadow["weight"].item() == pytest.approx(0.5 * before)


def test_average_is_float32_for_half_precision_weights_and_goes_back_in_their_type():
    module = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(module.weight)
    ema = Ema(module, 0.999)
    ema.updates = 10_000
    with torch.no_grad():
        module.weight.fill_(2.0)
    ema.update(module)
    assert ema.shadow["weight"].item() == pytest.approx(1.001)  # bfloat16 would still say 1
    ema.copy_to(module)
    assert module.weight.dtype == torch.bfloat16


def test_frozen_parameters_are_part_of_it():
    module = nn.Linear(2, 2).requires_grad_(False)
    assert Ema(module, 0.9).shadow.keys() == {"weight", "bias"}


def test_applied_gives_the_parameters_back_also_after_an_error():
    module = nn.Linear(1, 1)
    own = module.weight.detach().clone()
    ema = Ema(module, 0.9)
    ema.shadow["weight"] += 1

    def fail():
        with ema.applied(module):
            assert torch.equal(module.weight, own + 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(module.weight, own)


def test_another_modules_average_is_refused():
    with pytest.raises(ValueError, match="names differ"):
        Ema(nn.Linear(1, 1), 0.9).load({"other": torch.zeros(1)}, 1)
    with pytest.raises(ValueError, match="not in"):
        Ema(nn.Linear(1, 1), 1.0)
