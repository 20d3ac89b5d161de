"""The decision on a width from the losses at equal budgets, by the rules of docs/verdict.md."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.refusal import Refusal
from analysis.replicates import Floats, Interval
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.verdict.loss_over_width import LossCurve, plateau_of
from analysis.wording import interval, multiple


@dataclass(frozen=True)
class Decision:
    """A recommended width, a plateau on which any width will do, or the refusal of both."""

    curve: LossCurve | None  # None where no optimum is established
    plateau: Interval | None  # D / d_model of its ends; None beside a recommendation
    width_multiplier: float | None  # D / d_model; None where no width is recommended
    sentence: str  # the verdict, without a final full stop
    rule: str  # why this width was chosen, or why none was


def decide(losses: Sequence[BudgetEvidence]) -> Decision:
    """Decide on the first of the budgets.

    Args:
        losses: the evidence at each budget held equal, the deciding one first; may be empty.
    """
    optimum = losses[0].optimum if losses else _NO_BUDGET
    if isinstance(optimum, LossCurve):
        if optimum.recommended and optimum.headline is not None:
            chosen = float(optimum.multiplier[optimum.headline])
            sentence = _sentence(losses[0], optimum, chosen)
            return Decision(optimum, None, chosen, sentence, _rule(optimum))
        if (plateau := plateau_of(optimum)) is not None:
            return Decision(None, plateau, None, _on_plateau(optimum, plateau), optimum.reason)
        optimum = Refusal(optimum.reason)
    rule = optimum.sentence
    return Decision(None, None, None, f"no recommendation: {rule}", rule)


def _on_plateau(curve: LossCurve, plateau: Interval) -> str:
    low, high = map(multiple, plateau)
    whole = len(curve.multiplier) == curve.plateau[1] - curve.plateau[0] + 1 if curve.plateau else 0
    every = "every width of the grid" if whole else "any width"
    return (
        f"{every} from {low} to {high} is within {curve.tolerance:g} nats of the best width that "
        f"was run (upper 90 % bound of each); which is best is not established"
    )


_NO_BUDGET = Refusal(
    "the sweep has no cells of equal budget, and at unequal budgets larger models have a lower "
    "loss at any width",
    "add `params` or `flops` to `match`",
)


def _sentence(evidence: BudgetEvidence, curve: LossCurve, multiplier: float) -> str:
    cell = evidence.cell(multiplier)
    same = curve.equivalent & curve.admissible
    alike = ""
    if same.sum() > 1:
        alike = f"; {_spans(curve.multiplier, same)} are equivalent at this precision"
    return (
        f"use {multiple(multiplier)} (D = {cell['D']:.0f} at d_model = {cell['d_model']:.0f}); the "
        f"optimum is at {curve.optimum:.2f}x, 90 % interval {interval(curve.interval)} over all "
        f"sweeps like this one, recommended or refused{alike}"
    )


def _spans(multiplier: Floats, chosen: NDArray[np.bool_]) -> str:
    """The chosen widths in words, neighbours as a span: `1.5x and 2.67x to 4x`."""
    places = np.flatnonzero(chosen)
    spans = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    *others, final = [
        " to ".join(multiple(float(multiplier[i])) for i in dict.fromkeys((span[0], span[-1])))
        for span in spans
    ]
    return f"{', '.join(others)} and {final}" if others else final


def _rule(curve: LossCurve) -> str:
    if curve.within_tolerance:
        return (
            "the smallest width whose loss exceeds the optimum's by less than "
            f"{curve.tolerance:g} nats (upper 90 % bound); {curve.reason}"
        )
    broken = "" if curve.admissible.all() else " without a collapsed or diverged replicate"
    return (
        f"the width{broken} with the smallest loss excess, because none is known to be within "
        f"{curve.tolerance:g} nats of the optimum (upper 90 % bound); {curve.reason}"
    )
