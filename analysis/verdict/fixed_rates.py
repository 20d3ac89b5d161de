"""The optimum and the rank laws at each learning rate of the grid, as evidence.

At one rate for all widths, the optimum is that of the rate as much as of the width: where the best
rate falls with the width, a small rate favours wide layers and a large one narrow layers. With
three or more rates a group has one verdict, with every width at its own rate, and what is found at
each rate stands beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.spectral import SpectralEvidence
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.verdict.evidence import laws_of, losses_of
from analysis.verdict.loss_over_width import LossCurve
from analysis.verdict.tuned_rate import AXIS
from analysis.wording import bracketed

#: Said wherever these optima are shown.
NO_VERDICT = (
    "An optimum at one learning rate for all widths is no verdict: it depends on how well that "
    "rate suits each width."
)


@dataclass(frozen=True)
class FixedRate:
    """What the trials of one learning rate show."""

    learning_rate: float
    losses: tuple[BudgetEvidence, ...]  # by budget held equal, as for a verdict
    spectral: SpectralEvidence

    @property
    def curve(self) -> LossCurve | None:
        """The losses at the deciding budget; None where no optimum at this rate is established."""
        found = self.losses[0].optimum if self.losses else None
        return found if isinstance(found, LossCurve) and found.recommended else None

    @property
    def reason(self) -> str:
        """Why an optimum at this rate is established, or why none is."""
        if not self.losses:
            return "no cells of equal budget"
        return self.losses[0].optimum.reason

    @property
    def sentence(self) -> str:
        """The optimum at this rate in a few words: `0.002: 5.29x [4.61, 6.02]`."""
        curve = self.curve
        found = "no optimum established"
        if curve is not None:
            found = f"{curve.optimum:.2f}x {bracketed(curve.interval)}"
        return f"{self.learning_rate:g}: {found}"

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `at_learning_rates` in recommendation.json."""
        curve = self.curve
        return {
            "learning_rate": self.learning_rate,
            "is_verdict": False,
            "optimum": None if curve is None else curve.optimum,
            "interval": None if curve is None else curve.interval,
            "reason": self.reason,
            "loss": losses_of(self.losses),
            "laws": laws_of(self.spectral),
        }


def at_each_rate(
    trials: pd.DataFrame,
    judge: Callable[[pd.DataFrame], tuple[tuple[BudgetEvidence, ...], SpectralEvidence]],
) -> tuple[FixedRate, ...]:
    """Judge the trials of a group at each learning rate, in ascending order.

    Args:
        trials: rows of `SweepTables.trials` of the group, at several learning rates.
        judge: finds the loss optima and the rank laws of rows of one rate.
    """
    rates = np.sort(trials[AXIS].dropna().unique())
    return tuple(FixedRate(float(rate), *judge(trials[trials[AXIS] == rate])) for rate in rates)
