"""What the losses of one group say, at each budget that the sweep held equal."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables.sweep_tables import holding
from analysis.verdict.loss_optimum import LossCurve, Unfitted, find_optimum, usable

#: What is held equal, the first that a sweep has deciding the headline; its column, and its name.
BUDGETS = {
    "params": ("parameters_non_embedding", "non-embedding parameters"),
    "flops": ("flops", "training FLOPs"),
}


@dataclass(frozen=True)
class BudgetEvidence:
    """The loss against the width at one equal budget."""

    hold: str  # a key of BUDGETS
    planned: pd.DataFrame  # rows of `SweepTables.trials`
    used: pd.DataFrame  # completed, with a final loss
    inadmissible: tuple[float, ...]  # multipliers with a collapsed or diverged replicate
    left_out: Mapping[str, int]  # runs that do not enter, by reason
    optimum: LossCurve | Unfitted

    @property
    def budget(self) -> tuple[float, float]:
        """Smallest and largest budget among the cells planned."""
        column = self.planned[BUDGETS[self.hold][0]]
        return float(column.min()), float(column.max())

    def cell(self, multiplier: float) -> pd.Series:
        """A used trial of this width."""
        nearest = np.argmin(np.abs(np.log(self.used["width_multiplier"] / multiplier)))
        return self.used.iloc[int(nearest)]


def judge_losses(trials: pd.DataFrame, tolerance: float) -> tuple[BudgetEvidence, ...]:
    """One judgement per budget held in a group of `SweepTables.trials`, the deciding one first."""
    judged = []
    for hold in BUDGETS:
        planned = holding(trials, hold).drop_duplicates("id")
        if planned.empty:
            continue
        why = planned.apply(_why_not, axis="columns")
        used, planned = planned[why == ""], planned[planned["uniform_width"]]
        left_out = Counter(reason for reason in why if reason)
        broken = planned[planned["state"].isin(["collapsed", "diverged"])]
        inadmissible = tuple(sorted({float(m) for m in broken["width_multiplier"]}))
        optimum = find_optimum(
            used["width_multiplier"],
            used["val_loss"],
            used["replicate"],
            tolerance=tolerance,
            inadmissible=inadmissible,
        )
        judged.append(BudgetEvidence(hold, planned, used, inadmissible, left_out, optimum))
    return tuple(judged)


def _why_not(trial: "pd.Series[Any]") -> str:
    """Why a run's loss cannot enter; empty where it does."""
    if not trial["uniform_width"]:
        return "layers of different width"
    if trial["state"] != "completed":
        return str(trial["state"])
    return "" if usable(trial["val_loss"]) else "loss not finite"
