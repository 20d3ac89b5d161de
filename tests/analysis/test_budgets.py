"""Claims about losses at budgets that were not held equal: interpolated, never extrapolated."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.refusal import Refusal
from analysis.verdict.budgets import AtBudget, at_equal_budgets
from analysis.verdict.loss_over_width import LossCurve

MULTIPLIERS = (1.0, 1.5, 2.0, 2.67, 4.0, 5.33, 8.0)


def trials(
    d_models: tuple[int, ...] = (32, 48, 64, 96, 128), best: float = 2.8, **columns: Any
) -> pd.DataFrame:
    """A bowl in ln m at equal parameters; seconds go as the parameters times 1 + m / 8."""
    rows = []
    for m in MULTIPLIERS:
        for d in d_models:
            parameters = 2 * d**2 * (4 + 2 * m)
            rows.append(
                {
                    "id": f"{m}-{d}",
                    "state": "completed",
                    "holds": ("none",),
                    "uniform_width": True,
                    "replicate": 0,
                    "d_model": float(d),
                    "typed_multiplier": m,
                    "width_multiplier": m,
                    "parameters_non_embedding": parameters,
                    "flops": 6e6 * parameters,
                    "inference_flops_per_token": 2 * parameters,
                    "seconds_training": parameters * (1 + m / 8) / 1e4,
                    "layout": "{}",
                    "val_loss": 6.4
                    - 0.25 * np.log(parameters)
                    + 0.05 * np.log(m / best) ** 2
                    + 1e-5 * np.sin(37.0 * m + d),
                    **columns,
                }
            )
    return pd.DataFrame(rows)


def answers(frame: pd.DataFrame) -> dict[str, AtBudget]:
    own = frame[frame["d_model"] == 64]
    return {found.currency: found for found in at_equal_budgets(frame, own, (), 0.01)}


def test_the_planted_optimum_is_found_at_equal_parameters() -> None:
    found = answers(trials())["params"]
    assert isinstance(found.found, LossCurve)
    assert found.found.recommended
    assert found.found.optimum == pytest.approx(2.8, rel=0.05)
    assert found.source == "interpolated over d_model"


def test_width_that_takes_time_has_its_optimum_at_narrower_layers() -> None:
    found = answers(trials())
    by_time, by_size = found["seconds"].found, found["params"].found
    assert isinstance(by_time, LossCurve)
    assert isinstance(by_size, LossCurve)
    assert by_time.optimum < 0.9 * by_size.optimum


def test_two_d_model_are_not_interpolated_and_counted() -> None:
    found = answers(trials((64, 80)))["inference"]
    assert found.source is None
    assert isinstance(found.found, Refusal)
    assert "grid.d_model" in found.sentence
    assert found.left_out == {"fewer than 3 d_model": 7}


def test_a_budget_beyond_the_cells_of_a_width_leaves_it_out() -> None:
    frame = trials((64, 66, 68))
    found = answers(frame)["params"]
    assert found.left_out["the budget lies beyond its cells"] >= 5


def test_times_of_several_layouts_are_not_compared() -> None:
    frame = trials()
    mixed = frame.assign(layout=np.where(frame["d_model"] == 96, '{"workers": 2}', "{}"))
    assert answers(mixed)["seconds"].source is None
    assert answers(mixed)["params"].source is not None


def test_runs_that_did_not_complete_do_not_enter_and_break_their_width() -> None:
    frame = trials()
    here = (frame["typed_multiplier"] == 2) & (frame["d_model"] == 96)
    found = answers(frame.assign(state=np.where(here, "diverged", frame["state"])))["params"].found
    assert isinstance(found, LossCurve)
    assert found.multiplier[~found.admissible].tolist() == [2.0]


def test_a_cost_that_no_trial_has_on_record_cannot_be_told() -> None:
    found = answers(trials(seconds_training=np.nan))["seconds"]
    assert found.budget is None
    assert found.source is None
    assert "measured training time" in found.sentence


def test_every_answer_is_plain_values() -> None:
    for found in answers(trials()).values():
        content = found.to_dict()
        assert content["sentence"] == found.sentence
        assert {type(value) for value in content.values()} <= {
            dict,
            list,
            str,
            float,
            tuple,
            type(None),
        }
