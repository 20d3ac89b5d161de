"""The slope of the loss over the budget, from cells of the same widths at other budgets."""

import numpy as np
import pandas as pd
import pytest

from analysis.verdict.budget_slope import ASSUMED, ASSUMED_ERROR, NO_SLOPE, budget_slope, off_budget

MULTIPLIERS = np.array([1, 1.5, 2, 2.67, 4, 5.33, 8])
COLUMN = "parameters_non_embedding"


def cells(slope: float, at: np.ndarray, holds: str, noise: float, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    m, r = np.tile(MULTIPLIERS, 3), np.repeat(np.arange(3), len(MULTIPLIERS))
    budgets = np.tile(at, 3)
    loss = 3.4 + 0.05 * np.log(m / 2.83) ** 2 + 0.02 * r + slope * np.log(budgets / 1e6)
    return pd.DataFrame(
        {
            "id": [f"{holds}-{i}" for i in range(len(m))],
            "state": "completed",
            "uniform_width": True,
            "width_multiplier": m,
            "replicate": r,
            COLUMN: budgets,
            "val_loss": loss + noise * rng.standard_normal(len(m)),
        }
    )


MISSED = 1e6 * (1 + 0.02 * np.array([-1, 0.5, 1, 0.2, 0, -0.6, 1]))
FREE = 1e6 * (4 + 3 * MULTIPLIERS) / 16


def test_cells_at_other_budgets_show_the_slope_and_its_error() -> None:
    used = cells(-0.2, MISSED, "params", 0.003)
    family = pd.concat([used, cells(-0.2, FREE, "none", 0.003, seed=1)])
    found = budget_slope(used, family, COLUMN)
    assert found.nats == pytest.approx(-0.2, abs=4 * found.error)
    assert 0 < found.error < 0.01
    assert "42 cells" in found.source


def test_the_error_is_that_of_repeated_sweeps() -> None:
    deviations = []
    for seed in range(100):
        used = cells(-0.2, MISSED, "params", 0.01, seed)
        family = pd.concat([used, cells(-0.2, FREE, "none", 0.01, seed + 1000)])
        found = budget_slope(used, family, COLUMN)
        deviations.append((found.nats + 0.2) / found.error)
    assert np.std(deviations) == pytest.approx(1, abs=0.3)


def test_a_sweep_of_one_budget_alone_cannot_show_it() -> None:
    used = cells(-0.2, MISSED, "params", 0.003)
    found = budget_slope(used, used, COLUMN)
    assert (found.nats, found.error) == (ASSUMED, ASSUMED_ERROR)
    assert "assumed" in found.source


def test_equal_budgets_need_none() -> None:
    used = cells(-0.2, np.full(7, 1e6), "params", 0.003)
    assert budget_slope(used, used, COLUMN) == NO_SLOPE
    np.testing.assert_array_equal(off_budget(used[COLUMN]), 0)


def test_an_unknown_budget_is_not_moved() -> None:
    off = off_budget(pd.Series([1e6, np.nan, 2e6, 1e6]))
    assert off[1] == 0
    assert off[2] == pytest.approx(np.log(2))
