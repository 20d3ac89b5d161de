"""Whether the trials of a group were trained well enough for their losses to be compared.

A learning rate that is too high makes the loss spike, and the losses then measure which runs were
hit, not the width. More replicates do not mend that: a lower rate does. So a group with unstable
trials, or with losses in two bunches that the width does not explain, gets its first caveat here
and lower rates to run next. It is refused if more than a third of the trials that enter are
unstable, or if the upper bunch is where the unstable trials are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.refusal import Refusal
from analysis.stability import FIRST_JUDGED
from analysis.verdict.bunches import Bunches, find_bunches
from analysis.wording import percent, plural

#: Share of unstable trials above which a group is refused. The curve over the width can take a few
#: bad runs as noise; of three replicates more than one would then be bad.
REFUSED_ABOVE = 1 / 3
#: A loss at or above this share of the unigram loss: healthy models of docs/experiments ended below
#: it (`analysis.collapse.CollapseRule.near_unigram`).
NEAR_UNIGRAM = 0.9
#: Trial ids that a sentence names.
MOST_NAMED = 6

LOWER_RATE = "lower the learning rate first: more replicates of such runs would not help"


@dataclass(frozen=True)
class UnstableRefusal(Refusal):
    """The refusal of an optimum because the trials are unstable."""


@dataclass(frozen=True)
class Training:
    """How the trials that enter the loss optimum of one group were trained. Losses in nats."""

    entered: int
    judged: int  # of these, trials with enough recorded training losses to see a spike
    unstable: tuple[str, ...]  # ids of trials whose spikes may have changed the final loss
    lasting: int  # of these, trials whose loss did not recover
    spiked: tuple[str, ...]  # ids of other trials with a spike
    largest_rise: float  # of a training loss above its level before a spike; 0 without one
    norm_spikes: int  # trials whose gradient norm spiked
    bunches: Bunches | None  # two bunches of losses that the width does not explain
    unstable_above: float  # share of the upper bunch that is unstable; NaN without bunches
    unstable_below: float  # the same of the lower bunch
    unigram_loss: float  # of a model that knows only token frequencies; NaN: not recorded
    near_unigram: int  # trials at or above NEAR_UNIGRAM times it
    lowest: float  # final loss of any trial; NaN without one
    fall: float  # median fall of the held-out loss over the last tenth; NaN: unknown
    differences: float  # median difference of a width's mean loss from the lowest; NaN: one width
    rates: tuple[float, ...]  # peak learning rates of the trials, ascending

    @property
    def needs_lower_rate(self) -> bool:
        """Whether the learning rate needs attention before anything else."""
        return bool(self.unstable) or self.bunches is not None

    @property
    def refusal(self) -> UnstableRefusal | None:
        """Why no optimum can be judged; None if one can."""
        refused = _refuse(len(self.unstable), self.entered, self.largest_rise)
        if refused is not None:
            return refused
        if self.bunches is not None and self._bunched_by_spikes:
            return UnstableRefusal(
                f"{_in_two(self.bunches)}, and {percent(self.unstable_above)} of the upper one "
                f"are unstable against {percent(self.unstable_below)} of the lower",
                LOWER_RATE,
            )
        return None

    @property
    def _bunched_by_spikes(self) -> bool:
        return self.unstable_above >= 0.5 and self.unstable_above > self.unstable_below

    def to_dict(self) -> dict[str, Any]:
        """Return `evidence.training` of recommendation.json."""
        found = self.bunches
        return {
            "entered": self.entered,
            "judged": self.judged,
            "unstable": list(self.unstable),
            "not_recovered": self.lasting,
            "spiked": list(self.spiked),
            "largest_rise_nats": self.largest_rise,
            "grad_norm_spikes": self.norm_spikes,
            "needs_lower_rate": self.needs_lower_rate,
            "bunches": None
            if found is None
            else {
                "low": found.low,
                "high": found.high,
                "upper_runs": int(found.upper.sum()),
                "p": found.p,
                "unexplained": found.unexplained,
                "unstable_above": self.unstable_above,
                "unstable_below": self.unstable_below,
            },
            "unigram_loss": self.unigram_loss,
            "near_unigram": self.near_unigram,
            "fall_last_tenth_nats": self.fall,
            "differences_nats": self.differences,
            "peak_learning_rates": list(self.rates),
        }


def judge_training(used: pd.DataFrame) -> Training:
    """Judge how the trials of one group were trained.

    Args:
        used: rows of `SweepTables.trials` that enter the loss optimum, each with a final loss.
    """
    loss = used["val_loss"].to_numpy(float)
    unstable = _flags(used, "unstable")
    spikes = _numbers(used, "spikes")
    bunches = find_bunches(used["width_multiplier"], loss)
    upper = np.zeros(len(used), bool) if bunches is None else bunches.upper
    unigram = _numbers(used, "unigram_loss")
    rise = _numbers(used, "spike_rise")
    means = used.groupby("width_multiplier")["val_loss"].mean().to_numpy(float)
    rates = _numbers(used, "peak_learning_rate")
    ids = used["id"].astype(str).to_numpy()
    return Training(
        entered=len(used),
        judged=int(np.isfinite(spikes).sum()),
        unstable=tuple(ids[unstable]),
        lasting=int((unstable & _flags(used, "spikes_recovered", value=False)).sum()),
        spiked=tuple(ids[(spikes > 0) & ~unstable]),
        largest_rise=float(np.nanmax(rise)) if np.isfinite(rise).any() else 0.0,
        norm_spikes=int((_numbers(used, "grad_norm_spikes") > 0).sum()),
        bunches=bunches,
        unstable_above=_mean(unstable[upper]),
        unstable_below=_mean(unstable[~upper]) if bunches is not None else float("nan"),
        unigram_loss=_median(unigram),
        near_unigram=int((loss >= NEAR_UNIGRAM * unigram).sum()),
        lowest=float(loss.min()) if len(loss) else float("nan"),
        fall=_median(_numbers(used, "fall_last_tenth")),
        differences=float(np.median(np.sort(means)[1:] - means.min()))
        if len(means) > 1
        else float("nan"),
        rates=tuple(float(rate) for rate in np.unique(rates[np.isfinite(rates)])),
    )


def refuse_unstable(used: pd.DataFrame) -> UnstableRefusal | None:
    """Return the refusal of rows of `SweepTables.trials` of which too many are unstable.

    Unlike `Training.refusal` it does not compare losses, so the rows may have several sizes.
    """
    rise = _numbers(used, "spike_rise")
    largest = float(np.nanmax(rise)) if np.isfinite(rise).any() else 0.0
    return _refuse(int(_flags(used, "unstable").sum()), len(used), largest)


def _refuse(unstable: int, entered: int, largest_rise: float) -> UnstableRefusal | None:
    if unstable <= REFUSED_ABOVE * entered:
        return None
    return UnstableRefusal(
        f"{unstable} of {plural(entered, 'trial')} that enter are unstable: their training loss "
        f"spiked, by up to {largest_rise:.2g} nats",
        LOWER_RATE,
    )


def first_caveats(training: Training) -> Iterator[str]:
    """Yield the caveats that come before all others: the learning rate needs attention."""
    if training.unstable:
        lasting = f"; {training.lasting} did not recover" if training.lasting else ""
        yield (
            f"The learning rate needs attention first: {len(training.unstable)} of "
            f"{plural(training.entered, 'trial')} that enter are unstable ({_named(training)}). "
            f"Their training loss spiked, by up to {training.largest_rise:.2g} nats{lasting}. "
            f"Their final losses measure these spikes as well as the width.{_several(training)}"
        )
    if training.bunches is not None:
        if not training.unstable:
            cause = (
                " No training loss is known to be unstable, so look for anything else that differs "
                "between the bunches, too."
            )
        else:
            cause = (
                f" Unstable trials: {percent(training.unstable_above)} of the upper bunch, "
                f"{percent(training.unstable_below)} of the lower."
            )
        yield (
            f"The learning rate needs attention first: {_in_two(training.bunches)}, which the "
            f"width does not explain (p = {training.bunches.p:.2g}).{cause}{_several(training)}"
        )


def further_caveats(training: Training) -> Iterator[str]:
    """Yield the other caveats on how the trials were trained."""
    if training.spiked:
        yield (
            f"The training loss of {plural(len(training.spiked), 'further trial')} spiked briefly "
            "and recovered; they count as stable."
        )
    if training.near_unigram:
        yield (
            f"{training.near_unigram} of {plural(training.entered, 'trial')} that enter end at "
            f"{percent(NEAR_UNIGRAM)} of the unigram loss or above ({training.unigram_loss:.3g} "
            "nats, of a model that knows only the token frequencies): they have learnt little "
            "that a width could help with. Train longer, or at another learning rate."
        )
    if training.fall > training.differences:
        yield (
            f"The held-out loss still falls, by {training.fall:.2g} nats over the last tenth of "
            f"the training, and the widths differ from the best by {training.differences:.2g} "
            "nats (medians): longer training may change their order."
        )
    if training.judged < training.entered:
        yield (
            f"Trials that enter with at most {FIRST_JUDGED} recorded training losses, so that "
            f"nothing is known about their stability: {training.entered - training.judged}."
        )


def _in_two(bunches: Bunches) -> str:
    upper = int(bunches.upper.sum())
    return (
        f"the final losses lie in two bunches, {len(bunches.upper) - upper} near "
        f"{bunches.low:.3g} nats and {upper} near {bunches.high:.3g}"
    )


def _several(training: Training) -> str:
    if len(training.rates) < 2:
        return ""
    low, high = training.rates[0], training.rates[-1]
    return f" The trials have learning rates from {low:.3g} to {high:.3g}: lower these."


def _named(training: Training) -> str:
    ids = training.unstable
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return ", ".join(ids[:MOST_NAMED]) + more


def _numbers(used: pd.DataFrame, column: str) -> np.ndarray:
    """[n] a column of numbers; NaN if the table lacks it."""
    if column not in used:
        return np.full(len(used), np.nan)
    return used[column].to_numpy(float)


def _flags(used: pd.DataFrame, column: str, *, value: bool = True) -> np.ndarray:
    """[n] whether a column of true, false and None has this value."""
    given = used[column] if column in used else [None] * len(used)
    return np.array([flag is not None and bool(flag == value) for flag in given], bool)


def _mean(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")
