"""Runs that noise does not explain, and noise that depends on the width."""

import numpy as np
import pytest

from analysis.verdict.run_noise import NO_TREND, Runs, noise_trend, suspect_runs, unsuspected

MULTIPLIERS = np.array([1, 1.5, 2, 2.67, 4, 5.33, 8])


def runs(replicates: int = 3, noise: object = 0.01, seed: int = 0) -> Runs:
    rng = np.random.default_rng(seed)
    m = np.repeat(MULTIPLIERS, replicates)
    r = np.tile(np.arange(replicates), len(MULTIPLIERS))
    size = noise(m) if callable(noise) else noise
    loss = 3.4 + 0.1 / m + 0.02 * rng.standard_normal(replicates)[r]
    return Runs(np.log(m), loss + size * rng.standard_normal(len(m)), r)


def spoiled(found: Runs, *added: tuple[int, float]) -> Runs:
    loss = found.loss.copy()
    for index, nats in added:
        loss[index] += nats
    return Runs(found.log_m, loss, found.replicate)


@pytest.mark.parametrize("nats", [0.1, -0.1])
def test_a_run_that_is_off_is_named_with_its_deviation(nats: float) -> None:
    (suspect,) = suspect_runs(spoiled(runs(), (19, nats)))
    assert suspect.index == 19
    assert suspect.deviation == pytest.approx(nats, abs=0.04)
    assert suspect.p < 1e-3


def test_the_second_of_two_bad_runs_is_found_once_the_first_is_set_aside() -> None:
    bad = spoiled(runs(noise=0.005), (4, 0.2), (19, 0.08))
    assert {suspect.index for suspect in suspect_runs(bad)} == {4, 19}
    assert np.flatnonzero(~unsuspected(bad)).tolist() == [4, 19]


def test_noise_alone_is_accused_in_a_twentieth_of_sweeps() -> None:
    accused = np.mean([bool(suspect_runs(runs(seed=seed))) for seed in range(400)])
    assert accused < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_one_replicate_and_losses_without_noise_have_no_suspects() -> None:
    assert suspect_runs(spoiled(runs(1), (3, 0.5))) == ()
    assert suspect_runs(runs(noise=0.0)) == ()


def test_a_run_alone_at_its_width_is_not_judged() -> None:
    whole = runs()
    kept = ~np.isin(np.arange(len(whole)), [19, 20])  # one run is left at 8x
    assert suspect_runs(spoiled(whole.only(kept), (18, 0.3))) == ()


@pytest.mark.parametrize("exponent", [-3.0, 3.0])
def test_noise_that_depends_on_the_width_is_found_with_its_exponent(exponent: float) -> None:
    groups = [runs(noise=lambda m: 0.01 * m ** (exponent / 2), seed=seed) for seed in range(6)]
    trend = noise_trend(groups)
    assert trend.established
    assert trend.exponent == pytest.approx(exponent, abs=0.8)
    sd = trend.sd(np.log(MULTIPLIERS))
    assert sd[-1] / sd[0] == pytest.approx(8 ** (trend.exponent / 2))


def test_equal_noise_has_a_trend_in_a_twentieth_of_sweeps() -> None:
    found = np.mean([noise_trend([runs(seed=seed)]).established for seed in range(300)])
    assert found < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_without_replicates_there_is_no_trend() -> None:
    assert noise_trend([runs(1)]) == NO_TREND
    assert noise_trend([]) == NO_TREND
    np.testing.assert_array_equal(NO_TREND.sd(np.log(MULTIPLIERS)), 1)
