"""The loss of one group over the width, at each budget that the sweep holds equal."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.refusal import Refusal
from analysis.settings import FALSE_RECOMMENDATIONS
from analysis.tables.sweep_tables import matched
from analysis.verdict.budget_slope import budget_slope, off_budget
from analysis.verdict.loss_optimum import find_optimum, usable
from analysis.verdict.loss_over_width import LossCurve
from analysis.verdict.run_noise import NoiseTrend, Runs
from analysis.verdict.trained_enough import judge_training


class Budget(NamedTuple):
    """A quantity that cells of different width can have in common."""

    column: str  # of `SweepTables.trials`
    name: str


#: Budgets by their name in the sweep file. The first that a sweep has decides its verdict.
BUDGETS = {
    "params": Budget("parameters_non_embedding", "non-embedding parameters"),
    "flops": Budget("flops", "training FLOPs"),
}


@dataclass(frozen=True)
class BudgetEvidence:
    """The cells at one equal budget, and the optimum found in them."""

    matching: str  # a key of BUDGETS
    planned: pd.DataFrame  # rows of `SweepTables.trials` with one width for all layers
    used: pd.DataFrame  # of these, completed runs with a final loss
    inadmissible: tuple[float, ...]  # multipliers with a collapsed or diverged replicate
    left_out: Mapping[str, int]  # reason -> runs
    optimum: LossCurve | Refusal

    @property
    def budget(self) -> tuple[float, float]:
        """The smallest and the largest budget of the planned cells."""
        column = self.planned[BUDGETS[self.matching].column]
        return float(column.min()), float(column.max())

    def cell(self, multiplier: float) -> pd.Series:
        """Return the row of a used trial at the width nearest to `multiplier`."""
        nearest = np.argmin(np.abs(np.log(self.used["width_multiplier"] / multiplier)))
        return self.used.iloc[int(nearest)]


@dataclass(frozen=True)
class LossRule:
    """How strictly losses are judged: the settings of a sweep file's `analysis`."""

    tolerance: float  # nats per token within which losses count as equal
    false_recommendations: float = FALSE_RECOMMENDATIONS  # of groups without an optimum
    noise_nats: float | None = None  # of one run, where the replicates do not show it


def judge_losses(
    trials: pd.DataFrame,
    rule: LossRule,
    *,
    family: pd.DataFrame | None = None,
    trend: NoiseTrend | None = None,
) -> tuple[BudgetEvidence, ...]:
    """Find the loss optimum at every budget that the cells of one group hold equal.

    Args:
        trials: rows of `SweepTables.trials` of one group.
        rule: the settings of the judgement.
        family: rows of the same axes at every d_model, which show how the loss depends on the
            budget; None for `trials`.
        trend: of the noise over the width, from more groups; None to estimate it here.

    Returns:
        One judgement per budget, the deciding one first; empty without cells of equal budget.
    """
    judged = []
    for matching in BUDGETS:
        planned = matched(trials, matching).drop_duplicates("id")
        if planned.empty:
            continue
        why = planned.apply(_why_not, axis="columns")
        used, planned = planned[why == ""], planned[planned["uniform_width"]]
        left_out = Counter(reason for reason in why if reason)
        broken = planned[planned["state"].isin(["collapsed", "diverged"])]
        inadmissible = tuple(sorted({float(m) for m in broken["width_multiplier"]}))
        column = BUDGETS[matching].column
        optimum = judge_training(used).refusal or find_optimum(
            used["width_multiplier"],
            used["val_loss"],
            used["replicate"],
            tolerance=rule.tolerance,
            inadmissible=inadmissible,
            off_budget=off_budget(used[column]),
            slope=budget_slope(used, trials if family is None else family, column),
            trend=trend,
            noise_nats=rule.noise_nats,
            required_support=1 - rule.false_recommendations,
        )
        judged.append(BudgetEvidence(matching, planned, used, inadmissible, left_out, optimum))
    return tuple(judged)


def runs_of(trials: pd.DataFrame, matching: str) -> Runs:
    """Return the completed runs of one group at one equal budget, with usable losses."""
    used = matched(trials, matching).drop_duplicates("id")
    used = used[used.apply(_why_not, axis="columns") == ""] if len(used) else used
    return Runs(
        np.log(used["width_multiplier"].to_numpy(float)),
        used["val_loss"].to_numpy(float),
        used["replicate"].to_numpy(),
    )


def _why_not(trial: "pd.Series[Any]") -> str:
    """Why a run's loss cannot enter; an empty string if it can."""
    if not trial["uniform_width"]:
        return "layers of different width"
    if trial["state"] != "completed":
        return str(trial["state"])
    return "" if usable(trial["val_loss"]) else "loss not finite"
