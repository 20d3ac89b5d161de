"""Claims about the metrics of a spectrum: closed forms first, then what holds for any spectrum."""

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from analysis.spectrum import (
    SpectrumMetrics,
    expand,
    js_divergence,
    measure,
    normalised,
    renyi_rank,
    sampling_status,
)
from trialstore.records import SPECTRUM_COLUMNS

# Values over fourteen orders of magnitude, and exact zeros.
eigenvalue = st.one_of(st.just(0.0), st.floats(1e-7, 1e7))
spectra = arrays(np.float64, st.integers(1, 60), elements=eigenvalue)


@st.composite
def blocks(
    draw: st.DrawFn, multiplicities: st.SearchStrategy[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and as many multiplicities that add up to a direction or more."""
    count = draw(st.integers(1, 12))
    nodes = draw(arrays(np.float64, count, elements=eigenvalue))
    weights = draw(
        arrays(np.float64, count, elements=multiplicities).filter(lambda w: w.sum() >= 1)
    )
    return nodes, weights


whole = st.integers(0, 9).map(float)
fractional = st.floats(0, 9, allow_subnormal=False)


def test_metrics_are_the_columns_of_the_record() -> None:
    assert tuple(field.name for field in fields(SpectrumMetrics)) == SPECTRUM_COLUMNS


@pytest.mark.parametrize("width", [1, 2, 7, 64, 1000])
def test_an_isotropic_covariance_uses_every_direction(width: int) -> None:
    found = measure(np.full(width, 3.7))
    for rank in (found.hard_rank, found.soft_rank, found.edim):
        assert rank == pytest.approx(width, rel=1e-12)
    assert found.concentration == pytest.approx(0, abs=1e-12)
    assert found.sui == pytest.approx(1)
    assert found.total_variance == pytest.approx(3.7 * width)


@pytest.mark.parametrize("width", [2, 7, 64, 1000])
def test_a_rank_one_spectrum_has_rank_one_at_every_width(width: int) -> None:
    found = measure(np.eye(width)[3 % width] * 5.0)
    for rank in (found.hard_rank, found.soft_rank, found.edim):
        assert rank == 1.0
    assert found.concentration == pytest.approx((width - 1) / width)
    assert found.top1_share == 1.0
    assert found.sui == 0.0


def test_k_equal_directions_of_many_have_rank_k() -> None:
    width, k = 200, 30
    found = measure(np.r_[np.zeros(width - k), np.ones(k)])
    assert found.hard_rank == pytest.approx(k)
    assert found.soft_rank == pytest.approx(k)
    assert found.concentration == pytest.approx(1 - k / width)
    assert found.top10_share == pytest.approx(10 / k)
    assert found.edim == pytest.approx(k)  # both ranks agree


def test_white_noise_follows_marchenko_and_pastur() -> None:
    samples, width = 4000, 1000
    noise = np.random.default_rng(0).standard_normal((samples, width))
    found = measure(np.linalg.eigvalsh(np.cov(noise.T)))
    assert found.hard_rank == pytest.approx(width / (1 + width / samples), rel=5e-3)


def test_a_geometric_spectrum_agrees_with_its_series() -> None:
    q, width = 0.5, 60
    found = measure(q ** np.arange(width))
    assert found.hard_rank == pytest.approx((1 + q) / (1 - q))
    assert found.soft_rank == pytest.approx(4.0)  # entropy of a geometric law with q = 1/2: 2 ln 2


def test_concentration_is_the_gini_coefficient_of_the_eigenvalues() -> None:
    values = np.random.default_rng(1).gamma(0.3, size=80)
    gini = np.abs(values[:, None] - values[None, :]).sum() / (2 * len(values) * values.sum())
    assert measure(values).concentration == pytest.approx(gini)


def test_a_spectrum_of_zeros_is_fully_collapsed_and_says_so() -> None:
    found = measure(np.zeros((2, 8)))
    np.testing.assert_array_equal(found.hard_rank, [1, 1])
    np.testing.assert_array_equal(found.edim, [1, 1])
    np.testing.assert_array_equal(found.concentration, [7 / 8, 7 / 8])
    np.testing.assert_array_equal(found.total_variance, [0, 0])


@given(spectra)
def test_bounds_hold_for_every_spectrum(values: np.ndarray) -> None:
    found, width = measure(values), len(values)
    near = 1e-9
    assert 1 <= found.hard_rank <= found.soft_rank <= width
    assert 1 - near <= found.edim <= width + near
    assert 0 <= found.concentration <= (width - 1) / width + near
    assert 0 < found.top1_share <= found.top10_share <= 1
    assert found.top1_share >= 1 / found.hard_rank - near  # p_1 >= sum p^2
    assert found.hard_utilisation * width == pytest.approx(float(found.hard_rank))
    assert found.soft_utilisation * width == pytest.approx(float(found.soft_rank))
    if width > 1:
        hard = (found.hard_rank - 1) / (width - 1)
        assert hard - near <= found.sui <= 2 * hard + near
    # hard/D <= 1/(1 + 3 c^2) in the limit of large D; exactly, with c^2 D^2/(D^2 - 1).
    if width > 1:
        bound = 1 / (1 + 3 * found.concentration**2 * width**2 / (width**2 - 1))
        assert found.hard_utilisation <= bound + near


@given(spectra, st.floats(1e-8, 1e8), st.integers(0, 2**32 - 1))
def test_scale_and_order_change_nothing_but_the_variance(
    values: np.ndarray, scale: float, seed: int
) -> None:
    shuffled = np.random.default_rng(seed).permutation(values)
    before, after = measure(values), measure(shuffled * scale)
    for name in set(SPECTRUM_COLUMNS) - {"total_variance"}:
        assert getattr(after, name) == pytest.approx(float(getattr(before, name)), rel=1e-9), name
    assert after.total_variance == pytest.approx(float(before.total_variance) * scale, rel=1e-9)


@given(arrays(np.float64, (3, 2, 9), elements=eigenvalue))
def test_leading_axes_are_measured_one_by_one(values: np.ndarray) -> None:
    together = measure(values)
    for index in np.ndindex(3, 2):
        alone = measure(values[index])
        for name in SPECTRUM_COLUMNS:
            assert getattr(together, name)[index] == pytest.approx(float(getattr(alone, name)))


@given(spectra, st.floats(0, 8), st.floats(0, 8))
def test_renyi_rank_never_rises_with_the_order(values: np.ndarray, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert renyi_rank(values, high) <= renyi_rank(values, low) * (1 + 1e-9)


@given(spectra)
def test_orders_one_and_two_are_the_soft_and_the_hard_rank(values: np.ndarray) -> None:
    found = measure(values)
    assert renyi_rank(values, 2) == pytest.approx(float(found.hard_rank))
    assert renyi_rank(values, 1) == pytest.approx(float(found.soft_rank))
    assert renyi_rank(values, math.inf) == pytest.approx(1 / float(found.top1_share))
    assert renyi_rank(values, 0) == max(1, np.count_nonzero(values))
    for near_one in (1 - 1e-9, 1 + 1e-9):
        assert renyi_rank(values, near_one) == pytest.approx(float(found.soft_rank), rel=1e-6)


def test_a_negative_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"order -1 .* 0"):
        renyi_rank([1.0, 2.0], -1)


@given(arrays(np.float64, (2, 12), elements=st.floats(1e-3, 1e3)))
def test_divergence_agrees_with_scipy_and_is_symmetric(values: np.ndarray) -> None:
    a, b = values
    with np.errstate(invalid="ignore"):  # the root of a sum that rounds to less than 0
        distance = np.nan_to_num(jensenshannon(normalised(a), normalised(b)))
    assert js_divergence(a, b) == pytest.approx(distance**2, abs=1e-12)
    assert js_divergence(b, a) == pytest.approx(float(js_divergence(a, b)), abs=1e-12)
    assert js_divergence(a, 7 * a[::-1]) == pytest.approx(0, abs=1e-12)


def test_divergence_approaches_ln_two() -> None:
    one, flat = np.eye(5000)[0], np.ones(5000)
    assert math.log(2) - 0.002 < js_divergence(one, flat) <= math.log(2)


def test_spectra_of_different_widths_have_no_divergence() -> None:
    with pytest.raises(ValueError, match="3 and 4 eigenvalues"):
        js_divergence([1, 1, 1], [1, 1, 1, 1])


def test_rounding_below_zero_is_clamped_and_anything_more_is_refused() -> None:
    assert measure([1.0, 1.0, -1e-6]).hard_rank == pytest.approx(2)
    with pytest.raises(ValueError, match=r"eigenvalue -0\.01 "):
        measure([[1.0, 1.0, 1.0], [1.0, 1.0, -0.01]])
    with pytest.raises(ValueError, match="eigenvalue -2e-30 "):
        measure([-1e-30, -2e-30])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_eigenvalue_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"eigenvalue {bad} "):
        measure([1.0, bad])


def test_an_empty_spectrum_is_refused() -> None:
    with pytest.raises(ValueError, match="one eigenvalue"):
        measure(np.empty((3, 0)))


# --- nodes with multiplicities -------------------------------------------------------------


@given(blocks(whole))
def test_whole_multiplicities_are_repeated_eigenvalues(block: tuple[np.ndarray, ...]) -> None:
    nodes, weights = block
    repeated = np.repeat(nodes, weights.astype(int))
    found, expected = measure(nodes, weights), measure(repeated)
    for name in SPECTRUM_COLUMNS:
        assert getattr(found, name) == pytest.approx(
            float(getattr(expected, name)), rel=1e-9, abs=1e-9
        ), name
    for order in (0, 0.5, 1, 1.05, 2, 3, math.inf):
        assert renyi_rank(nodes, order, weights) == pytest.approx(
            float(renyi_rank(repeated, order)), rel=1e-9
        )
    np.testing.assert_allclose(expand(nodes, weights), np.sort(repeated)[::-1], rtol=1e-12)


@given(spectra)
def test_weights_of_one_are_no_weights(values: np.ndarray) -> None:
    weighted, plain = measure(values, np.ones(len(values))), measure(values)
    for name in SPECTRUM_COLUMNS:
        assert getattr(weighted, name) == pytest.approx(
            float(getattr(plain, name)), rel=1e-12, abs=1e-12
        ), name


@given(blocks(fractional), st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_order_scale_and_splitting_of_blocks_change_nothing_but_the_variance(
    block: tuple[np.ndarray, ...], seed: int, scale: float
) -> None:
    nodes, weights = block
    rng = np.random.default_rng(seed)
    part = rng.uniform(size=len(nodes))
    order = rng.permutation(2 * len(nodes))
    split = np.r_[nodes, nodes][order] * scale, np.r_[weights * part, weights * (1 - part)][order]
    before, after = measure(nodes, weights), measure(*split)
    for name in set(SPECTRUM_COLUMNS) - {"total_variance"}:
        expected = float(getattr(before, name))
        assert getattr(after, name) == pytest.approx(expected, rel=1e-8, abs=1e-9), name
    assert after.total_variance == pytest.approx(scale * float(before.total_variance), rel=1e-9)


@given(blocks(fractional))
def test_bounds_hold_for_fractional_multiplicities(block: tuple[np.ndarray, ...]) -> None:
    nodes, weights = block
    found, width = measure(nodes, weights), weights.sum()
    near = 1e-9
    assert 1 <= found.hard_rank <= found.soft_rank <= width + near
    assert 1 - near <= found.edim <= width + near
    assert 0 <= found.concentration <= 1
    assert 0 < found.top1_share <= found.top10_share <= 1
    assert found.hard_utilisation * width == pytest.approx(float(found.hard_rank))


def test_a_block_takes_part_in_the_top_share_as_far_as_it_is_needed() -> None:
    # 2.5 directions of 4, then 20 of 1: the first ten are 2.5 of the one and 7.5 of the other
    found = measure([1.0, 4.0], [20.0, 2.5])
    assert found.top1_share == pytest.approx(4 / 30)
    assert found.top10_share == pytest.approx((2.5 * 4 + 7.5) / 30)


def test_concentration_between_blocks_is_gini_of_the_whole() -> None:
    # Two values: Gini = share of the upper less its fraction of the directions.
    found = measure([5.0, 1.0], [30.5, 69.5])
    total = 30.5 * 5 + 69.5
    assert found.concentration == pytest.approx(30.5 * 5 / total - 0.305)


@pytest.mark.parametrize("nodes", [[0.0], [0.0, 0.0], [3.0, 0.0]])
def test_a_weighted_spectrum_of_zeros_is_fully_collapsed(nodes: list[float]) -> None:
    weights = [8.0] if len(nodes) == 1 else [0.0, 8.0]
    found = measure(nodes, weights)
    assert found.hard_rank == found.soft_rank == found.edim == 1
    assert found.concentration == pytest.approx(7 / 8)
    assert found.total_variance == 0
    np.testing.assert_array_equal(expand(nodes, weights), np.zeros(8))


def test_weighted_spectra_are_measured_one_by_one() -> None:
    rng = np.random.default_rng(2)
    nodes, weights = rng.gamma(0.5, size=7), rng.uniform(0, 5, size=(3, 2, 7))
    nodes_of_each = rng.gamma(0.5, size=(3, 2, 7))
    for given_nodes in (nodes, nodes_of_each):
        together = measure(given_nodes, weights)
        for index in np.ndindex(3, 2):
            alone = measure(np.broadcast_to(given_nodes, (3, 2, 7))[index], weights[index])
            for name in SPECTRUM_COLUMNS:
                assert getattr(together, name)[index] == pytest.approx(float(getattr(alone, name)))


@given(blocks(fractional))
def test_expansion_keeps_number_order_and_trace(block: tuple[np.ndarray, ...]) -> None:
    nodes, weights = block
    values = expand(nodes, weights)
    assert len(values) == round(weights.sum())
    assert (np.diff(values) <= 0).all()
    assert values.sum() == pytest.approx((nodes * weights).sum(), rel=1e-9) or values.sum() == 0


def test_weighted_spectra_diverge_as_their_expansions() -> None:
    nodes, weights = np.array([4.0, 1.0, 0.5]), np.array([2.0, 5.0, 3.0])
    flat = np.ones(10)
    repeated = np.repeat(nodes, weights.astype(int))
    assert js_divergence(expand(nodes, weights), flat) == pytest.approx(
        float(js_divergence(repeated, flat))
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -0.5], "weight -0.5"),
        ([1.0, math.nan], "weight nan"),
        ([1.0, math.inf], "weight inf"),
        ([0.25, 0.25], "weights sum to 0.5"),
        ([1.0], r"shape \(1,\) .* shape \(2,\)"),
    ],
)
def test_weights_that_are_no_multiplicities_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure([2.0, 1.0], weights)


def test_several_spectra_are_not_expanded_together() -> None:
    with pytest.raises(ValueError, match="spectrum"):
        expand(np.ones((2, 3)), np.ones((2, 3)))


def test_sampling_is_enough_from_ten_samples_a_direction() -> None:
    assert sampling_status(N=1000, D=100) == "well sampled"
    assert sampling_status(N=999, D=100) == "undersampled"
