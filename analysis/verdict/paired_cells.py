"""Pair the trials of two groups: the same width and the same replicate in both."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.refusal import Refusal
from analysis.replicates import Interval
from analysis.tables.sweep_tables import matched
from analysis.verdict.loss_optimum import usable
from analysis.wording import large

#: Matchings of cells, in the order in which they decide.
CELLS = ("params", "flops", "none")
#: What a comparison can hold equal: columns of `SweepTables.trials`, and their names.
COSTS = {
    "parameters": ("parameters_non_embedding", "parameters"),
    "flops": ("flops", "training FLOPs"),
    "seconds": ("seconds_training", "training time"),
}
#: States of a trial that ended without a loss worth comparing: evidence, not a gap.
BROKEN = ("collapsed", "diverged")
#: Token counts that differ by less are equal: the last step may be cut.
SAME_TOKENS = 1e-3
NO_CELLS = "one of the groups has no such cells"

#: Costs whose ratio differs from 1 by less count as equal: d_model and D are whole numbers.
SAME_COST = 0.02


Trial = Mapping[str, Any]  # values of a row of `SweepTables.trials`, with its width
Key = tuple[float, float, Any]  # model size, width, replicate
_COLUMNS = (
    *("state", "width", "replicate", "val_loss", "tokens", "layout"),
    *(column for column, _ in COSTS.values()),
)


@dataclass(frozen=True)
class GroupCells:
    """The trials of one group at the cells of one matching."""

    trials: Mapping[Key, Trial]
    uneven: int  # trials whose layers differ in width; they are not paired

    @property
    def broken(self) -> int:
        """How many collapsed or diverged."""
        return sum(trial["state"] in BROKEN for trial in self.trials.values())


@dataclass(frozen=True)
class PairedCells:
    """The paired trials of two groups at the cells of one matching."""

    cells: str  # of CELLS, or a key of COSTS where losses are interpolated to an equal cost
    widths: tuple[float, ...]  # [n] D / d_model of each pair, of the baseline
    replicates: tuple[int, ...]  # [n]
    differences: tuple[float, ...]  # [n] nats, other less baseline
    planned: int  # widths and replicates planned for either group
    broken: tuple[int, int]  # of these, cells with a collapsed or diverged trial, by group
    missing: Mapping[str, int]  # why a planned cell makes no pair -> cells
    ratios: Mapping[str, tuple[float, float, float]]  # cost -> least, median and largest ratio of
    # other to baseline; without the time where layouts differ

    @property
    def equal(self) -> tuple[str, ...]:
        """The costs that are equal, within SAME_COST, in every pair."""
        return tuple(
            name
            for name, (low, _, high) in self.ratios.items()
            if high < 1 + SAME_COST and low > 1 / (1 + SAME_COST)
        )

    @property
    def interpolated(self) -> bool:
        """Whether the losses of the other group are interpolated over its widths."""
        return self.cells in COSTS


def group_cells(trials: pd.DataFrame, cells: str) -> GroupCells:
    """Return the trials of a group that may be paired at the cells of one matching.

    At one d_model a trial is paired by D; at an equal budget by the multiplier of the grid, which
    either group comes as near to as its budget allows. A duplicate gives way to the trial that
    counts.

    Args:
        trials: Rows of `SweepTables.trials` of the group.
        cells: The matching: "params", "flops" or "none".
    """
    every = matched(trials, cells).drop_duplicates("id")
    own = every[every["uniform_width"] & (every["state"] != "duplicate")]
    typed = own["typed_multiplier"].fillna(own["width_multiplier"])
    width = own["D"] / own["d_model"] if cells == "none" else typed
    size = own["d_model"] if cells == "none" else own["base_d_model"]
    rows: list[dict[Any, Any]] = own.assign(width=width.round(6))[list(_COLUMNS)].to_dict("records")
    found: dict[Key, Trial] = {}
    for model, row in zip(size, rows, strict=True):
        found.setdefault((float(model), row["width"], row["replicate"]), row)
    return GroupCells(found, int((~every["uniform_width"]).sum()))


def pair_cells(baseline: GroupCells, other: GroupCells, cells: str) -> PairedCells | Refusal:
    """Pair the trials of two groups at the cells of one matching.

    Returns:
        The pairs; a refusal without cells, pairs, or an equal number of tokens.
    """
    if not (baseline.trials and other.trials):
        return Refusal(NO_CELLS)
    keys = sorted({*baseline.trials, *other.trials})
    pairs: list[tuple[Trial, Trial]] = []
    why: Counter[str] = Counter()
    for key in keys:
        one, two = baseline.trials.get(key), other.trials.get(key)
        reason = _why_not(one, two)
        if reason or one is None or two is None:
            why[reason] += 1
        else:
            pairs.append((one, two))
    why["layers of different width"] = max(baseline.uneven, other.uneven)
    missing = {reason: count for reason, count in why.items() if count}
    if not pairs:
        listed = ", ".join(f"{count} {reason}" for reason, count in missing.items())
        return Refusal(f"no pair of completed trials ({listed})", excluded=missing)
    least, most = tokens_apart(pairs)
    if most / least > 1 + SAME_TOKENS:
        return Refusal(f"the training tokens of a pair differ ({large(least)} and {large(most)})")
    return PairedCells(
        cells=cells,
        widths=tuple(one["width"] for one, _ in pairs),
        replicates=tuple(one["replicate"] for one, _ in pairs),
        differences=tuple(two["val_loss"] - one["val_loss"] for one, two in pairs),
        planned=len(keys),
        broken=(baseline.broken, other.broken),
        missing=missing,
        ratios=_ratios(pairs),
    )


def _why_not(one: Trial | None, two: Trial | None) -> str:
    """Why two trials make no pair; an empty string if they do."""
    for state in BROKEN:
        if any(trial is not None and trial["state"] == state for trial in (one, two)):
            return state
    if one is None or two is None:
        return "planned in one group only"
    for trial in (one, two):
        if trial["state"] != "completed":
            return str(trial["state"])
    losses = usable([one["val_loss"], two["val_loss"]])
    return "" if losses.all() else "loss not finite"


def tokens_apart(pairs: Sequence[tuple[Trial, Trial]]) -> Interval:
    """Return the tokens of the pair that differs most, the smaller number first."""
    known = [
        tuple(sorted((one["tokens"], two["tokens"])))
        for one, two in pairs
        if np.isfinite([one["tokens"], two["tokens"]]).all()
    ]
    return max(known, key=lambda tokens: tokens[1] / tokens[0], default=(1.0, 1.0))


def spread(ratios: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the least, the median and the largest ratio; None if one is unknown."""
    if not np.isfinite(ratios).all():
        return None
    return float(min(ratios)), float(np.median(ratios)), float(max(ratios))


def _ratios(pairs: Sequence[tuple[Trial, Trial]]) -> dict[str, tuple[float, float, float]]:
    layouts = {trial["layout"] for pair in pairs for trial in pair}
    found = {}
    for name, (column, _) in COSTS.items():
        own = spread([two[column] / one[column] if one[column] else np.nan for one, two in pairs])
        if own is not None and (name != "seconds" or len(layouts) == 1):
            found[name] = own
    return found
