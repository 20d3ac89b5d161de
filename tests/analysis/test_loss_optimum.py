"""Claims about the rule that recommends a width: seldom wrong, and strong where there is a case."""

from collections.abc import Callable

import numpy as np
import pytest

from analysis.loss_optimum import LossCurve, Unfitted, find_optimum

MULTIPLIERS = np.array([1, 1.5, 2, 2.67, 4, 5.33, 8])
Loss = Callable[[np.ndarray], np.ndarray]


def bowl(best: float, curvature: float = 0.05) -> Loss:
    return lambda m: 3.4 + curvature * (np.log(m) - np.log(best)) ** 2


def study(
    loss: Loss,
    replicates: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    widths: np.ndarray = MULTIPLIERS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    m = np.repeat(widths, replicates)
    r = np.tile(np.arange(replicates), len(widths))
    luck = 0.02 * rng.standard_normal(replicates)[r]
    return m, loss(m) + luck + noise * rng.standard_normal(len(m)), r


def judged(*args: np.ndarray, **options: object) -> LossCurve:
    found = find_optimum(*args, **{"tolerance": 0.01, **options})  # type: ignore[arg-type]
    assert isinstance(found, LossCurve)
    return found


def recommended(
    loss: Loss, replicates: int, studies: int = 200, noise: float = 0.01
) -> list[LossCurve]:
    curves = [judged(*study(loss, replicates, noise, seed)) for seed in range(studies)]
    return [curve for curve in curves if curve.recommended]


@pytest.mark.parametrize("replicates", [1, 3])
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda m: 3.4 + 0 * m, id="flat"),
        pytest.param(lambda m: 3.4 - 0.05 * np.log(m), id="falling"),
        pytest.param(bowl(8.0), id="optimum on the upper edge"),
        pytest.param(bowl(1.0), id="optimum on the lower edge"),
    ],
)
def test_no_more_than_one_study_in_twenty_recommends_where_there_is_no_case(
    loss: Loss, replicates: int
) -> None:
    wrong = len(recommended(loss, replicates)) / 200
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize(("replicates", "power"), [(1, 0.85), (3, 0.98)])
def test_a_real_optimum_is_recommended_and_its_interval_covers(
    replicates: int, power: float
) -> None:
    found = recommended(bowl(3.0), replicates)
    assert len(found) / 200 >= power
    covered = np.mean([curve.interval[0] <= 3.0 <= curve.interval[1] for curve in found])
    assert covered == pytest.approx(0.90, abs=3 * np.sqrt(0.09 / len(found)))


def test_the_bound_on_the_excess_holds_nine_times_in_ten() -> None:
    truth = 0.05 * (np.log(MULTIPLIERS) - np.log(3.0)) ** 2
    found = recommended(bowl(3.0), 3)
    for i in range(len(MULTIPLIERS)):
        held = np.mean([curve.excess_upper[i] >= truth[i] for curve in found])
        assert held > 0.90 - 4 * np.sqrt(0.09 / len(found))


def test_an_exact_bowl_gives_its_vertex_and_the_smallest_width_within_tolerance() -> None:
    curve = judged(*study(bowl(3.0)))
    assert curve.optimum == pytest.approx(3.0)
    assert curve.interval == pytest.approx((3.0, 3.0))
    # 0.05 ln(m/3)^2 < 0.01 from m = 1.92 on: 2x is the first width of the grid.
    assert curve.headline is not None
    assert curve.multiplier[curve.headline] == pytest.approx(2.0)
    assert curve.within_tolerance
    np.testing.assert_allclose(curve.excess, 0.05 * np.log(MULTIPLIERS / 3) ** 2, atol=1e-9)


def test_widths_that_cannot_be_told_apart_are_named() -> None:
    curve = judged(*study(bowl(3.0), 3, 0.005, seed=4))
    same = curve.multiplier[curve.equivalent]
    assert {2.67, 4.0} <= set(np.round(same, 2))
    assert not {1.0, 8.0} & set(np.round(same, 2))


def test_a_broken_width_is_never_chosen() -> None:
    m, loss, r = study(bowl(3.0))
    curve = judged(m, loss, r, inadmissible=[2.0])
    assert curve.headline is not None
    assert curve.multiplier[curve.headline] == pytest.approx(2.67)
    nowhere = judged(m, loss, r, inadmissible=list(MULTIPLIERS))
    assert nowhere.obstacle == "nothing admissible"
    assert not nowhere.recommended


def test_noise_beyond_the_tolerance_leaves_the_width_of_least_excess() -> None:
    curve = judged(*study(bowl(3.0, 0.2), 3, 0.01, seed=1), tolerance=1e-5)
    assert curve.recommended
    assert not curve.within_tolerance
    assert curve.headline is not None
    assert curve.multiplier[curve.headline] == pytest.approx(2.67)


def test_the_edge_is_named() -> None:
    falling = judged(*study(lambda m: 3.4 - 0.05 * np.log(m), 3, 0.002))
    assert falling.obstacle == "upper edge"
    assert "largest width, 8x" in falling.reason
    rising = judged(*study(lambda m: 3.4 + 0.05 * np.log(m), 3, 0.002))
    assert rising.obstacle == "lower edge"


def test_a_flat_loss_is_said_not_to_decide() -> None:
    curve = judged(*study(lambda m: 3.4 + 0 * m, 3, 0.001))
    assert curve.obstacle == "uncertain"
    assert "the loss does not decide between them" in curve.reason


@pytest.mark.parametrize(
    ("widths", "replicates", "fits"), [(5, 1, False), (6, 1, True), (3, 3, False), (4, 3, True)]
)
def test_as_many_widths_are_asked_for_as_the_replicates_need(
    widths: int, replicates: int, fits: bool
) -> None:
    found = find_optimum(
        *study(bowl(2.0), replicates, 0.01, widths=MULTIPLIERS[:widths]), tolerance=0.01
    )
    assert isinstance(found, LossCurve) is fits
    if isinstance(found, Unfitted):
        assert found.obstacle == "few widths"
        assert f"{widths} widths" in found.reason


def test_losses_that_are_not_finite_do_not_enter() -> None:
    m, loss, r = study(bowl(3.0))
    m, loss, r = np.append(m, 16.0), np.append(loss, np.nan), np.append(r, 0)
    assert judged(m, loss, r).multiplier[-1] == pytest.approx(8.0)
    nothing = find_optimum([1.0], [np.nan], [0], tolerance=0.01)
    assert isinstance(nothing, Unfitted)
    assert nothing.obstacle == "no losses"


def test_the_same_losses_are_judged_the_same() -> None:
    one, other = (judged(*study(bowl(3.0), 3, 0.01)) for _ in range(2))
    assert one.interval == other.interval
    assert one.support == other.support


def test_replicates_that_contradict_the_quadratic_widen_the_noise() -> None:
    m, loss, r = study(bowl(3.0), 3, 0.0005)
    kinked = loss + np.where(m == 4, 0.02, 0) - np.where(m == 2, 0.015, 0)
    curve = judged(m, kinked, r)
    assert curve.noise_from == "scatter about the quadratic"
    assert curve.lack_of_fit_p is not None
    assert curve.lack_of_fit_p < 0.01
    assert judged(m, loss, r).noise_from == "replicates"
