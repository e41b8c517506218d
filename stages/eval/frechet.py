"""Distances between two sets of features: Fréchet (FVD) and kernel (KVD). float64 throughout.

With few clips a Fréchet distance is mostly noise. It is therefore always reported with equal N on both sides, the
distance between two sets of real clips as its floor, its spread over disjoint splits, and KVD, which is unbiased, with
an interval.

Legend: n, m clips, d feature channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NUCLEAR_UP_TO = 512  # above it the d x d route through eigh is cheaper than an n x m singular value decomposition


@dataclass(frozen=True)
class Moments:
    """Moments of a feature set, which a Fréchet distance needs. scatter = sum (x - mean)(x - mean)^T, d d."""

    n: int
    mean: np.ndarray
    scatter: np.ndarray


def moments(x: np.ndarray) -> Moments:
    """Returns the moments of x, n d."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(axis=0)
    return Moments(len(x), x.mean(axis=0), centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of the union of two disjoint sets, exactly (Chan et al. 1979)."""
    n, gap = a.n + b.n, b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(gap, gap) * (a.n * b.n / n)
    return Moments(n, a.mean + gap * (b.n / n), scatter)


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Returns |mu_x - mu_y|^2 + Tr(S_x + S_y - 2 (S_x S_y)^(1/2)) with unbiased covariances. x: n d, y: m d.

    Tr (S_x S_y)^(1/2) is the nuclear norm of X_c Y_c^T / sqrt((n-1)(m-1)). Raises ValueError on fewer than two rows.
    """
    x, y = _checked(x, y)
    if max(len(x), len(y)) > NUCLEAR_UP_TO:
        return frechet_from_moments(moments(x), moments(y))
    xc, yc = x - x.mean(axis=0), y - y.mean(axis=0)
    dx, dy = len(x) - 1, len(y) - 1
    cross = np.linalg.norm(xc @ yc.T, ord="nuc") / math.sqrt(dx * dy)
    gap = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    return float(gap + np.square(xc).sum() / dx + np.square(yc).sum() / dy - 2 * cross)


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """Returns the same distance from moments.

    Tr (S_a S_b)^(1/2) = sum sqrt eig(S_a^(1/2) S_b S_a^(1/2)) is computed through eigh.
    """
    cov_a, cov_b = a.scatter / (a.n - 1), b.scatter / (b.n - 1)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(np.square(a.mean - b.mean).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def split_spread(x: np.ndarray, y: np.ndarray, parts: int) -> list[float]:
    """Returns the Fréchet distance on each of `parts` disjoint splits of both sets, which shows its spread.

    Each split has N / parts clips. The list is empty if that is fewer than two.
    """
    n = min(len(x), len(y)) // parts
    if n < 2:
        return []
    return [frechet_distance(x[i * n : (i + 1) * n], y[i * n : (i + 1) * n]) for i in range(parts)]


@dataclass(frozen=True)
class KernelDistance:
    """Unbiased squared MMD with its 95% interval (jackknife over pairs of clips). A value below zero is no error."""

    value: float
    low: float
    high: float


def kernel_distance(x: np.ndarray, y: np.ndarray) -> KernelDistance:
    """Returns KVD: the unbiased squared MMD with the cubic kernel (x y / d + 1)^3 (Bińkowski et al. 2018).

    x, y: n d, n >= 3. Raises ValueError on other shapes.
    """
    x, y = _checked(x, y)
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"KVD needs two sets of one size of at least 3, got {len(x)} and {len(y)}")
    xx, yy, xy = (_cubic(a, b) for a, b in ((x, x), (y, y), (x, y)))
    value, n = _mmd2(xx, yy, xy), len(x)
    left_out = np.array([_mmd2(*(np.delete(np.delete(k, i, 0), i, 1) for k in (xx, yy, xy))) for i in range(n)])
    half = 1.96 * math.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum())
    return KernelDistance(value, value - half, value + half)


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def _mmd2(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    """Returns the squared MMD (Gretton et al. 2012, equation 3): off-diagonal means within sets, full mean across."""
    n = len(xx)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * xy.mean())


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets as float64. Raises ValueError if they are not n x d and m x d with at least two rows each."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"feature sets must be n x d with one d, got {x.shape} and {y.shape}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a distance between sets needs at least two clips a side, got {len(x)} and {len(y)}")
    return x, y
