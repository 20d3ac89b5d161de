"""Claims about losses in two bunches: found where the width does not explain them, else not."""

import numpy as np
import pytest

from analysis.verdict.bunches import convex_fit, find_bunches

MULTIPLIERS = np.array([1, 1.5, 2.67, 4, 5.33, 8])
#: Whether each of six widths is in the upper bunch.
ALTERNATING, STEP = [1, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]


def losses(upper: list[int], distance: float = 0.6, noise: float = 0.02) -> np.ndarray:
    shock = np.random.default_rng(4).standard_normal(len(upper))
    return 4.4 + distance * np.array(upper) + noise * shock


@pytest.mark.parametrize("upper", [ALTERNATING, STEP])
def test_three_widths_near_5_and_three_near_4_4_are_two_bunches(upper: list[int]) -> None:
    found = find_bunches(MULTIPLIERS, losses(upper))
    assert found is not None
    assert found.upper.tolist() == [bool(flag) for flag in upper]
    assert found.distance == pytest.approx(0.6, abs=0.03)
    assert found.p < 0.02


@pytest.mark.parametrize(
    "loss",
    [
        4.4 + 0.3 * MULTIPLIERS**-1.0,
        4.4 + 3.0 * MULTIPLIERS**-3.0,
        4.4 + 0.3 * np.log(MULTIPLIERS / 2.8) ** 2,
        4.4 + 0.05 * MULTIPLIERS,
        4.4 + 0 * MULTIPLIERS,
    ],
    ids=["falls", "falls steeply", "bowl", "rises", "flat"],
)
@pytest.mark.parametrize("replicates", [1, 3])
def test_a_loss_that_the_width_explains_is_not(loss: np.ndarray, replicates: int) -> None:
    noise = 0.02 * np.random.default_rng(5).standard_normal(6 * replicates)
    assert (
        find_bunches(np.repeat(MULTIPLIERS, replicates), np.repeat(loss, replicates) + noise)
        is None
    )


def test_one_run_that_is_off_is_no_bunch() -> None:
    loss = losses([0, 0, 0, 1, 0, 0])
    assert find_bunches(MULTIPLIERS, loss) is None


def test_replicates_of_one_width_that_are_off_are_no_bunch() -> None:
    m = np.repeat(MULTIPLIERS, 3)
    assert find_bunches(m, losses([0] * 9 + [1] * 3 + [0] * 6)) is None


def test_bunches_that_are_near_or_few_are_not_told() -> None:
    assert find_bunches(MULTIPLIERS, losses(ALTERNATING, distance=0.05, noise=0.001)) is None
    assert find_bunches(MULTIPLIERS[:5], losses(ALTERNATING)[:5]) is None
    assert find_bunches([], []) is None


def test_the_order_of_the_runs_does_not_matter() -> None:
    loss, order = losses(ALTERNATING), np.array([3, 0, 5, 1, 4, 2])
    found, other = find_bunches(MULTIPLIERS, loss), find_bunches(MULTIPLIERS[order], loss[order])
    assert found is not None
    assert other is not None
    assert other.upper.tolist() == found.upper[order].tolist()
    assert other.unexplained == pytest.approx(found.unexplained)


def test_a_convex_curve_is_its_own_convex_fit_and_a_peak_becomes_a_line() -> None:
    x = np.log(MULTIPLIERS)
    assert convex_fit(x, x**2) == pytest.approx(x**2, abs=1e-9)
    line = np.polyval(np.polyfit(x, -(x**2), 1), x)
    assert convex_fit(x, -(x**2)) == pytest.approx(line, abs=1e-9)
