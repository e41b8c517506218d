"""The averaged weights."""

from __future__ import annotations

import pytest
import torch

from stages.train.ema import Ema

CPU = torch.device("cpu")


def weights(value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((1,), value, dtype=dtype)}


def test_warm_up_then_constant_decay():
    ema = Ema(weights(0.0), 0.5, CPU)
    ema.update(weights(1.0))
    assert ema.shadow["weight"].item() == pytest.approx(0.9)
    for _ in range(200):
        ema.update(weights(1.0))
    before = ema.shadow["weight"].item()
    ema.update(weights(0.0))
    assert ema.shadow["weight"].item() == pytest.approx(0.5 * before)


def test_the_average_is_float32_whatever_the_weights_are():
    ema = Ema(weights(1.0, torch.bfloat16), 0.999, CPU)
    ema.updates = 10_000
    ema.update(weights(2.0, torch.bfloat16))
    assert ema.shadow["weight"].item() == pytest.approx(1.001)  # bfloat16 would still say 1


def test_it_is_a_copy():
    own = weights(1.0)
    ema = Ema(own, 0.9, CPU)
    own["weight"].zero_()
    assert ema.shadow["weight"].item() == 1.0


def test_a_decay_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="not in"):
        Ema(weights(1.0), 1.0, CPU)
