"""Claims about learning rates tuned away: the planted best rate is found, edges are flagged."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.verdict.tuned_rate import TunedTrials, TunedWidth, is_tunable, tune

RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def trials(best_rate: float = 3e-3, luck: tuple[float, ...] = (0.0, 0.05)) -> pd.DataFrame:
    """Two widths; the loss is a parabola in ln lr about `best_rate`, and replicates have luck."""
    rows: list[dict[str, Any]] = []
    for m, d_model in ((2.0, 64), (4.0, 48)):
        for r, own in enumerate(luck):
            rows += [
                {
                    "id": f"{m}-{r}-{rate}",
                    "state": "completed",
                    "holds": ("params",),
                    "D": m * d_model,
                    "d_model": float(d_model),
                    "base_d_model": 64.0,
                    "width_multiplier": m,
                    "typed_multiplier": m,
                    "replicate": r,
                    "learning_rate": rate,
                    "val_loss": 3.4 + m / 100 + own + 0.1 * np.log(rate / best_rate) ** 2,
                }
                for rate in RATES
            ]
    return pd.DataFrame(rows)


def of(tuned: TunedTrials, multiplier: float) -> tuple[TunedWidth, pd.DataFrame]:
    (width,) = [w for w in tuned.widths if w.width_multiplier == multiplier]
    return width, tuned.trials[tuned.trials["width_multiplier"] == multiplier]


def test_a_parabola_in_the_log_rate_gives_its_minimum() -> None:
    width, rows = of(tune(trials()), 2.0)
    assert width.learning_rate == pytest.approx(3e-3)
    assert width.edge is None
    assert rows["val_loss"].to_numpy() == pytest.approx([3.42, 3.47])
    assert rows["replicate"].tolist() == [0, 1]


@pytest.mark.parametrize(("best", "edge", "rate"), [(1e-4, "smallest", 1e-3), (1, "largest", 8e-3)])
def test_a_best_rate_at_the_edge_is_flagged_and_its_own_loss_kept(
    best: float, edge: str, rate: float
) -> None:
    frame = trials(best)
    width, rows = of(tune(frame), 4.0)
    assert width.edge == edge
    assert width.learning_rate == rate
    at = frame[(frame["learning_rate"] == rate) & (frame["width_multiplier"] == 4)]
    np.testing.assert_array_equal(rows["val_loss"], at["val_loss"])


def test_noise_of_one_replicate_does_not_choose_its_own_rate() -> None:
    frame = trials()
    odd = (frame["replicate"] == 1) & (frame["learning_rate"] == 4e-3)
    moved = frame.assign(val_loss=frame["val_loss"] - 0.02 * odd)
    width, rows = of(tune(moved), 2.0)
    first = 3.4 + 0.02 + 0.1 * np.log(width.learning_rate / 3e-3) ** 2
    assert rows["val_loss"].iloc[0] == pytest.approx(first)


@pytest.mark.parametrize("best", [2.5e-3, 5e-3])
def test_rates_at_which_it_diverges_cost_a_width_nothing_but_those_rates(best: float) -> None:
    frame = trials(best)
    fast = frame["learning_rate"] == 8e-3
    frame = frame.assign(
        state=np.where(fast, "diverged", frame["state"]),
        val_loss=frame["val_loss"].where(~fast),
    )
    width, rows = of(tune(frame), 2.0)
    assert width.rates == (1e-3, 2e-3, 4e-3)
    assert width.left_out == 2
    assert width.learning_rate == pytest.approx(min(best, 4e-3))
    assert width.edge is None  # what lies beyond is known
    assert set(rows["state"]) == {"completed"}


def test_a_width_that_nothing_completed_stays_broken() -> None:
    frame = trials()
    broken = frame["width_multiplier"] == 4
    frame = frame.assign(state=np.where(broken, "collapsed", frame["state"]))
    tuned = tune(frame)
    assert [width.width_multiplier for width in tuned.widths] == [2.0]
    assert (
        tuned.trials[tuned.trials["width_multiplier"] == 4]["state"].tolist() == ["collapsed"] * 2
    )


def test_a_replicate_that_lacks_one_rate_takes_it_from_the_others() -> None:
    frame = trials().drop(index=0)  # 2x, replicate 0, 1e-3
    width, rows = of(tune(frame), 2.0)
    assert width.rates == (2e-3, 4e-3, 8e-3)
    assert width.left_out == 1
    assert len(rows) == 2


def test_two_rates_are_not_tuned() -> None:
    frame = trials()
    assert is_tunable(frame)
    assert not is_tunable(frame[frame["learning_rate"] < 3e-3])
    assert not is_tunable(frame.drop(columns="learning_rate"))


def test_rank_laws_are_at_the_rate_of_the_grid_nearest_to_the_tuned_ones() -> None:
    assert tune(trials(3.5e-3)).common_rate == 4e-3
