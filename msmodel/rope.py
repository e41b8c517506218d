"""Rotary position embedding over (frame, row, column), as in Wan: interleaved pairs, theta 1e4.

A rotation is a complex table e^(i * angle), one row a token. Angles are computed from integer positions in float64, so
any position is exact, and the range of positions is unlimited. Keys are stored unrotated and rotated for the position
at which they are read (RoPE by cache position).

Legend: b batch, l tokens (frame-major, then rows, then columns), a attention heads, d channels of one head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

THETA = 10_000.0


def upcast(x: Tensor) -> Tensor:
    """Returns x in float32, or float64 if it already has that type."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """Returns how many of a head's channels encode (frame, row, column); Wan's 128 gives 44, 42, 42."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def _axis_angles(positions: Tensor, channels: int) -> Tensor:
    """Returns angles in radians, float64, (positions, channels / 2): p / theta^(2 j / channels)."""
    exponent = torch.arange(0, channels, 2, dtype=torch.float64, device=positions.device) / channels
    return positions.double()[:, None] / THETA**exponent


@lru_cache(maxsize=256)
def _rotation(
    frames: tuple[int, ...], rows: int, columns: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # a cached table must stay usable under autograd
        parts = []
        axes = (torch.tensor(frames), torch.arange(rows), torch.arange(columns))
        grids = torch.meshgrid(*axes, indexing="ij")
        for grid, channels in zip(grids, axis_channels(head_dim), strict=True):
            parts.append(_axis_angles(grid.reshape(-1), channels))
        angles = torch.cat(parts, dim=-1)
        rope_freqs = torch.polar(torch.ones_like(angles), angles)
        return rearrange(rope_freqs, "l d -> l 1 d").to(device=device, dtype=dtype)


def rotation(frames: Sequence[int], rows: int, columns: int, head_dim: int, like: Tensor) -> Tensor:
    """Returns the rotation table (l, 1, d / 2), complex, for tokens of frames at positions `frames`, rows x columns each.

    It is complex128 where `like` is float64, else complex64, on the device of `like`. Results are cached by the
    arguments.
    """
    dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    return _rotation(tuple(frames), rows, columns, head_dim, dtype, like.device)


def rotate(x: Tensor, rope_freqs: Tensor) -> Tensor:
    """Rotates queries or keys x (b l a d) by `rope_freqs` (l 1 d/2) in at least float32.

    The result has the type of x.
    """
    pairs = torch.view_as_complex(rearrange(upcast(x), "b l a (d two) -> b l a d two", two=2))
    return rearrange(torch.view_as_real(pairs * rope_freqs), "b l a d two -> b l a (d two)").to(x.dtype)
