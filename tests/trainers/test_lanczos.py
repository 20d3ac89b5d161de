"""Claims about stochastic Lanczos quadrature: planted spectra, then what matrices may do to it.

Widths are small, for which it is least accurate; trained layers and large widths are the matter
of benchmarks/lanczos_accuracy.py.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.spectrum import SpectrumMetrics, measure
from trainers.spectra import lanczos
from trainers.spectra.lanczos import EXACT_WIDTH, Quadrature, quadrature

pytestmark = pytest.mark.long


def matrix_of(eigenvalues: np.ndarray, seed: int = 0) -> Tensor:
    """Symmetric, float32, with those eigenvalues in a random frame."""
    width = len(eigenvalues)
    rng = np.random.default_rng(seed)
    frame, _ = np.linalg.qr(rng.standard_normal((width, width)))
    matrix = (frame * eigenvalues) @ frame.T
    return torch.from_numpy(((matrix + matrix.T) / 2).astype(np.float32))


def power_law(width: int, exponent: float) -> np.ndarray:
    return np.arange(1, width + 1) ** -exponent


def marchenko_pastur(width: int) -> np.ndarray:
    noise = np.random.default_rng(7).standard_normal((2 * width, width))
    return np.linalg.eigvalsh(noise.T @ noise)


def near_degenerate(width: int) -> np.ndarray:
    upper = width // 3
    return np.r_[np.linspace(10, 10.01, upper), np.linspace(1, 1.001, width - upper)]


PLANTED: dict[str, Callable[[int], np.ndarray]] = {
    "flat": np.ones,
    "power law 0.5": lambda width: power_law(width, 0.5),
    "power law 1": lambda width: power_law(width, 1.0),
    "power law 2": lambda width: power_law(width, 2.0),
    "exponential": lambda width: np.exp(-np.arange(width) / 30),
    "Marchenko-Pastur": marchenko_pastur,
    "near-degenerate": near_degenerate,
    "collapsed": lambda width: np.r_[1000.0, 0.1 * power_law(width, 0.7)[1:]],
    # a cliff within and one beyond the directions that are taken out
    "rank 60": lambda width: np.r_[power_law(60, 0.5), np.zeros(width - 60)],
    "rank 250": lambda width: np.r_[power_law(250, 0.5), np.zeros(width - 250)],
}


def measured(found: Quadrature) -> SpectrumMetrics:
    return measure(found.nodes, found.weights)


def error(found: Quadrature, exact: SpectrumMetrics) -> float:
    """Largest relative error of what the estimate is about."""
    metrics = measured(found)
    return max(
        abs(float(metrics.soft_rank / exact.soft_rank) - 1),
        abs(float(metrics.concentration - exact.concentration))
        / max(float(exact.concentration), 0.05),
        abs(float(metrics.edim / exact.edim) - 1),
    )


@pytest.fixture(scope="module", params=[400, 640])
def cases(request: pytest.FixtureRequest) -> list[tuple[str, float, float]]:
    """Kind, error and estimate of planted spectra of a width just beyond the exact, and seeds."""
    width, found = request.param, []
    for kind, values in PLANTED.items():
        matrix, exact = matrix_of(values(width)), measure(values(width))
        for seed in range(4):
            result = quadrature(matrix, seed)
            found.append((kind, error(result, exact), result.error_estimate))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANTED)
def test_metrics_are_within_a_half_per_cent(
    kind: str, cases: list[tuple[str, float, float]]
) -> None:
    errors = [case_error for name, case_error, _ in cases if name == kind]
    assert len(errors) == 4
    assert max(errors) < 0.005


@pytest.mark.slow
def test_the_estimate_bounds_the_error_in_95_of_100_cases(
    cases: list[tuple[str, float, float]],
) -> None:
    covered = [case_error <= estimate for _, case_error, estimate in cases]
    assert np.mean(covered) >= 0.95


@pytest.mark.slow
def test_the_error_estimate_is_of_the_size_of_the_error(
    cases: list[tuple[str, float, float]],
) -> None:
    assert max(estimate for _, _, estimate in cases) < 0.01
    # Where probes and not rounding decide, it is of the size of the error.
    ratios = [estimate / case_error for _, case_error, estimate in cases if case_error > 1e-4]
    assert len(ratios) > 5
    assert 1 < np.median(ratios) < 10


@pytest.mark.parametrize("kind", PLANTED)
def test_number_trace_and_hard_rank_are_exact(kind: str) -> None:
    values = PLANTED[kind](500)
    found = quadrature(matrix_of(values), seed=1)
    assert found.weights.sum() == pytest.approx(500, rel=1e-12)
    assert (found.weights >= 0).all()
    assert (found.nodes >= 0).all()
    assert measured(found).total_variance == pytest.approx(values.sum(), rel=1e-5)
    expected = values.sum() ** 2 / (values**2).sum()
    assert found.hard_rank == pytest.approx(expected, rel=1e-6)
    assert measured(found).hard_rank == pytest.approx(expected, rel=1e-5)


def test_leading_eigenvalues_are_nodes_of_one_direction_each() -> None:
    values = power_law(600, 1.0)
    found = quadrature(matrix_of(values), seed=0)
    np.testing.assert_allclose(found.nodes[:30], values[:30], rtol=1e-5)
    np.testing.assert_array_equal(found.weights[:30], 1.0)


# --- degenerate matrices -------------------------------------------------------------------


def test_a_matrix_of_zeros_has_one_node_at_zero() -> None:
    for width in (8, 500):
        found = quadrature(torch.zeros(width, width), seed=0)
        np.testing.assert_array_equal(found.nodes, [0.0])
        np.testing.assert_array_equal(found.weights, [width])
        assert (found.hard_rank, found.error_estimate) == (1.0, 0.0)
        assert measured(found).edim == 1


@pytest.mark.parametrize("rank", [1, 2, 31, 33, 128, 129])
def test_equal_directions_of_many_have_their_number_as_rank(rank: int) -> None:
    width = 500
    metrics = measured(quadrature(matrix_of(np.r_[np.ones(rank), np.zeros(width - rank)]), 0))
    for name in ("hard_rank", "soft_rank", "edim"):
        assert getattr(metrics, name) == pytest.approx(rank, rel=1e-4), name
    assert metrics.concentration == pytest.approx(1 - rank / width, rel=1e-4)


def test_a_rank_one_matrix_of_exact_zeros_needs_no_random_frame() -> None:
    matrix = torch.zeros(500, 500)
    matrix[3, 3] = 5.0
    found = quadrature(matrix, seed=0)
    assert found.hard_rank == 1.0
    assert measured(found).soft_rank == pytest.approx(1, abs=1e-4)
    assert measured(found).total_variance == pytest.approx(5, rel=1e-6)


def test_an_identity_is_isotropic() -> None:
    metrics = measured(quadrature(torch.eye(700), seed=0))
    assert metrics.hard_rank == pytest.approx(700, rel=1e-6)
    assert metrics.edim == pytest.approx(700, rel=1e-5)
    assert metrics.concentration == pytest.approx(0, abs=1e-4)


def test_a_cluster_larger_than_the_deflation_is_sampled() -> None:
    values = np.r_[np.full(200, 1000.0), np.ones(400)]
    found = quadrature(matrix_of(values), seed=0)
    assert error(found, measure(values)) < 1e-3


@pytest.mark.parametrize("width", [1, 2, 65, EXACT_WIDTH])
def test_a_small_matrix_has_all_its_eigenvalues(width: int) -> None:
    values = power_law(width, 0.8)
    found = quadrature(matrix_of(values), seed=0)
    np.testing.assert_allclose(found.nodes, values, rtol=1e-4)
    np.testing.assert_array_equal(found.weights, np.ones(width))
    assert found.error_estimate == 0


def test_the_first_width_that_is_sampled_is_hardly_worse() -> None:
    values = power_law(EXACT_WIDTH + 1, 0.8)
    found = quadrature(matrix_of(values), seed=0)
    assert len(found.nodes) > len(values)  # as a sample has
    assert error(found, measure(values)) < 1e-3


# --- what must change nothing --------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-16, 1e-8, 1e8, 1e16])
def test_scale_changes_nothing_but_the_nodes(scale: float) -> None:
    matrix = matrix_of(power_law(450, 1.0))
    before, after = quadrature(matrix, seed=3), quadrature(matrix * scale, seed=3)
    assert after.hard_rank == pytest.approx(before.hard_rank, rel=1e-6)
    assert measured(after).total_variance == pytest.approx(
        scale * float(measured(before).total_variance), rel=1e-6
    )
    for name in ("soft_rank", "concentration", "edim", "top1_share", "top10_share"):
        expected = float(getattr(measured(before), name))
        assert getattr(measured(after), name) == pytest.approx(expected, rel=1e-4), name


def test_a_power_of_two_scales_the_nodes_and_changes_no_other_bit() -> None:
    matrix = matrix_of(power_law(450, 1.0))
    before, after = quadrature(matrix, seed=3), quadrature(matrix * 2.0**20, seed=3)
    np.testing.assert_array_equal(after.nodes, before.nodes * 2.0**20)
    np.testing.assert_array_equal(after.weights, before.weights)
    assert after.error_estimate == before.error_estimate


@pytest.mark.parametrize("frame", ["diagonal", "random 1", "random 2"])
def test_the_frame_of_the_eigenvectors_does_not_matter(frame: str) -> None:
    values = power_law(500, 0.7)
    if frame == "diagonal":
        matrix = torch.diag(torch.from_numpy(values)).float()
    else:
        matrix = matrix_of(values, seed=int(frame[-1]))
    found = quadrature(matrix, seed=0)
    assert error(found, measure(values)) <= max(found.error_estimate, 1e-3)


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    matrix = matrix_of(power_law(450, 0.7))
    first, again, other = (quadrature(matrix, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.nodes, again.nodes)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert first.error_estimate == again.error_estimate
    assert not np.array_equal(first.nodes, other.nodes)


def test_autocast_and_the_global_generator_neither_matter_nor_change() -> None:
    matrix = matrix_of(power_law(450, 0.7))
    plain = quadrature(matrix, seed=5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = quadrature(matrix, seed=5)
    np.testing.assert_array_equal(rounded.nodes, plain.nodes)
    np.testing.assert_array_equal(rounded.weights, plain.weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_covariance_is_left_as_it_was_and_no_graph_is_made() -> None:
    matrix = matrix_of(power_law(450, 0.7)).requires_grad_()
    before = matrix.detach().clone()
    quadrature(matrix, seed=0)
    assert torch.equal(matrix.detach(), before)
    assert matrix.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nodes_and_weights_are_float64_for_any_input_type(dtype: torch.dtype) -> None:
    for width in (50, 450):
        found = quadrature(matrix_of(power_law(width, 0.7)).to(dtype), seed=0)
        assert found.nodes.dtype == found.weights.dtype == np.float64


# --- what is no covariance -----------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_is_refused(bad: float) -> None:
    matrix = torch.eye(450)
    matrix[3, 5] = matrix[5, 3] = bad
    with pytest.raises(ValueError, match="450"):
        quadrature(matrix, seed=0)


@pytest.mark.parametrize("width", [50, 450])
@pytest.mark.parametrize("lowest", [-0.5, -0.01])
def test_a_materially_negative_eigenvalue_is_refused(width: int, lowest: float) -> None:
    for rest in (1.0, 0.0):
        values = np.r_[10.0, np.full(width - 2, rest), 10 * lowest]
        with pytest.raises(ValueError, match=r"eigenvalue -|trace -"):
            quadrature(matrix_of(values), seed=0)


def test_a_negative_trace_is_no_covariance() -> None:
    with pytest.raises(ValueError, match="trace -450"):
        quadrature(-torch.eye(450), seed=0)


def test_rounding_below_zero_is_clamped() -> None:
    values = np.r_[power_law(300, 0.5), np.full(150, -1e-6)]
    found = quadrature(matrix_of(values), seed=0)
    assert (found.nodes >= 0).all()
    assert error(found, measure(values)) < 1e-3


# --- calibration ---------------------------------------------------------------------------


def test_a_tilt_reaches_the_moments_and_keeps_weights_positive() -> None:
    rng = np.random.default_rng(0)
    nodes, weights = rng.gamma(0.3, size=200), rng.uniform(size=200)
    weights /= weights.sum()
    mean = 1.1 * float(weights @ nodes)
    mean_square = 1.3 * float(weights @ nodes**2)
    tilted = lanczos._tilted(weights, nodes, mean, mean_square)
    assert (tilted > 0).all()
    for order, moment in enumerate((1.0, mean, mean_square)):
        assert tilted @ nodes**order == pytest.approx(moment, rel=1e-6)


def test_two_clusters_get_the_one_proportion_that_they_can_have() -> None:
    rng = np.random.default_rng(0)
    nodes = np.r_[np.zeros(50), np.ones(50)] + 1e-7 * rng.standard_normal(100)
    weights = np.full(100, 0.01)
    tilted = lanczos._tilted(weights, nodes, 0.2, 0.2 + 1e-7)
    assert tilted[50:].sum() == pytest.approx(0.2, rel=1e-5)
    assert tilted[50:].max() < 1.1 * tilted[50:].min()


@pytest.mark.parametrize("mean_square", [0.5, 40.0])
def test_moments_that_no_weights_have_leave_number_and_trace_exact(mean_square: float) -> None:
    nodes, weights = np.array([[0.5, 1.0, 2.0]]), np.array([[1.0, 1.0, 1.0]])
    scaled, tilted = lanczos._calibrated(
        nodes, weights, np.ones(1), np.array([30.0, 30.0, 30 * mean_square])
    )
    assert tilted.sum() == pytest.approx(30, rel=1e-12)
    assert tilted @ scaled == pytest.approx(30, rel=1e-12)
    assert (tilted >= 0).all()
