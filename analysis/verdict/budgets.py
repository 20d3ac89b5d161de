"""The optimal width at equal parameters, training FLOPs, training time and inference FLOPs.

The best width depends on the quantity that is equal. If the sweep holds it equal, its cells give
the answer. Otherwise the loss of a width that ran at three or more d_model is interpolated, per
replicate, with a monotone cubic in the logarithm of its cost, at a budget that all widths reach.
The rule of `loss_optimum` judges the result. Nothing is extrapolated.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from analysis.refusal import Refusal
from analysis.verdict.equal_budget import BUDGETS, Budget, BudgetEvidence
from analysis.verdict.loss_optimum import find_optimum
from analysis.verdict.loss_over_width import LossCurve
from analysis.verdict.trained_enough import refuse_unstable
from analysis.wording import interval

#: Budgets at which widths are compared: those of the sweep file, and those that are measured.
CURRENCIES = {
    **BUDGETS,
    "seconds": Budget("seconds_training", "measured training time"),
    "inference": Budget("inference_flops_per_token", "inference FLOPs per token"),
}
#: Distinct d_model that an interpolation needs.
MINIMUM_SIZES = 3


@dataclass(frozen=True)
class AtBudget:
    """The optimum at one budget."""

    currency: str  # a key of CURRENCIES
    budget: float | None  # in units of the currency's column; None where no trial records it
    source: str | None  # how losses were brought to an equal budget; None: they could not be
    found: LossCurve | Refusal
    left_out: Mapping[str, int]  # reason -> pairs of width and replicate not interpolated

    @property
    def sentence(self) -> str:
        """The optimum or the refusal in words, without a final full stop."""
        name, curve = CURRENCIES[self.currency].name, self.found
        if isinstance(curve, Refusal):
            return f"at equal {name}: {'unknown' if self.source is None else 'no optimum'}, " + (
                curve.sentence
            )
        if not curve.recommended:
            return f"at equal {name}: no optimum, {curve.reason}"
        return (
            f"at equal {name}: optimum {curve.optimum:.2f}x, 90 % interval "
            f"{interval(curve.interval)} ({self.source})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `at_equal` in recommendation.json.

        `optimum` and `interval` are null unless an optimum is established.
        """
        source = self.source
        if source is None and isinstance(self.found, Refusal):
            source = self.found.reason
        known: dict[str, Any] = {
            "budget": self.budget,
            "source": source,
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
    trials: pd.DataFrame,
    own: pd.DataFrame,
    held: Sequence[BudgetEvidence],
    tolerance: float,
    compare: Callable[[pd.DataFrame], Refusal | None] = lambda used: None,
) -> tuple[AtBudget, ...]:
    """Find the optimal width of a group at every budget of CURRENCIES.

    Args:
        trials: rows of `SweepTables.trials` of the group at every d_model.
        own: those of the one size that the budgets are taken from, if `held` is empty.
        held: the judgements at budgets that the sweep holds equal.
        tolerance: nats per token within which losses count as equal.
        compare: refuses rows that differ in more than width and size.

    Returns:
        One answer per budget, in the order of CURRENCIES.
    """
    answered = {evidence.matching: evidence for evidence in held}
    found = []
    for currency, kind in CURRENCIES.items():
        if currency in answered:
            evidence = answered[currency]
            budget = float(evidence.planned[kind.column].median())
            source = "cells of equal budget"
            found.append(AtBudget(currency, budget, source, evidence.optimum, {}))
        else:
            like = held[0].used if held and len(held[0].used) else own
            found.append(_interpolated(currency, trials, like, tolerance, compare))
    return tuple(found)


def _interpolated(
    currency: str,
    trials: pd.DataFrame,
    like: pd.DataFrame,
    tolerance: float,
    compare: Callable[[pd.DataFrame], Refusal | None],
) -> AtBudget:
    column = CURRENCIES[currency].column
    budget = float(like[column].median())

    def unknown(why: str, next_step: str | None = None, left_out: Iterable[str] = ()) -> AtBudget:
        known = budget if np.isfinite(budget) else None
        return AtBudget(currency, known, None, Refusal(why, next_step), dict(Counter(left_out)))

    if not np.isfinite(budget) or budget <= 0:
        return unknown("no trial records it")
    usable = trials.drop_duplicates("id")  # a cell that belongs to two sizes has two rows
    usable = usable[(usable["state"] == "completed") & usable["uniform_width"]]
    usable = usable[np.isfinite(usable["val_loss"]) & (usable[column] > 0)]
    refused = refuse_unstable(usable)
    if refused is not None:
        return unknown(refused.reason, refused.next_step)
    if currency == "seconds" and usable["layout"].nunique() > 1:
        return unknown("the trials ran in several layouts, so their times are not comparable")
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
        reason = why[0][0] if why else "no completed trial records it"
        return unknown(
            f"no width can be interpolated ({reason})",
            f"run every width at {MINIMUM_SIZES} values of grid.d_model",
            left_out,
        )
    if (differ := compare(usable)) is not None:
        return AtBudget(currency, budget, None, differ, dict(Counter(left_out)))
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
    """Merge multipliers within 3 %.

    Replicates of one width may miss different d_model, at which D is rounded differently.
    """
    merged: list[tuple[float, float, Any]] = []
    for multiplier, loss, replicate in sorted(points, key=lambda point: point[0]):
        same = merged and multiplier / merged[-1][0] < 1.03
        merged.append((merged[-1][0] if same else multiplier, loss, replicate))
    return merged
