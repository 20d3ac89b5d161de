"""What the losses of one group say, at each budget that the sweep held equal."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.loss_optimum import LossCurve, Unfitted, find_optimum
from analysis.table import holding

#: What is held equal, the first that a sweep has deciding the headline; its column, and its name.
BUDGETS = {
    "params": ("parameters_non_embedding", "non-embedding parameters"),
    "flops": ("flops", "training FLOPs"),
}
#: Nats per token within which a loss counts as equal, where the sweep file does not say.
TOLERANCE_NATS = 0.01


@dataclass(frozen=True)
class BudgetEvidence:
    """The loss against the width at one equal budget."""

    hold: str  # a key of BUDGETS
    planned: pd.DataFrame  # rows of `SweepTables.trials`
    used: pd.DataFrame  # completed, with a final loss
    inadmissible: tuple[float, ...]  # multipliers with a collapsed or diverged replicate
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
        planned = holding(trials, hold)
        planned = planned[planned["uniform_width"]]
        if planned.empty:
            continue
        ended = planned[planned["state"] == "completed"]
        used = ended[np.isfinite(ended["val_loss"])]
        broken = planned[planned["state"].isin(["collapsed", "diverged"])]
        inadmissible = tuple(sorted({float(m) for m in broken["width_multiplier"]}))
        optimum = find_optimum(
            used["width_multiplier"],
            used["val_loss"],
            used["replicate"],
            tolerance=tolerance,
            inadmissible=inadmissible,
        )
        judged.append(BudgetEvidence(hold, planned, used, inadmissible, optimum))
    return tuple(judged)
