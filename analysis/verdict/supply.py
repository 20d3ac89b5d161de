"""The supply of data: passes over the training data, and overfitting.

Data repeated up to four times are worth nearly as much as new data, beyond that less and less
(arXiv 2305.16264, section 4). If a run's held-out loss rises before its end, its final loss
measures overfitting too. The same rules then judge the best losses of the runs, and both verdicts
are reported.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.settings import PASSES_WORTH_NEW
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.wording import passes_text, percent, plural

#: The caveat of every verdict on best losses.
SELECTION = (
    "A best loss is the lowest of several evaluations of a run on the same tokens, selected after "
    "the fact, so it is slightly lower than the run's loss on other tokens."
)


@dataclass(frozen=True)
class Supply:
    """The data supply of one group of trials. Losses in nats per token."""

    passes: tuple[float, float] | None  # fewest and most passes of a trial; None: not recorded
    judged: int  # completed trials with a final and a best loss
    overfitted: int  # of these, trials whose final loss exceeds their best by over the tolerance
    largest_excess: float  # of a final loss over the best; NaN where none is judged
    tolerance: float
    unknown_share: float  # largest share of unknown tokens; NaN where none is recorded
    # The best losses at each equal budget; empty where no trial overfits.
    on_best: tuple[BudgetEvidence, ...]

    @property
    def repeats(self) -> bool:
        """Whether a trial passes over its data more than PASSES_WORTH_NEW times."""
        return self.passes is not None and self.passes[1] > PASSES_WORTH_NEW

    def to_dict(self) -> dict[str, Any]:
        """As in `evidence.supply` of recommendation.json."""
        return {
            "passes": None if self.passes is None else list(self.passes),
            "passes_worth_new": PASSES_WORTH_NEW,
            "judged": self.judged,
            "overfitted": self.overfitted,
            "largest_excess_over_best_nats": self.largest_excess,
            "unknown_share": self.unknown_share,
        }


def judge_supply(
    trials: pd.DataFrame,
    tolerance: float,
    judge: Callable[[pd.DataFrame], tuple[BudgetEvidence, ...]],
) -> Supply:
    """Count passes and overfitting of one group, and judge its best losses if it overfits.

    Args:
        trials: rows of `SweepTables.trials` of the group.
        tolerance: nats per token; a trial overfits if its final loss exceeds its best by more.
        judge: finds the loss optimum of rows like `trials` from their column `val_loss`.
    """
    one = trials.drop_duplicates("id")
    completed = one[one["state"] == "completed"]
    final, best = completed["val_loss"].to_numpy(float), completed["best_val_loss"].to_numpy(float)
    both = np.isfinite(final) & np.isfinite(best)
    excess = final[both] - best[both]
    overfitted = int(np.sum(excess > tolerance))
    found = one["passes"].dropna()
    shares = one["unknown_share"].dropna()
    return Supply(
        passes=(float(found.min()), float(found.max())) if len(found) else None,
        judged=int(both.sum()),
        overfitted=overfitted,
        largest_excess=float(excess.max()) if len(excess) else float("nan"),
        tolerance=tolerance,
        unknown_share=float(shares.max()) if len(shares) else float("nan"),
        on_best=judge(trials.assign(val_loss=trials["best_val_loss"])) if overfitted else (),
    )


def caveats_of_supply(supply: Supply) -> Iterator[str]:
    """Yield the caveats of a group about its data and its tokenizer."""
    if supply.passes is not None and supply.repeats:
        yield (
            f"The trials pass over their training data {passes_text(supply.passes)} times. Up to "
            f"{PASSES_WORTH_NEW:g} passes are worth nearly as much as new data (arXiv 2305.16264); "
            "beyond that the optimum may be that of too little data: use more data, or train on "
            "fewer tokens."
        )
    if supply.overfitted:
        beside = " The best losses have a verdict of their own." if supply.on_best else ""
        yield (
            f"Of {plural(supply.judged, 'completed trial')}, {supply.overfitted} end with a "
            f"held-out loss above their best by more than the tolerance of {supply.tolerance:g} "
            f"nats, by up to {supply.largest_excess:.3g} nats. Their final losses measure "
            f"overfitting or instability as well as learning.{beside}"
        )
    if supply.unknown_share > 0:
        yield (
            f"The tokenizer has no id for some of the text: {percent(supply.unknown_share)} of the "
            "tokens are unknown tokens, which are easy to predict and lower the loss."
        )
