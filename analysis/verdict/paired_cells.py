"""Pair the trials of two groups: the same width and the same replicate in both."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.refusal import Refusal
from analysis.replicates import Interval
from analysis.tables.sweep_tables import matched
from analysis.verdict.caveats import BUDGET_SPREAD
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


@dataclass(frozen=True)
class PairedCells:
    """The paired trials of two groups at the cells of one matching."""

    cells: str  # of CELLS, or a key of COSTS where losses are interpolated to an equal cost
    pairs: pd.DataFrame  # one row per pair of completed trials: width, replicate, D, d_model and
    # width_multiplier of the baseline, difference [nats, other less baseline]
    planned: int  # widths and replicates planned for either group
    broken: tuple[int, int]  # of these, cells with a collapsed or diverged trial, by group
    missing: Mapping[str, int]  # why a planned cell makes no pair -> cells
    ratios: Mapping[str, tuple[float, float, float]]  # cost -> least, median and largest ratio of
    # other to baseline; without the time where layouts differ

    @property
    def equal(self) -> tuple[str, ...]:
        """The costs that are equal, within BUDGET_SPREAD, in every pair."""
        return tuple(
            name
            for name, (low, _, high) in self.ratios.items()
            if high < 1 + BUDGET_SPREAD and low > 1 / (1 + BUDGET_SPREAD)
        )

    @property
    def interpolated(self) -> bool:
        """Whether the losses of the other group are interpolated over its widths."""
        return self.cells in COSTS


def pair_cells(baseline: pd.DataFrame, other: pd.DataFrame, cells: str) -> PairedCells | Refusal:
    """Pair the trials of two groups at the cells of one matching.

    Args:
        baseline: Rows of `SweepTables.trials` of one group.
        other: Those of the other group.
        cells: The matching: "params", "flops" or "none".

    Returns:
        The pairs; a refusal without cells, pairs, or an equal number of tokens.
    """
    planned = [matched(trials, cells).drop_duplicates("id") for trials in (baseline, other)]
    sides = [keyed(trials, cells) for trials in planned]
    if any(side.empty for side in sides):
        return Refusal(NO_CELLS)
    keys = sides[0].index.union(sides[1].index)
    states = [side["state"].reindex(keys) for side in sides]
    broken = tuple(int(own.isin(BROKEN).sum()) for own in states)
    why = Counter(_why_not(*own) for own in zip(*states, strict=True))
    common = keys[[not _why_not(*own) for own in zip(*states, strict=True)]]
    one, two = (side.loc[common] for side in sides)
    good = usable(one["val_loss"]) & usable(two["val_loss"])
    if not good.all():
        why["loss not finite"] += int((~good).sum())
    one, two = one[good], two[good]
    why["layers of different width"] = max(int((~own["uniform_width"]).sum()) for own in planned)
    missing = {reason: count for reason, count in why.items() if reason and count}
    if one.empty:
        return Refusal(f"no pair of completed trials ({_listed(missing)})", excluded=missing)
    least, most = tokens_apart(one, two)
    if most / least > 1 + SAME_TOKENS:
        return Refusal(f"the training tokens of a pair differ ({large(least)} and {large(most)})")
    pairs = one[["width", "replicate", "D", "d_model", "width_multiplier"]].assign(
        difference=(two["val_loss"] - one["val_loss"]).to_numpy(float)
    )
    return PairedCells(
        cells=cells,
        pairs=pairs.reset_index(drop=True).sort_values(["width", "replicate"], ignore_index=True),
        planned=len(keys),
        broken=(broken[0], broken[1]),
        missing=missing,
        ratios=_ratios(one, two),
    )


def keyed(trials: pd.DataFrame, cells: str) -> pd.DataFrame:
    """Return the trials that may be paired, indexed by d_model, width and replicate.

    At one d_model that is D; at an equal budget it is the multiplier of the grid, which either
    group comes as near to as its budget allows. A duplicate gives way to the trial that counts.
    """
    own = trials[trials["uniform_width"] & (trials["state"] != "duplicate")]
    typed = own["typed_multiplier"].fillna(own["width_multiplier"])
    width = own["D"] / own["d_model"] if cells == "none" else typed
    size = own["d_model"] if cells == "none" else own["base_d_model"]
    keyed = own.assign(width=width.round(6), size=size)
    keyed = keyed.drop_duplicates(["size", "width", "replicate"])
    return keyed.set_index(["size", "width", "replicate"], drop=False).sort_index()


def _why_not(one: Any, two: Any) -> str:
    """Why two trials make no pair; an empty string if they do."""
    if one == two == "completed":
        return ""
    for broken in BROKEN:
        if broken in (one, two):
            return broken
    if not (isinstance(one, str) and isinstance(two, str)):
        return "planned in one group only"
    return str(two if one == "completed" else one)


def tokens_apart(one: pd.DataFrame, two: pd.DataFrame) -> Interval:
    """Return the tokens of the pair that differs most, the smaller number first."""
    tokens = np.stack([one["tokens"].to_numpy(float), two["tokens"].to_numpy(float)])
    tokens = tokens[:, np.isfinite(tokens).all(axis=0)]
    if not tokens.size:
        return 1.0, 1.0
    low, high = tokens.min(axis=0), tokens.max(axis=0)
    worst = int(np.argmax(high / low))
    return float(low[worst]), float(high[worst])


def _ratios(one: pd.DataFrame, two: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    found = {}
    layouts = pd.concat([one["layout"], two["layout"]]).nunique(dropna=False)
    for name, (column, _) in COSTS.items():
        ratio = two[column].to_numpy(float) / one[column].to_numpy(float)
        if np.isfinite(ratio).all() and (name != "seconds" or layouts == 1):
            found[name] = (float(ratio.min()), float(np.median(ratio)), float(ratio.max()))
    return found


def _listed(missing: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in missing.items())
