"""Rotary embedding: channel split, exactness at large positions, cached tables under autograd."""

from __future__ import annotations

import torch

from msmodel.rope import axis_channels, rotate, rotation
from tests.unit.msmodel.reference import turned


def test_axis_channels_are_wans():
    assert axis_channels(128) == (44, 42, 42)
    assert axis_channels(64) == (24, 20, 20)
    assert all(sum(axis_channels(d)) == d and min(axis_channels(d)) % 2 == 0 for d in range(6, 130, 2))


def test_rotates_pairs_by_position_in_float64():
    x = torch.randn(2, 2 * 3 * 5, 2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for start in (0, 7, 100_000):  # no table to run out of
        frames = range(start, start + 2)
        expected = turned(x, frames, 3, 5)
        torch.testing.assert_close(rotate(x, rotation(frames, 3, 5, 16, x)), expected, atol=1e-9, rtol=0)


def test_half_precision_is_rotated_in_float32():
    x = torch.randn(1, 30, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    table = rotation(range(2), 3, 5, 16, x)
    assert table.dtype == torch.complex64
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())


def test_a_table_made_in_inference_mode_serves_training():
    like = torch.zeros(1)
    with torch.inference_mode():
        rotation(range(40, 42), 3, 5, 16, like)
    x = torch.randn(1, 30, 2, 16, requires_grad=True)
    rotate(x, rotation(range(40, 42), 3, 5, 16, like)).sum().backward()
    assert x.grad is not None
