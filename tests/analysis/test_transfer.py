"""Claims about optima carried to other sizes: the interval is honest, or there is none."""

import numpy as np
import pytest

from analysis.verdict.transfer import SizeOptimum, Target, Transfer, transfer

TARGET = Target(params=1e9, tokens=2e10)
NORMAL = 1.645


def size(parameters: float, optimum: float, error: float = 0.05) -> SizeOptimum:
    bounds = (optimum * np.exp(-NORMAL * error), optimum * np.exp(NORMAL * error))
    return SizeOptimum(parameters, 20 * parameters, optimum, bounds)


def carried(*sizes: SizeOptimum, refused: int = 0, target: Target = TARGET) -> Transfer:
    return transfer({"norm": "pre"}, "pre", sizes, refused, target)


def test_a_power_law_of_the_size_is_followed_to_the_target() -> None:
    found = carried(*(size(n, 4 * (n / 1e8) ** -0.1) for n in (1e6, 1e7, 1e8)))
    assert found.exponent == pytest.approx(-0.1)
    assert found.width_multiplier == pytest.approx(4 * 10**-0.1)
    assert "10 times" in found.sentence
    assert found.interval is not None
    assert found.interval[0] < 4 * 10**-0.1 < found.interval[1]


def test_sizes_that_lie_on_a_line_by_luck_leave_the_error_of_each() -> None:
    sure, unsure = (
        carried(*(size(n, 3.0, error) for n in (1e6, 1e7, 1e8))) for error in (0.02, 0.2)
    )
    assert sure.interval is not None
    assert unsure.interval is not None
    # At one decade beyond three: own error and leverage 1 + 1/3 + 2^2/2 of a variance each.
    expected = 0.2 * NORMAL * np.sqrt(1 + 1 / 3 + 2)
    assert np.log(unsure.interval[1] / 3.0) == pytest.approx(expected, rel=1e-3)
    assert np.log(sure.interval[1] / 3.0) == pytest.approx(expected / 10, rel=1e-3)


@pytest.mark.parametrize("count", [3, 5])
def test_the_prediction_interval_covers_nine_times_in_ten(count: int) -> None:
    rng = np.random.default_rng(count)
    n = np.geomspace(1e6, 1e8, count)
    covered = 0
    for _ in range(400):
        scatter, error = 0.1 * rng.standard_normal(count + 1), 0.05 * rng.standard_normal(count)
        optima = np.exp(1 + 0.05 * np.log(n / 1e7) + scatter[:-1] + error)
        found = carried(*(size(a, b) for a, b in zip(n, optima, strict=True)))
        truth = np.exp(1 + 0.05 * np.log(100) + scatter[-1])
        assert found.interval is not None
        covered += found.interval[0] <= truth <= found.interval[1]
    assert covered / 400 > 0.90 - 3 * np.sqrt(0.09 / 400)


def test_two_sizes_are_refused_and_more_are_asked_for() -> None:
    found = carried(size(1e6, 3), size(1e7, 3), refused=1)
    assert found.width_multiplier is None
    assert found.interval is None
    assert "has 2 (and 1 without one)" in found.sentence
    assert "grid.d_model" in found.sentence


def test_one_size_measured_three_times_is_one_size() -> None:
    found = carried(size(1e6, 3), size(1.01e6, 3.1), size(1.02e6, 2.9))
    assert found.width_multiplier is None


def test_without_any_size_there_is_an_answer_too() -> None:
    assert "has 0 (and 4 without one)" in carried(refused=4).sentence


def test_what_is_left_out_of_account_is_said() -> None:
    sizes = [size(n, 3) for n in (1e6, 1e7, 1e8)]
    assert "tokens" not in carried(*sizes).sentence.partition("predicted")[2]
    assert "not fitted" in carried(*sizes, target=Target(1e9, 1e12)).sentence
    assert "2 without " in carried(*sizes, refused=2).sentence
