"""Pair groups at equal parameters, training FLOPs or time, where equal widths differ in it.

The baseline's trials at fixed d_model are taken as they are. The loss of the other group at the
same cost is interpolated over its widths, replicate by replicate, with a monotone cubic in the
logarithm of the cost. Nothing is extrapolated. The error of the interpolation is not in the
interval.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

from analysis.refusal import Refusal
from analysis.verdict.budgets import MINIMUM_SIZES
from analysis.verdict.loss_optimum import usable
from analysis.verdict.paired_cells import (
    COSTS,
    SAME_TOKENS,
    GroupCells,
    PairedCells,
    Trial,
    spread,
)

_BEYOND = "its cost is beyond the widths of the other group"
_FEW = f"the other group has fewer than {MINIMUM_SIZES} widths of this replicate"


def pair_at_equal_cost(baseline: GroupCells, other: GroupCells, cost: str) -> PairedCells | Refusal:
    """Pair every trial of the baseline with the other group at the same cost.

    Args:
        baseline: The trials of one group at fixed d_model.
        other: Those of the other group.
        cost: A key of COSTS.

    Returns:
        The pairs, whose width is that of the baseline; a refusal where there are none.
    """
    one, two = _completed(baseline, COSTS[cost][0]), _completed(other, COSTS[cost][0])
    one_layout = len({trial["layout"] for trial in (*one, *two)}) == 1
    if cost == "seconds" and not one_layout:
        return Refusal("the trials ran in several layouts, so their times are not comparable")
    tokens = [trial["tokens"] for trial in (*one, *two) if np.isfinite(trial["tokens"])]
    if tokens and max(tokens) / min(tokens) > 1 + SAME_TOKENS:
        return Refusal("the training tokens differ")
    by_replicate: dict[int, list[Trial]] = defaultdict(list)
    for trial in two:
        by_replicate[trial["replicate"]].append(trial)
    curves = {replicate: _Curve(trials) for replicate, trials in by_replicate.items()}
    why: Counter[str] = Counter({"no completed trial": len(baseline.trials) - len(one)})
    pairs: list[tuple[Trial, _Curve]] = []
    for trial in one:
        curve = curves.get(trial["replicate"])
        if curve is None or curve.points < MINIMUM_SIZES:
            why[_FEW] += 1
        elif not curve.low <= trial["cost"] <= curve.high:
            why[_BEYOND] += 1
        else:
            pairs.append((trial, curve))
    missing = {reason: count for reason, count in why.items() if count}
    if not pairs:
        return Refusal("no width can be interpolated", excluded=missing)
    ratios = {
        name: spread([curve.of(column, own["cost"]) / own[column] for own, curve in pairs])
        for name, (column, _) in COSTS.items()
        if name != "seconds" or one_layout
    }
    return PairedCells(
        cells=cost,
        widths=tuple(own["width"] for own, _ in pairs),
        replicates=tuple(own["replicate"] for own, _ in pairs),
        differences=tuple(curve.loss(own["cost"]) - own["val_loss"] for own, curve in pairs),
        planned=len(baseline.trials),
        broken=(baseline.broken, other.broken),
        missing=missing,
        ratios={name: found for name, found in ratios.items() if found is not None},
    )


class _Curve:
    """The loss of one replicate of a group over the cost of its widths."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        ordered = sorted({trial["cost"]: trial for trial in trials}.items())
        self.points = len(ordered)
        self.low, self.high = ordered[0][0], ordered[-1][0]
        self._trials = [trial for _, trial in ordered]
        self._x = np.log([cost for cost, _ in ordered])

    def loss(self, cost: float) -> float:
        """The loss at a cost within `low` and `high`."""
        y = [trial["val_loss"] for trial in self._trials]
        return float(PchipInterpolator(self._x, y)(np.log(cost)))

    def of(self, column: str, cost: float) -> float:
        """Another cost at that cost."""
        y = np.log([trial[column] for trial in self._trials])
        return float(np.exp(np.interp(np.log(cost), self._x, y)))


def _completed(group: GroupCells, column: str) -> list[Trial]:
    """The completed trials with their `cost`: per width the median, because times scatter."""
    done = [
        trial
        for trial in group.trials.values()
        if trial["state"] == "completed" and usable(trial["val_loss"]) and trial[column] > 0
    ]
    costs: dict[float, list[float]] = defaultdict(list)
    for trial in done:
        costs[trial["width"]].append(trial[column])
    return [
        {**trial, column: cost, "cost": cost}
        for trial in done
        for cost in [float(np.median(costs[trial["width"]]))]
    ]
