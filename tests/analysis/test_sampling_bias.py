"""Claims about the debiased hard rank: right for Gaussian samples, absent where N is too small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.sampling_bias import debiased_hard_rank
from analysis.spectrum import measure


def measured(eigenvalues: np.ndarray, samples: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((samples, len(eigenvalues))) * np.sqrt(eigenvalues)
    return float(measure(np.linalg.eigvalsh(np.cov(drawn.T))).hard_rank)


def test_the_moments_are_unbiased_for_gaussian_samples() -> None:
    """E tr C^2 and E (tr C)^2 in closed form, put through the estimates, give the true moments."""
    for n, squares, trace in ((9, 3.0, 5.0), (63, 40.0, 40.0), (4095, 7.0, 300.0)):
        of_squares = squares * (1 + 1 / n) + trace**2 / n
        of_trace = trace**2 + 2 * squares / n
        found = debiased_hard_rank(of_trace / of_squares, n + 1, 1e9)
        assert found == pytest.approx(trace**2 / squares, rel=1e-12)


@pytest.mark.parametrize("per_width", [4, 16])
def test_the_exponent_of_a_rank_that_grows_as_d_is_one(per_width: int) -> None:
    widths = np.array([16, 32, 64, 128])
    samples = per_width * widths[-1]
    raw = np.array(
        [np.mean([measured(np.ones(d), samples, seed) for seed in range(3)]) for d in widths]
    )
    debiased = debiased_hard_rank(raw, samples, widths)
    slope = {"raw": np.polyfit(np.log(widths), np.log(raw), 1)[0]}
    slope["debiased"] = np.polyfit(np.log(widths), np.log(debiased), 1)[0]
    assert slope["raw"] < {4: 0.93, 16: 0.98}[per_width]
    assert slope["debiased"] == pytest.approx(1, abs=0.005)


def test_a_rank_of_one_stays_one_at_every_width() -> None:
    np.testing.assert_allclose(debiased_hard_rank(1.0, 500, [1, 2, 4096]), 1.0, rtol=1e-12)


@settings(max_examples=50)
@given(st.integers(3, 10**6), st.floats(0, 1), st.integers(1, 5000))
def test_it_is_never_below_the_measured_rank(samples: int, share: float, width: int) -> None:
    rank = 1 + share * (min(width, samples - 1) - 1)
    found = float(debiased_hard_rank(rank, samples, width))
    assert np.isnan(found) or found >= rank * (1 - 1e-9)


@pytest.mark.parametrize(
    ("rank", "samples", "width"),
    [
        (np.nan, 100, 8),
        (np.inf, 100, 8),
        (0.5, 100, 8),
        (1.5, 2, 8),  # one degree of freedom
        (40.0, 41, 64),  # as many directions as degrees of freedom: tr S^2 estimated as 0
        (30.0, 41, 64),  # 118 directions of 64
    ],
)
def test_without_enough_samples_there_is_no_estimate(rank: float, samples: int, width: int) -> None:
    assert np.isnan(debiased_hard_rank(rank, samples, width))


def test_a_flat_spectrum_may_scatter_about_d() -> None:
    found = [
        float(debiased_hard_rank(measured(np.ones(32), 320, seed), 320, 32)) for seed in range(20)
    ]
    assert np.isfinite(found).all()
    assert max(found) > 32
    assert np.mean(found) == pytest.approx(32, abs=0.1)
