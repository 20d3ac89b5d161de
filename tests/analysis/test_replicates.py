"""Claims about width means of paired replicates."""

import numpy as np
import pytest

from analysis.replicates import width_means


def paired(widths: int, replicates: int, noise: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """x, y, replicate of a balanced study with a luck of 1.0 shared within each replicate."""
    rng = np.random.default_rng(seed)
    x = np.repeat(np.arange(widths, dtype=float), replicates)
    r = np.tile(np.arange(replicates), widths)
    y = 2 * x + rng.normal(0, 1.0, replicates)[r] + noise * rng.standard_normal(len(x))
    return x, y, r


def test_a_balanced_study_has_plain_means() -> None:
    x, y, r = paired(5, 3, 0.1)
    found = width_means(x, y, r)
    np.testing.assert_allclose(found.mean, y.reshape(5, 3).mean(axis=1))
    np.testing.assert_array_equal(found.counts, [3] * 5)
    assert found.df == (5 - 1) * (3 - 1)


def test_the_luck_of_a_replicate_is_not_noise_between_widths() -> None:
    variances = [width_means(*paired(7, 3, 0.1, seed)).variance for seed in range(200)]
    assert np.mean(variances) == pytest.approx(0.01, rel=0.1)  # not 1.01


def test_a_width_that_lacks_a_replicate_is_not_shifted_by_its_luck() -> None:
    x, y, r = paired(5, 3, 0.0)
    kept = ~((x == 2) & (r == 0))
    found = width_means(x[kept], y[kept], r[kept])
    np.testing.assert_allclose(np.diff(found.mean), 2, atol=1e-12)
    assert found.covariance[2, 2] > found.covariance[1, 1]


def test_replicates_that_share_no_width_are_not_paired() -> None:
    found = width_means([1, 1, 2, 2], [0.0, 2.0, 5.0, 7.0], [0, 1, 2, 3])
    np.testing.assert_allclose(found.mean, [1, 6])
    assert found.variance == pytest.approx(2.0)
    assert found.df == 2


def test_one_replicate_shows_no_noise() -> None:
    found = width_means([3.0, 1.0, 2.0], [30.0, 10.0, 20.0], [0, 0, 0])
    np.testing.assert_allclose(found.x, [1, 2, 3])
    np.testing.assert_allclose(found.mean, [10, 20, 30])
    assert found.variance is None
    np.testing.assert_allclose(found.covariance, np.eye(3), atol=1e-12)
