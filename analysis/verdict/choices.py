"""Two other widths that one may want in place of the headline: for quality, and for efficiency.

The headline is the smallest width that is surely within tolerance of the optimum. Who wants the
lowest loss takes the width whose excess has the least upper bound; who pays for inference takes
the cheapest width whose excess is surely within a larger tolerance. Each says what it costs in
loss and what it saves, against the headline.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from analysis.replicates import Interval
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.verdict.loss_optimum import LossCurve
from analysis.wording import interval, multiple, percent

#: The loss that efficiency may cost, in tolerances.
EFFICIENCY_TOLERANCES = 3.0
#: Relative differences of cost below this are rounding of d_model and D.
SAME_COST = 0.005


@dataclass(frozen=True)
class Choice:
    """One width of the grid, and how it compares with the headline."""

    goal: Literal["quality", "efficiency"]
    width_multiplier: float | None  # None: no width of the grid qualifies
    D: int | None
    d_model: int | None
    excess_upper_nats: float | None  # upper 90 % bound of the loss over the optimum
    over_headline_nats: Interval | None  # 90 % interval of the loss less the headline's
    inference_flops_change: float | None  # relative to the headline, per token
    parameters_change: float | None  # relative to the headline, all parameters
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choices_of(evidence: BudgetEvidence) -> tuple[Choice, ...]:
    """Both alternatives where a width is recommended; none where it is not."""
    curve = evidence.optimum
    if not isinstance(curve, LossCurve) or not curve.recommended or curve.headline is None:
        return ()
    bound = np.where(curve.admissible, curve.excess_upper, np.inf)
    quality = _choice("quality", int(np.argmin(bound)), evidence, curve)

    allowed = EFFICIENCY_TOLERANCES * curve.tolerance
    near = np.flatnonzero(bound < allowed)
    costs = [_costs(evidence, float(curve.multiplier[i])) for i in near]
    if not len(near):
        return quality, _none(f"no width is surely within {allowed:g} nats of the optimum")
    if not np.isfinite(costs).all():
        return quality, _none("what a width costs at inference is not known")
    # Of widths that cost the same, the one whose loss is bounded lowest.
    cheapest = min(cost[0] for cost in costs) * (1 + SAME_COST)
    cheap = [int(i) for i, cost in zip(near, costs, strict=True) if cost[0] <= cheapest]
    return quality, _choice("efficiency", min(cheap, key=lambda i: bound[i]), evidence, curve)


def _costs(evidence: BudgetEvidence, multiplier: float) -> tuple[float, float]:
    """Inference FLOPs per token, and parameters of all kinds."""
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
    name = f"for {goal}: {multiple(multiplier)} (D = {cell['D']:.0f} at {cell['d_model']:.0f})"
    if i == curve.headline:
        sentence = f"{name}, which is the width above"
    else:
        sentence = (
            f"{name}, its loss {_difference(over)} that of the width above, at most {upper:.3f} "
            f"over the optimum; {_change(flops, 'inference FLOPs')}, "
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
        return f"{interval((-high, -low), 3)} nats under"
    return f"{interval(over, 3)} nats over"


def _change(relative: float | None, what: str) -> str:
    if relative is None:
        return f"{what} unknown"
    if abs(relative) < SAME_COST:
        return f"the same {what}"
    return f"{percent(abs(relative))} {'more' if relative > 0 else 'fewer'} {what}"
