"""What the trials were trained on against what there was: passes over the data, and overfitting.

Data that are repeated up to four times are worth nearly as much as new data, beyond that less and
less (arXiv 2305.16264, section 4). And where a run's held-out loss has risen again by its end, the
final loss judges how a width overfits: then the same rules judge the best losses of the runs too,
and both verdicts stand side by side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.settings import PASSES_WORTH_NEW
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.wording import passes_text, percent, plural

#: What a reader of a verdict on best losses must know.
SELECTION = (
    "A best loss is the lowest of several evaluations of a run on the same tokens, chosen after "
    "the fact: it lies a little below what that run would come to on others."
)


@dataclass(frozen=True)
class Supply:
    """Of one group of trials. Losses in nats per token."""

    passes: tuple[float, float] | None  # fewest and most over the training data; None: not known
    judged: int  # completed trials with a final and a best loss
    overfitted: int  # of them, whose final loss exceeds their best by more than the tolerance
    largest_excess: float  # of a final loss over the best; NaN where none is judged
    tolerance: float
    unknown_share: float  # largest share of unknown tokens; NaN where it is not known
    # What the best losses say at each equal budget; none where no trial overfits.
    on_best: tuple[BudgetEvidence, ...]

    @property
    def repeats(self) -> bool:
        """Whether the data were repeated more often than is worth nearly as much as new data."""
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
    """`trials` are rows of `SweepTables.trials` of one group; `judge` finds the loss optimum of
    such rows from their column val_loss, `tolerance` [nats] being what it counts as equal."""
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
    """What the data and the tokenizer do to the losses of a group."""
    if supply.passes is not None and supply.repeats:
        yield (
            f"The trials pass over their training data {passes_text(supply.passes)} times. Up to "
            f"{PASSES_WORTH_NEW:g} passes are worth nearly as much as new data (arXiv 2305.16264); "
            "beyond that the optimum may be one of too little data: give more data, or fewer "
            "tokens to train on."
        )
    if supply.overfitted:
        beside = " The verdict on best losses stands beside this one." if supply.on_best else ""
        yield (
            f"Of {plural(supply.judged, 'completed trial')}, {supply.overfitted} end with a "
            f"held-out loss above their best by more than the tolerance of {supply.tolerance:g} "
            f"nats, by up to {supply.largest_excess:.3g}: the final loss judges how they overfit, "
            f"or come apart, as much as what they learn.{beside}"
        )
    if supply.unknown_share > 0:
        yield (
            f"The tokenizer has no id for some of the text: {percent(supply.unknown_share)} of the "
            "tokens are unknown ones, which are easy to predict and lower the loss."
        )
