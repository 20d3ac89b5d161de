"""The slope of the loss over the budget, by which losses at slightly unequal budgets are compared.

d_model and D are whole numbers, so cells of "equal" parameters miss the budget by up to some 2 %.
The loss falls as a model grows, so a miss of 2 % moves a loss by 0.002 to 0.01 nats: as much as
widths near an optimum differ by. Cells at a fixed d_model have the widths of those at equal budget
with other budgets, and show the slope.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.replicates import Floats

#: Cells whose ln budget is farther from the common one do not enter: the slope changes with size.
NEAR = 1.0
#: Degrees of freedom that the estimate of a slope needs.
FEWEST_DF = 3
#: Budgets this close together, relative to the largest, need no slope.
SAME_BUDGET = 1e-3
#: Nats per unit of ln budget where a sweep cannot show its own, and the standard error. Models of
#: 1e5 to 1e9 parameters lose 0.1 to 0.3 nats per e-fold of parameters (arXiv 2001.08361 for large
#: models; docs/experiments.md for small ones).
ASSUMED, ASSUMED_ERROR = -0.2, 0.1


@dataclass(frozen=True)
class BudgetSlope:
    """d loss / d ln budget at one width."""

    nats: float  # per unit of ln budget
    error: float  # its standard error
    source: str  # where it is from, in words; empty if losses are compared as they are

    @property
    def applied(self) -> bool:
        """Whether losses are moved."""
        return bool(self.source)


#: Losses are compared as they are.
NO_SLOPE = BudgetSlope(0.0, 0.0, "")


def off_budget(budgets: pd.Series) -> Floats:
    """Return [n] ln of each budget over their median; 0 where a budget is unknown."""
    known = np.log(budgets.to_numpy(float))
    off = known - np.nanmedian(known) if np.isfinite(known).any() else known
    return np.where(np.isfinite(off), off, 0.0)


def budget_slope(used: pd.DataFrame, family: pd.DataFrame, column: str) -> BudgetSlope:
    """Estimate the slope from cells of the same widths at other budgets.

    The loss of all cells is fitted with a cubic in ln m, an effect per replicate and a straight
    line in ln budget, by least squares.

    Args:
        used: completed trials at the equal budget.
        family: trials of the same axes at any budget, the used ones among them.
        column: the budget's column in both.

    Returns:
        The slope; NO_SLOPE where the budgets are the same; the assumed one where nothing shows it.
    """
    off = off_budget(used[column])
    if not len(off) or np.ptp(off) <= SAME_BUDGET:
        return NO_SLOPE
    at = float(np.nanmedian(np.log(used[column])))
    ended = family[(family["state"] == "completed") & family["uniform_width"]].drop_duplicates("id")
    x, y = np.log(ended[column].to_numpy(float)) - at, ended["val_loss"].to_numpy(float)
    log_m = np.log(ended["width_multiplier"].to_numpy(float))
    good = np.isfinite(x) & (np.abs(x) <= NEAR) & np.isfinite(y) & np.isfinite(log_m)
    x, y, log_m = x[good], y[good], log_m[good]
    _, of = np.unique(ended["replicate"].to_numpy()[good], return_inverse=True)
    assumed = BudgetSlope(ASSUMED, ASSUMED_ERROR, "assumed: no cells at other budgets show it")
    if not len(x):
        return assumed
    curve = np.vander(log_m - log_m.mean(), 4)[:, :3]
    design = np.hstack([x[:, None], curve, np.eye(int(of.max()) + 1)[of]])
    rank = int(np.linalg.matrix_rank(design))
    # The slope is seen only if ln budget is not a function of width and replicate.
    others = design[:, 1:]
    alone = x - others @ (np.linalg.pinv(others) @ x)
    df = len(x) - rank
    if df < FEWEST_DF or alone @ alone <= len(used) * np.var(off) * 4:
        return assumed
    left = y - design @ (np.linalg.pinv(design) @ y)
    slope = float(alone @ y / (alone @ alone))
    error = float(np.sqrt(left @ left / df / (alone @ alone)))
    return BudgetSlope(slope, error, f"measured on {len(x)} cells of this sweep")
