"""The loss against the width at equal parameters, training FLOPs, training time and inference.

What is held equal decides which width looks best. Where the sweep held it equal, its own cells
answer. Otherwise, where a width ran at three d_model or more, its loss is interpolated (a monotone
cubic in the logarithm of what it cost) at a budget that all widths reach, replicate by replicate,
and the same rule as ever judges the result. Nothing is extrapolated.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from analysis.verdict.equal_budget import BUDGETS, BudgetEvidence
from analysis.verdict.loss_optimum import LossCurve, Unfitted, find_optimum
from analysis.wording import interval

#: What may be held equal: the column of `SweepTables.trials`, and its name.
CURRENCIES = {
    **BUDGETS,
    "seconds": ("seconds_training", "measured training time"),
    "inference": ("inference_flops_per_token", "inference FLOPs per token"),
}
#: Model widths from which on a loss is interpolated.
MINIMUM_SIZES = 3


@dataclass(frozen=True)
class AtBudget:
    """The judgement at one budget of one kind, or why there is none."""

    currency: str  # a key of CURRENCIES
    budget: float | None  # in units of the currency's column
    source: str  # how the losses were brought to an equal budget, or why they were not
    found: LossCurve | Unfitted | None  # None: it cannot be told
    left_out: Mapping[str, int]  # widths and replicates that could not be interpolated, by reason

    @property
    def sentence(self) -> str:
        name = CURRENCIES[self.currency][1]
        if self.found is None:
            return f"at equal {name}: cannot be told, {self.source}"
        if isinstance(self.found, Unfitted) or not self.found.recommended:
            return f"at equal {name}: no optimum, {self.found.reason}"
        curve = self.found
        return (
            f"at equal {name}: optimum {curve.optimum:.2f}x, 90 % interval "
            f"{interval(curve.interval)} ({self.source})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `optimum` and `interval` only where an optimum is established."""
        known: dict[str, Any] = {
            "budget": self.budget,
            "source": self.source,
            "left_out": dict(self.left_out),
            "sentence": self.sentence,
            "optimum": None,
            "interval": None,
            "widths": [],
        }
        if not isinstance(self.found, LossCurve):
            return known
        curve = self.found
        if curve.recommended:
            known |= {"optimum": curve.optimum, "interval": curve.interval}
        widths = zip(curve.multiplier, curve.loss, strict=True)
        return known | {
            "widths": [{"width_multiplier": float(m), "loss": float(loss)} for m, loss in widths]
        }


def at_equal_budgets(
    trials: pd.DataFrame, own: pd.DataFrame, held: Sequence[BudgetEvidence], tolerance: float
) -> tuple[AtBudget, ...]:
    """One answer per currency.

    `trials` are those of every size of a group, `own` those of the size that the budgets are taken
    from, `held` what the cells of equal budget among them said.
    """
    answered = {evidence.hold: evidence for evidence in held}
    found = []
    for currency, (column, _) in CURRENCIES.items():
        if currency in answered:
            evidence = answered[currency]
            budget = float(evidence.planned[column].median())
            source = "cells of equal budget"
            found.append(AtBudget(currency, budget, source, evidence.optimum, {}))
        else:
            like = held[0].used if held and len(held[0].used) else own
            found.append(_interpolated(currency, trials, like, tolerance))
    return tuple(found)


def _interpolated(
    currency: str, trials: pd.DataFrame, like: pd.DataFrame, tolerance: float
) -> AtBudget:
    column = CURRENCIES[currency][0]
    budget = float(like[column].median())

    def untold(why: str, left_out: Iterable[str] = ()) -> AtBudget:
        known = budget if np.isfinite(budget) else None
        return AtBudget(currency, known, why, None, dict(Counter(left_out)))

    if not np.isfinite(budget) or budget <= 0:
        return untold("no trial has it on record")
    usable = trials.drop_duplicates("id")  # a cell of two sizes has two rows
    usable = usable[(usable["state"] == "completed") & usable["uniform_width"]]
    usable = usable[np.isfinite(usable["val_loss"]) & (usable[column] > 0)]
    if currency == "seconds" and usable["layout"].nunique() > 1:
        return untold("the trials ran in several layouts, whose times cannot be compared")
    width = usable["typed_multiplier"].fillna(usable["width_multiplier"])
    points, left_out = [], []
    for (_, replicate), cells in usable.groupby([width, "replicate"], sort=True):
        if cells["d_model"].nunique() < MINIMUM_SIZES:
            left_out.append(f"fewer than {MINIMUM_SIZES} d_model")
            continue
        cost = cells.groupby("d_model")[[column, "val_loss"]].mean().sort_values(column)
        x = np.log(cost[column].to_numpy(float))
        if not x[0] <= np.log(budget) <= x[-1]:
            left_out.append("the budget lies beyond its cells")
            continue
        if np.any(np.diff(x) <= 0):
            left_out.append("two d_model of equal cost")
            continue
        loss = float(PchipInterpolator(x, cost["val_loss"].to_numpy(float))(np.log(budget)))
        points.append((float(cells["width_multiplier"].median()), loss, replicate))
    if not points:
        why = Counter(left_out).most_common(1)
        reason = why[0][0] if why else "no completed trial has it"
        return untold(f"no width can be interpolated ({reason})", left_out)
    ms, losses, replicates = zip(*_one_multiplier_a_width(points), strict=True)
    broken = trials[trials["state"].isin(["collapsed", "diverged"])]["width_multiplier"]
    optimum = find_optimum(
        ms, losses, replicates, tolerance=tolerance, inadmissible=tuple(broken.unique())
    )
    source = "interpolated over d_model"
    return AtBudget(currency, budget, source, optimum, dict(Counter(left_out)))


def _one_multiplier_a_width(
    points: Sequence[tuple[float, float, Any]],
) -> list[tuple[float, float, Any]]:
    """Replicates of a width may have lacked different d_model, whose D is rounded differently."""
    merged: list[tuple[float, float, Any]] = []
    for multiplier, loss, replicate in sorted(points, key=lambda point: point[0]):
        same = merged and multiplier / merged[-1][0] < 1.03
        merged.append((merged[-1][0] if same else multiplier, loss, replicate))
    return merged
