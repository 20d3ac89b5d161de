"""Pair groups at equal parameters, training FLOPs or time, where equal widths differ in it.

The baseline's trials at fixed d_model are taken as they are. The loss of the other group at the
same cost is interpolated over its widths, replicate by replicate, with a monotone cubic in the
logarithm of the cost. Nothing is extrapolated. The error of the interpolation is not in the
interval.
"""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from analysis.refusal import Refusal
from analysis.tables.sweep_tables import matched
from analysis.verdict.budgets import MINIMUM_SIZES
from analysis.verdict.loss_optimum import usable
from analysis.verdict.paired_cells import BROKEN, COSTS, SAME_TOKENS, PairedCells, keyed

_BEYOND = "its cost is beyond the widths of the other group"
_FEW = f"the other group has fewer than {MINIMUM_SIZES} widths of this replicate"


def pair_at_equal_cost(
    baseline: pd.DataFrame, other: pd.DataFrame, cost: str
) -> PairedCells | Refusal:
    """Pair every trial of the baseline with the other group at the same cost.

    Args:
        baseline: Rows of `SweepTables.trials` of one group.
        other: Those of the other group.
        cost: A key of COSTS.

    Returns:
        The pairs, whose width is that of the baseline; a refusal where there are none.
    """
    column = COSTS[cost][0]
    sides = [
        keyed(matched(trials, "none").drop_duplicates("id"), "none") for trials in (baseline, other)
    ]
    done = [side[(side["state"] == "completed") & usable(side["val_loss"])] for side in sides]
    one, two = (_with_cost(side, column) for side in done)
    if cost == "seconds" and pd.concat([one["layout"], two["layout"]]).nunique() > 1:
        return Refusal("the trials ran in several layouts, so their times are not comparable")
    tokens = pd.concat([one["tokens"], two["tokens"]]).dropna()
    if len(tokens) and tokens.max() / tokens.min() > 1 + SAME_TOKENS:
        return Refusal("the training tokens differ")
    curves = {replicate: _Curve(cells) for replicate, cells in two.groupby("replicate")}
    rows: list[dict[str, Any]] = []
    why: Counter[str] = Counter()
    why["no completed trial"] = len(sides[0]) - len(one)
    for _, trial in one.iterrows():
        curve = curves.get(trial["replicate"])
        if curve is None or curve.points < MINIMUM_SIZES:
            why[_FEW] += 1
        elif not curve.low <= trial["cost"] <= curve.high:
            why[_BEYOND] += 1
        else:
            rows.append(
                {name: trial[name] for name in ("width", "replicate", "D", "d_model")}
                | {"width_multiplier": trial["width_multiplier"]}
                | {"difference": curve.loss(trial["cost"]) - trial["val_loss"]}
                | {name: curve.of(name, trial["cost"]) / trial[COSTS[name][0]] for name in COSTS}
            )
    missing = {reason: count for reason, count in why.items() if count}
    if not rows:
        return Refusal("no width can be interpolated", excluded=missing)
    pairs = pd.DataFrame(rows).sort_values(["width", "replicate"], ignore_index=True)
    shown = [name for name in COSTS if np.isfinite(pairs[name]).all()]
    if "seconds" in shown and pd.concat([one["layout"], two["layout"]]).nunique() > 1:
        shown.remove("seconds")
    return PairedCells(
        cells=cost,
        pairs=pairs.drop(columns=list(COSTS)),
        planned=len(sides[0]),
        broken=(
            int(sides[0]["state"].isin(BROKEN).sum()),
            int(sides[1]["state"].isin(BROKEN).sum()),
        ),
        missing=missing,
        ratios={name: _spread(pairs[name]) for name in shown},
    )


class _Curve:
    """The loss of one replicate of a group over the cost of its widths."""

    def __init__(self, cells: pd.DataFrame) -> None:
        ordered = cells.sort_values("cost").drop_duplicates("cost")
        self.points = len(ordered)
        self._cells, self._x = ordered, np.log(ordered["cost"].to_numpy(float))
        self.low, self.high = ordered["cost"].min(), ordered["cost"].max()

    def loss(self, cost: float) -> float:
        """The loss at a cost within `low` and `high`."""
        y = self._cells["val_loss"].to_numpy(float)
        return float(PchipInterpolator(self._x, y)(np.log(cost)))

    def of(self, name: str, cost: float) -> float:
        """Another cost at that cost."""
        y = np.log(self._cells[COSTS[name][0]].to_numpy(float))
        return float(np.exp(np.interp(np.log(cost), self._x, y)))


def _with_cost(trials: pd.DataFrame, column: str) -> pd.DataFrame:
    """The trials with a positive cost: per width the median over replicates, for times scatter."""
    plain = trials.reset_index(drop=True)
    cost = plain.groupby("width")[column].transform("median")
    with_cost = plain.assign(**{"cost": cost, column: cost})
    return with_cost[with_cost["cost"] > 0]


def _spread(ratio: "pd.Series[float]") -> tuple[float, float, float]:
    return float(ratio.min()), float(ratio.median()), float(ratio.max())
