import numpy as np
import pytest

from stages.eval import frechet
from stages.eval.frechet import frechet_distance, frechet_from_moments, kernel_distance, merge, moments, split_spread


def gaussian(n: int, d: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + generator.normal(size=d)


@pytest.mark.parametrize("n", [5, 40])
def test_identity_shift_and_scaling(n):
    x = gaussian(n, 12, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(x, x + 1.5) == pytest.approx(12 * 1.5**2)
    spread = np.trace(np.cov(x.T))
    assert frechet_distance(x, 2 * x) == pytest.approx(np.square(x.mean(0)).sum() + spread)


def test_equals_the_formula_with_a_matrix_square_root():
    from scipy.linalg import sqrtm

    x, y = gaussian(60, 6, 1), gaussian(80, 6, 2)
    a, b = np.cov(x.T), np.cov(y.T)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet_distance(x, y) == pytest.approx(expected)


def test_both_routes_agree(monkeypatch):
    x, y = gaussian(30, 50, 1), gaussian(25, 50, 2)  # rank deficient
    nuclear = frechet_distance(x, y)
    monkeypatch.setattr(frechet, "NUCLEAR_UP_TO", 10)
    assert frechet_distance(x, y) == pytest.approx(nuclear, rel=1e-4)


def test_merging_shards_equals_all_at_once():
    x = gaussian(50, 8, 3)
    whole, parts = moments(x), merge(merge(moments(x[:7]), moments(x[7:30])), moments(x[30:]))
    assert parts.n == whole.n
    np.testing.assert_allclose(parts.mean, whole.mean)
    np.testing.assert_allclose(parts.scatter, whole.scatter)
    assert frechet_from_moments(parts, moments(x + 2)) == pytest.approx(8 * 4, rel=1e-4)


def test_splits_are_disjoint_and_equal():
    x, y = gaussian(12, 4, 1), gaussian(12, 4, 2)
    assert split_spread(x, y, 2) == [frechet_distance(x[:6], y[:6]), frechet_distance(x[6:], y[6:])]
    assert split_spread(x[:3], y[:3], 2) == []


def test_kernel_distance_is_unbiased_and_its_interval_covers_zero_for_one_distribution():
    values = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        values.append(kernel_distance(generator.normal(size=(20, 10)), generator.normal(size=(20, 10))))
    mean = np.mean([v.value for v in values])
    error = np.std([v.value for v in values]) / np.sqrt(40)
    assert abs(mean) < 3 * error
    assert np.mean([v.low <= 0 <= v.high for v in values]) > 0.8
    generator = np.random.default_rng(0)
    apart = kernel_distance(generator.normal(size=(20, 10)), generator.normal(size=(20, 10)) + 2)
    assert apart.low > 0


def test_kernel_distance_by_hand():
    x, y = np.array([[0.0], [0.0], [0.0]]), np.array([[1.0], [1.0], [1.0]])
    # k(0,0) = 1, k(1,1) = 8, k(0,1) = 1: 1 + 8 - 2
    assert kernel_distance(x, y).value == pytest.approx(7)


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1)])
def test_too_few_clips_are_an_error(n, m):
    with pytest.raises(ValueError, match="two clips"):
        frechet_distance(np.zeros((n, 3)), np.zeros((m, 3)))


def test_unequal_sets_are_an_error_for_kvd():
    with pytest.raises(ValueError, match="one size"):
        kernel_distance(np.zeros((4, 3)), np.zeros((5, 3)))
