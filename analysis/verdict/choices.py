"""Two alternatives to the recommended width: one for quality, one for efficiency.

The recommended width (the headline) is the smallest one that is surely within tolerance of the
optimum. For quality: the width whose loss excess has the lowest upper bound. For efficiency: the
width with the fewest inference FLOPs whose excess is surely within a larger tolerance. Both are
compared with the headline in loss, inference FLOPs and parameters.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from analysis.replicates import Interval
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.verdict.loss_over_width import LossCurve
from analysis.wording import interval, multiple, percent

#: Upper bound on the loss excess of the efficient width, in tolerances.
EFFICIENCY_TOLERANCES = 3.0
#: Smaller relative differences of cost come from the rounding of d_model and D.
SAME_COST = 0.005


@dataclass(frozen=True)
class Choice:
    """One width of the grid, compared with the headline."""

    goal: Literal["quality", "efficiency"]
    width_multiplier: float | None  # D / d_model; None: no width of the grid qualifies
    D: int | None
    d_model: int | None
    excess_upper_nats: float | None  # upper 90 % bound of the loss minus the optimum's
    over_headline_nats: Interval | None  # 90 % interval of the loss minus the headline's
    inference_flops_change: float | None  # per token, relative to the headline: 0.1 is 10 % more
    parameters_change: float | None  # of all kinds, relative to the headline
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `choices` in recommendation.json."""
        return asdict(self)


def choices_of(evidence: BudgetEvidence) -> tuple[Choice, ...]:
    """Return the width for quality and the width for efficiency; empty without a headline."""
    curve = evidence.optimum
    if not isinstance(curve, LossCurve) or not curve.recommended or curve.headline is None:
        return ()
    bound = np.where(curve.admissible, curve.excess_upper, np.inf)
    quality = _choice("quality", int(np.argmin(bound)), evidence, curve)

    allowed = EFFICIENCY_TOLERANCES * curve.tolerance
    near = np.flatnonzero(bound < allowed)
    costs = [_costs(evidence, float(curve.multiplier[i])) for i in near]
    if not len(near):
        return quality, _none(f"no width is known to be within {allowed:g} nats of the optimum")
    if not np.isfinite(costs).all():
        return quality, _none("the inference FLOPs of the widths are not recorded")
    # Among widths of equal cost take the one with the lowest upper bound of the loss.
    cheapest = min(cost[0] for cost in costs) * (1 + SAME_COST)
    cheap = [int(i) for i, cost in zip(near, costs, strict=True) if cost[0] <= cheapest]
    return quality, _choice("efficiency", min(cheap, key=lambda i: bound[i]), evidence, curve)


def _costs(evidence: BudgetEvidence, multiplier: float) -> tuple[float, float]:
    """Inference FLOPs per token, and all parameters."""
    cell = evidence.cell(multiplier)
    return float(cell["inference_flops_per_token"]), float(cell["parameters_total"])


def _none(reason: str) -> Choice:
    sentence = f"for efficiency: none, {reason}"
    return Choice("efficiency", None, None, None, None, None, None, None, sentence)


def _choice(
    goal: Literal["quality", "efficiency"], i: int, evidence: BudgetEvidence, curve: LossCurve
) -> Choice:
    assert curve.headline is not None
    multiplier = float(curve.multiplier[i])
    cell = evidence.cell(multiplier)
    own = _costs(evidence, multiplier)
    base = _costs(evidence, float(curve.multiplier[curve.headline]))
    flops, parameters = (
        one / other - 1 if np.isfinite(one) and other > 0 else None
        for one, other in zip(own, base, strict=True)
    )
    over = (float(curve.over_headline[i, 0]), float(curve.over_headline[i, 1]))
    upper = float(curve.excess_upper[i])
    place = f"D = {cell['D']:.0f} at d_model = {cell['d_model']:.0f}"
    name = f"for {goal}: {multiple(multiplier)} ({place})"
    if i == curve.headline:
        sentence = f"{name}, the recommended width itself"
    else:
        sentence = (
            f"{name}; its loss is {_difference(over)} the recommended width's and at most "
            f"{upper:.3f} nats above the optimum, with {_change(flops, 'inference FLOPs')} and "
            f"{_change(parameters, 'parameters')}"
        )
    return Choice(
        goal=goal,
        width_multiplier=multiplier,
        D=int(cell["D"]),
        d_model=int(cell["d_model"]),
        excess_upper_nats=upper,
        over_headline_nats=over,
        inference_flops_change=flops,
        parameters_change=parameters,
        sentence=sentence,
    )


def _difference(over: Interval) -> str:
    low, high = over
    if high < 0:
        return f"{interval((-high, -low), 3)} nats below"
    return f"{interval(over, 3)} nats above"


def _change(relative: float | None, what: str) -> str:
    if relative is None:
        return f"unknown {what}"
    if abs(relative) < SAME_COST:
        return f"the same {what}"
    return f"{percent(abs(relative))} {'more' if relative > 0 else 'fewer'} {what}"
