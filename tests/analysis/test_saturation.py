"""Claims about the saturation test: a plateau is found, a power law is left alone."""

import numpy as np
import pytest

from analysis.laws.saturation import Saturation, Untestable, judge_saturation

WIDTHS = np.geomspace(256, 2048, 8)


def judged(x: np.ndarray, y: np.ndarray, replicate: np.ndarray | None = None) -> Saturation:
    found = judge_saturation(x, y, replicate)
    assert isinstance(found, Saturation)
    return found


def study(
    widths: int, replicates: int, beta: float, onset: float, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    x = np.repeat(np.geomspace(256, 2048, widths), replicates)
    r = np.tile(np.arange(replicates), widths)
    wobble = np.repeat(0.02 * rng.standard_normal(widths), replicates)
    noise = wobble + 0.03 * rng.standard_normal(len(x))
    return x, np.minimum(x, onset) ** beta * np.exp(noise), r


def test_an_exact_plateau_is_found_where_it_begins() -> None:
    onset = WIDTHS[4]
    found = judged(WIDTHS, 3 * np.minimum(WIDTHS, onset) ** 0.7)
    assert found.saturates
    assert found.p < 0.001
    assert found.onset == pytest.approx(onset)
    assert found.exponent == pytest.approx(0.7)
    assert found.onset_interval == pytest.approx((onset, onset))


@pytest.mark.parametrize("beta", [-0.05, 0.0, 0.6])
def test_an_exact_power_law_has_no_plateau(beta: float) -> None:
    found = judged(WIDTHS, 3 * WIDTHS**beta)
    assert not found.saturates
    assert found.p == 1


@pytest.mark.parametrize(("widths", "replicates"), [(6, 1), (8, 3)])
@pytest.mark.parametrize("beta", [0.0, 0.6])
@pytest.mark.long
def test_no_more_than_one_power_law_of_twenty_is_rejected(
    widths: int, replicates: int, beta: float
) -> None:
    rng = np.random.default_rng(3)
    sets = 100
    rejected = sum(
        judged(*study(widths, replicates, beta, np.inf, rng)).saturates for _ in range(sets)
    )
    assert rejected / sets < 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)


@pytest.mark.parametrize(("widths", "replicates"), [(6, 1), (8, 3)])
@pytest.mark.long
def test_plateaus_are_found_and_their_onset_lies_in_its_interval(
    widths: int, replicates: int
) -> None:
    rng = np.random.default_rng(4)
    found = [judged(*study(widths, replicates, 0.6, 700.0, rng)) for _ in range(100)]
    assert np.mean([each.saturates for each in found]) > 0.95
    covered = [each.onset_interval[0] <= 700 <= each.onset_interval[1] for each in found]
    assert np.mean(covered) > 0.85


def test_it_does_not_depend_on_units_and_is_the_same_each_time() -> None:
    x, y, r = study(6, 2, 0.4, 900.0, np.random.default_rng(5))
    one, other = judged(x, y, r), judged(x * 7, y / 3, r)
    assert other.p == one.p == judged(x, y, r).p
    assert other.onset == pytest.approx(7 * one.onset)


def test_a_law_that_falls_can_end_as_well() -> None:
    assert judged(WIDTHS, np.minimum(WIDTHS, WIDTHS[3]) ** -0.05).saturates


def test_a_law_that_steepens_is_no_plateau() -> None:
    assert not judged(WIDTHS, np.exp(0.2 * np.log(WIDTHS / 256) ** 2)).saturates


def test_five_widths_are_not_testable_and_what_was_left_out_is_counted() -> None:
    y = [*(WIDTHS[:5] ** 0.5), np.nan, 0.0, -1.0]
    found = judge_saturation(WIDTHS, y)
    assert isinstance(found, Untestable)
    assert "not testable" in found.reason

    assert " 5" in found.reason
    assert found.excluded == {"not finite": 1, "not positive": 2}


def test_no_points_and_very_many_widths_are_not_testable() -> None:
    assert isinstance(judge_saturation([], []), Untestable)
    many = np.geomspace(1, 100, 1000)
    assert isinstance(judge_saturation(many, many), Untestable)
