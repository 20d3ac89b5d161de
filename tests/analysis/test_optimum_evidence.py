"""The e-value for an optimum: seldom large without one, at any look, and large with one."""

import numpy as np
import pytest

from analysis.verdict.optimum_evidence import log_evidence

LOG_M = np.log([1, 1.5, 2, 2.67, 4, 5.33, 8])


def e_values(loss: np.ndarray, noise: float, replicates: int, studies: int = 100) -> np.ndarray:
    """ln E [studies, looks]: after one replicate, two, and so on."""
    found = np.empty((studies, replicates))
    for number in range(studies):
        rng = np.random.default_rng([number, replicates])
        x, r = np.tile(LOG_M, replicates), np.repeat(np.arange(replicates), len(LOG_M))
        y = np.tile(loss, replicates) + rng.standard_normal(replicates)[r]
        y += noise * rng.standard_normal(len(y))
        for look in range(1, replicates + 1):
            seen = r < look
            found[number, look - 1] = log_evidence(x[seen], y[seen], r[seen])
    return found


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(0 * LOG_M, id="flat"),
        pytest.param(-0.05 * LOG_M, id="falls"),
        pytest.param(0.1 * np.exp(-3 * LOG_M), id="falls and stays level"),
        pytest.param(0.01 * np.exp(LOG_M), id="rises"),
    ],
)
@pytest.mark.long
def test_without_an_optimum_it_seldom_ever_gets_large(loss: np.ndarray) -> None:
    largest = e_values(loss, 0.01, 3).max(axis=1)
    for bound in (5, 20):
        assert np.mean(largest >= np.log(bound)) <= 1 / bound + 3 * np.sqrt(1 / bound / 100)


def test_with_an_optimum_it_grows_with_every_replicate() -> None:
    found = np.median(e_values(0.05 * (LOG_M - 1) ** 2, 0.01, 3, studies=20), axis=0)
    assert found[0] < found[1] < found[2]
    assert found[2] > np.log(100)


def test_the_scale_and_the_luck_of_a_replicate_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    x, r = np.tile(LOG_M, 3), np.repeat(np.arange(3), len(LOG_M))
    y = 0.05 * (x - 1) ** 2 + 0.01 * rng.standard_normal(len(x))
    found = log_evidence(x, y, r)
    assert log_evidence(x, 7 * y + 5 * r, r) == pytest.approx(found, rel=1e-6)
    assert log_evidence(x, y, r, sd=np.full(len(x), 3.0)) == pytest.approx(found, rel=1e-6)


def test_known_noise_adds_evidence() -> None:
    x, y = LOG_M, 0.05 * (LOG_M - 1) ** 2
    y = y + 0.003 * np.array([1, -1, 1, -1, 1, -1, 1])
    alone = log_evidence(x, y, np.zeros(7))
    assert log_evidence(x, y, np.zeros(7), noise_ss=1000 * 0.003**2, noise_df=1000) > alone


def test_two_widths_and_exact_copies_say_nothing() -> None:
    assert log_evidence([0, 0, 1, 1], [1.0, 1.1, 1.2, 1.3], [0, 1, 0, 1]) == 0
    assert log_evidence(LOG_M, np.full(7, 3.0), np.zeros(7)) == 0
