"""Claims about curves that level off."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.fit.saturating_law import SaturatingLaw, fit_saturating_law
from analysis.refusal import Refusal

WIDTHS = np.array([64.0, 96, 128, 168, 256, 344, 512, 768])


def fitted(found: SaturatingLaw | Refusal) -> SaturatingLaw:
    assert isinstance(found, SaturatingLaw), found
    return found


@settings(max_examples=8)
@given(st.floats(1, 100), st.floats(0.3, 2.0), st.floats(0.2, 0.8), st.booleans())
@pytest.mark.long
def test_an_exact_curve_is_recovered(level: float, b: float, share: float, rises: bool) -> None:
    truth = level * share * (-1 if rises else 1) * WIDTHS[0] ** b
    found = fitted(fit_saturating_law(WIDTHS, level + truth * WIDTHS**-b))
    assert found.objective < 1e-12
    assert [found.E, found.A, found.b] == pytest.approx([level, truth, b], rel=1e-3)
    assert found.intervals["b"][0] <= found.b <= found.intervals["b"][1]


def test_a_pure_power_law_does_not_level_off() -> None:
    found = fitted(fit_saturating_law(WIDTHS, 3 * WIDTHS**0.5))
    assert found.b == pytest.approx(-0.5, abs=1e-3)
    assert any(text.startswith("b is -0.5") for text in found.warnings)


@pytest.mark.slow
def test_the_interval_of_the_level_covers_it() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(40):
        x, r = np.repeat(WIDTHS, 3), np.tile(np.arange(3), len(WIDTHS))
        y = (300 - 3000 * x**-0.7) * np.exp(0.02 * rng.standard_normal(len(x)))
        low, high = fitted(fit_saturating_law(x, y, r)).intervals["E"]
        held.append(low <= 300 <= high)
    assert np.mean(held) == pytest.approx(0.90, abs=0.11)


def test_what_cannot_be_fitted_is_refused_and_counted() -> None:
    found = fit_saturating_law([64, 64, 128, 256, 512, -1], [1.0, 2.0, np.nan, 3.0, 4.0, 5.0])
    assert isinstance(found, Refusal)
    assert "there are 3" in found.reason
    assert found.excluded == {"not finite": 1, "not positive": 1}


def test_a_level_line_has_a_right_answer_and_a_warning() -> None:
    found = fitted(fit_saturating_law(WIDTHS, np.full(len(WIDTHS), 50.0)))
    assert found.predict(WIDTHS) == pytest.approx(50)
    assert np.isnan(found.r_squared)
    assert found.warnings
