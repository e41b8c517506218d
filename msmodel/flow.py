"""Rectified flow, with time t a float in [0, 1]: x_t = (1 - t) x_0 + t eps, velocity v = eps - x_0.

t may be (b) or, per latent frame, (b t); it is broadcast against b c t h w. Times are continuous, not entries of a
table. Source: MotionStream section 3; timestep shift and x_0 / eps / v identities as in Wan 2.1 and Self Forcing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BELL_FLOOR = 0.6065306597126334  # exp(-1/2)
BELL_MEAN = 0.8556243918921488  # integral over [0, 1] of exp(-2 (t - 1/2)^2)


def shift(t: Tensor | float, k: float) -> Tensor | float:
    """Applies the timestep shift t' = k t / (1 + (k - 1) t), which leaves 0 and 1 unchanged."""
    return k * t / (1 + (k - 1) * t)


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Reshapes t (b) or (b t) so that it broadcasts against b c t h w."""
    return t[:, None, None, None, None] if t.ndim == 1 else t[:, None, :, None, None].expand(-1, 1, like.shape[2], 1, 1)


def add_noise(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Returns x_t = (1 - t) x_0 + t eps."""
    s = expand(t, x0).to(x0.dtype)
    return (1 - s) * x0 + s * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """Returns the regression target v = eps - x_0 (= z_1 - z_0)."""
    return eps - x0


def x0_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Returns x_0 = x_t - t v."""
    return x_t - expand(t, x_t).to(x_t.dtype) * v


def sample_t(batch: int, k: float, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Samples training times: uniform, shifted by k, clamped to [low, high]; (b) float32 on the generator's device."""
    u = torch.rand(batch, generator=generator, device=generator.device)
    return torch.as_tensor(shift(u, k)).clamp(low, high)


def loss_weight(t: Tensor, kind: str) -> Tensor:
    """Returns the timestep-dependent weight w_t of the flow-matching loss, which has mean 1 over uniform t.

    "uniform": 1. "bell": proportional to exp(-2 (t - 1/2)^2) - exp(-1/2), zero at both ends (Wan's training code).
    """
    if kind == "uniform":
        return torch.ones_like(t)
    if kind == "bell":
        bell = torch.exp(-2 * (t - 0.5) ** 2) - BELL_FLOOR
        return bell / (BELL_MEAN - BELL_FLOOR)
    raise ValueError(f"weighting {kind!r} is not one of uniform, bell")


def student_timesteps(steps: int, k: float) -> tuple[float, ...]:
    """Returns the student's `steps` denoising times, descending from 1.0: uniform in unshifted time, then shifted."""
    return tuple(float(shift(1 - i / steps, k)) for i in range(steps))


def solver_times(steps: int, k: float) -> tuple[float, ...]:
    """Returns steps + 1 shifted times from 1 to 0. They contain `student_timesteps(K, k)` whenever K divides steps."""
    return tuple(float(shift(1 - i / steps, k)) for i in range(steps + 1))


@torch.no_grad()
def euler(
    velocity_fn: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int,
    k: float,
    on_state: Callable[[float, Tensor], None] | None = None,
) -> Tensor:
    """Integrates dx/dt = v from t = 1 to 0 with `steps` Euler steps; noise and result b c t h w.

    velocity_fn(x_t, t (b)) -> v. on_state(t, x_t) is called for every state, including the first (noise) and the last
    (clean).
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, got {steps}")
    x, times = noise, solver_times(steps, k)
    if on_state:
        on_state(times[0], x)
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        v = velocity_fn(x, torch.full((x.shape[0],), t, device=x.device))
        x = x + (t_next - t) * v
        if on_state:
            on_state(t_next, x)
    return x
